"""The pages that `--help` shows: plain text, no colours, no box characters, so that they read the same on every terminal."""

import os
import textwrap

from plait.cli.parse import Option, options
from plait.verbs import VERBS


def overview() -> str:
    """What `plait --help` shows; imports no verb."""
    wide = max(map(len, VERBS))
    verbs = [f"  {name.ljust(wide)}  {verb.line}" for name, verb in VERBS.items()]
    end = "Results go to standard output, progress to standard error. Exit codes: 0 done, 2 wrong input, 130 interrupted."
    more = "plait VERB --help shows a verb's options, plait --version the version."
    head = ["usage: plait VERB ...", "", "Transformers of every family, from one set of blocks."]
    return "\n".join([*head, "", *verbs, "", more, *_fill(end)])


def of_verb(name: str) -> str:
    """What `plait VERB --help` shows."""
    verb = VERBS[name].load()
    table = options(verb)
    places = [option for option in table if option.positional]
    named = sorted((option for option in table if not option.positional), key=lambda option: not option.required)
    usage = " ".join(["usage: plait", name, *map(_place, places), *(_flag(o) for o in named if o.required), *["[options]"][: len(named)]])
    text = textwrap.dedent("    " + (verb.__doc__ or "")).strip()
    rows = [(_place(option).strip("[]"), option) for option in places] + [(_flag(option), option) for option in named]
    wide = min(max((len(left) for left, _ in rows), default=0), 28)
    lines = [line for left, option in rows for line in _row(left, option, wide)]
    return "\n".join([usage, "", text, "", *lines]).rstrip()


def _place(option: Option) -> str:
    word = f"{option.placeholder} ..." if option.many else option.placeholder
    return word if option.required else f"[{word}]"


def _flag(option: Option) -> str:
    if option.switch:
        return f"--no{option.flag[1:]}" if option.default is True else option.flag
    return f"{option.flag} {option.placeholder}" + (" ..." if option.many else "")


def _row(left: str, option: Option, wide: int) -> list[str]:
    default = " ".join(map(str, option.default)) if isinstance(option.default, list) else option.default
    silent = option.required or option.switch or default is None or default == ""
    note = "(required)" if option.required and not option.positional else "" if silent else f"(default {default})"
    right = _fill(f"{option.help} {note}".strip(), wide + 4)
    if len(left) > wide:
        return [f"  {left}", *(" " * (wide + 4) + line for line in right)]
    first, *rest = right or [""]
    return [f"  {left.ljust(wide)}  {first}".rstrip(), *(" " * (wide + 4) + line for line in rest)]


def _fill(text: str, indent: int = 0) -> list[str]:
    try:
        columns = os.get_terminal_size().columns
    except (OSError, ValueError):
        columns = 100
    return textwrap.wrap(text, max(min(columns, 100) - indent, 30))
