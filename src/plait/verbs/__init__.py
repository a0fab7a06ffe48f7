"""One dataclass and one `run()` a verb: the Python API, the command line and the saved config at once.

    @dataclass
    class Eval:
        "Score a model on data with right answers (one JSON object on stdout)."

        model: Annotated[str, positional, "a run, a folder or a name"]         # MODEL
        data: Annotated[list[str], "FILES", "what to score it on"]             # --data FILES [FILES ...]
        beams: Annotated[int | None, "beams of the search"] = None             # --beams N
        json: Annotated[bool, "write JSON"] = False                            # --json, --no-json

        def run(self): ...

A field without a default must be given. The last string is the help, an upper-case one before it the placeholder. Types are str,
int, float, bool, Path, a Literal of strings, a list of these, unions of these (tried in order), and any of them `| None`.

What `run()` returns is the result: the command line prints it on stdout and everything else goes to stderr. None prints nothing, a
string itself, a mapping or a dataclass one JSON object, `Rows` a table, an iterator each of its items as soon as it is there. A
verb with a field `json` that is true has all of these printed as JSON. Importing a verb must not import torch: `run()` does that.
"""

import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple

from plait.errors import InputError


class Positional:
    """The type of `positional`, the mark of a field that is given by its place and not by its name."""


positional = Positional()


class Verb(NamedTuple):
    module: str
    name: str
    line: str  # equals the first line of the class's docstring, so that the list of verbs needs no import; a test compares them

    def load(self) -> type:
        return getattr(import_module(self.module), self.name)


VERBS = {
    "train": Verb("plait.verbs.train", "Train", "Train a model on your own data, from files to a run folder."),
    "tune": Verb(
        "plait.verbs.tune",
        "Tune",
        "Tune a model on your own data by a small part of it, such as LoRA or a prefix; only that part is saved.",
    ),
    "doctor": Verb(
        "plait.verbs.doctor", "Doctor", "Examine a training run before it starts: overfit one batch, and name what is silently wrong."
    ),
    "run": Verb("plait.verbs.run", "Run", "Put a model to use: answers on stdout, one for each input."),
    "eval": Verb("plait.verbs.eval", "Eval", "Score a model on data with right answers (one JSON object on stdout)."),
    "inspect": Verb(
        "plait.verbs.inspect",
        "Inspect",
        "Show what a model attends to and what its answer rests on: a page to explore (.html) or one picture of it (.png).",
    ),
    "compress": Verb(
        "plait.verbs.compress",
        "Compress",
        "Make a finished model smaller, and say what that costs in quality and brings in bytes and time.",
    ),
    "check": Verb("plait.verbs.check", "Check", "Load released weights and print the certificate: what was claimed, tied and dropped."),
    "convert": Verb(
        "plait.verbs.convert",
        "Convert",
        "Write a model in another format: Hugging Face's folder, a GGUF or ONNX files; or in 8 or 4 bits, for Plait.",
    ),
    "models": Verb("plait.verbs.models", "Models", "List the models there are, with their presets and parameter totals."),
    "data": Verb("plait.verbs.data", "Data", "List the built-in data sets, or write one of them as a file."),
    "bench": Verb("plait.bench.verb", "Bench", "Time and score Plait against named peers, in turn, on this machine."),
}


class Rows(list[dict[str, Any]]):
    """Results as rows of named cells: JSON for a program, aligned columns for a reader."""

    def __str__(self) -> str:
        cells = [["" if value is None else str(value) for value in row.values()] for row in self]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def stdin_lines() -> Iterator[str]:
    """Lines of standard input as they arrive, without their ends; UTF-8 whatever the locale, a byte order mark is dropped."""
    if sys.stdin is None:
        raise InputError("there is no standard input to read from: give the input as an argument")
    if sys.stdin.isatty():
        end = "Ctrl-Z and Enter" if sys.platform == "win32" else "Ctrl-D"
        print(f"reading one input a line from the keyboard; {end} ends", file=sys.stderr)
    stream = getattr(sys.stdin, "buffer", sys.stdin)
    for number, line in enumerate(iter(stream.readline, type(stream.readline(0))()), start=1):
        if isinstance(line, bytes):
            try:
                line = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                where = f"standard input, line {number}, byte {error.start + 1}"
                raise InputError(f"{where}: not UTF-8 ({error.reason}): convert it first") from None
        yield line.rstrip("\r\n")
