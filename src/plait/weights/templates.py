"""Names of tensors with typed holes, matched and filled."""

import re
from collections.abc import Mapping

NUMBER = "0|[1-9][0-9]*"
HOLES = {"i": NUMBER, "j": NUMBER, "w": "weight|bias"}
HOLE = re.compile(r"\{(\w+)(?::([^}]+))?\}")


class Template:
    """A name with typed holes: {i} and {j} are numbers, {w} is weight or bias, {x:up|down} is one of those given."""

    def __init__(self, text: str):
        self.text, self.holes, pattern, at = text, [], "", 0
        for hole in HOLE.finditer(text):
            name, kind = hole[1], hole[2] or HOLES.get(hole[1])
            if kind is None:
                raise ValueError(f"{text!r}: the hole {{{name}}} has no type: use {', '.join(HOLES)} or {{{name}:one|another}}")
            again = name in self.holes
            pattern += re.escape(text[at : hole.start()]) + (f"(?P={name})" if again else f"(?P<{name}>{kind})")
            self.holes += [] if again else [name]
            at = hole.end()
        self.pattern = re.compile(pattern + re.escape(text[at:]))

    def match(self, name: str) -> dict[str, str] | None:
        found = self.pattern.fullmatch(name)
        return None if found is None else found.groupdict()

    def fill(self, holes: Mapping[str, str]) -> str:
        return HOLE.sub(lambda hole: holes[hole[1]], self.text)
