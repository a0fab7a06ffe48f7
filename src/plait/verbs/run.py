"""plait run: whatever the model does, on arguments or on lines from standard input."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from inspect import signature
from itertools import islice
from typing import Annotated, Any

from plait.verbs import positional, stdin_lines
from plait.verbs.numbers import number_faults


@dataclass
class Run:
    """Put a model to use: answers on stdout, one for each input."""

    model: Annotated[str, positional, "a run folder, a released checkpoint's folder, or a name such as minilm"]
    input: Annotated[list[str], positional, "texts; without any, lines are read from standard input"] = field(default_factory=list)
    beams: Annotated[int | None, "of a translator: beams of the search; 1 is greedy (default 4)"] = None
    length_penalty: Annotated[float | None, "of a translator: exponent of ((5 + length) / 6) that scores are divided by"] = None
    n_best: Annotated[int | None, "answers an input: of a translator with --json, of a mask always"] = None
    max_new_tokens: Annotated[int | None, "of a language model: tokens it may add (default 50)"] = None
    batch: Annotated[int, "inputs read ahead and answered together"] = 64
    threads: Annotated[int | None, "CPU threads; default: all cores"] = None
    json: Annotated[bool, "one JSON object an input: input, answer, score, alternatives"] = False

    def run(self) -> Iterator[Any]:
        """Yields a string (or with `json` a dictionary) for each input, in order."""
        import torch

        from plait.errors import InputError
        from plait.hub import load

        faults = number_faults(self, ("beams", "n_best", "max_new_tokens", "batch", "threads"), ("length_penalty",))
        if faults:
            raise InputError("nothing can be answered so", faults)
        if self.threads:
            torch.set_num_threads(self.threads)
        model = load(self.model)
        texts, done = iter(self.input) if self.input else stdin_lines(), 0
        options = self.options(model)
        while batch := list(islice(texts, self.batch if self.input or not _interactive() else 1)):
            rows = model.rows(batch, first=done + 1, **options)
            done += len(batch)
            for text, (line, found) in zip(batch, rows, strict=True):
                yield {"input": text, **found} if self.json else line

    def options(self, model: Any) -> dict[str, Any]:
        """What was asked of the model; InputError names what a model of its task does not take."""
        from plait.errors import InputError, choices

        taken = list(signature(model.rows).parameters)
        given = {name: getattr(self, name) for name in OPTIONS if getattr(self, name) is not None}
        if faults := [f"{name_of(name)} {value}" for name, value in given.items() if name not in taken]:
            known = [name_of(name) for name in OPTIONS if name in taken]
            raise InputError(
                f"{self.model}: its task is {model.task}, which takes {choices(known) if known else 'no options'}; not", faults
            )
        return given


OPTIONS = ("beams", "length_penalty", "n_best", "max_new_tokens")  # fields that are options of a task


def name_of(option: str) -> str:
    return "--" + option.replace("_", "-")


def _interactive() -> bool:
    """A person, or a program that waits for each answer, must not wait for a full batch."""
    import sys

    return sys.stdin is not None and sys.stdin.isatty()
