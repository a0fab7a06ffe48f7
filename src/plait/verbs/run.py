"""plait run: whatever the model does, on arguments or on lines from standard input."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from inspect import signature
from itertools import islice
from os.path import isfile
from pathlib import Path
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
    context: Annotated[str | None, "of a model that answers: the text, or a file with the text, in which the answers stand"] = None
    null_threshold: Annotated[float | None, "of a model that answers: no answer where that scores better by more"] = None
    max_answer_tokens: Annotated[int | None, "of a model that answers: tokens of the longest answer (default 30)"] = None
    similar: Annotated[str | None, "FILE", "of an embedding model: rank this file's lines by cosine, the --n-best (default 5) first"] = None
    max_new_tokens: Annotated[int | None, "of a language model: tokens it may add (default 50)"] = None
    prefix: Annotated[str | None, "of a text-to-text model: what stands before each text, such as 'summarize: '"] = None
    task: Annotated[str | None, "of a text-to-text model: one that its config.json names; gives prefix and settings"] = None
    chat: Annotated[bool | None, "of a language model: each input is a message to answer; at a keyboard, a conversation"] = None
    system: Annotated[str | None, "with --chat: what the model is told first"] = None
    batch: Annotated[int, "inputs read ahead and answered together"] = 64
    threads: Annotated[int | None, "CPU threads; default: all cores"] = None
    json: Annotated[bool, "one JSON object an input: input, answer, score, alternatives"] = False

    def run(self) -> Iterator[Any]:
        """Yields a string (or with `json` a dictionary) for each input, in order."""
        import torch

        from plait.errors import InputError
        from plait.hub import load

        faults = number_faults(self, ("beams", "n_best", "max_new_tokens", "max_answer_tokens", "batch", "threads"), ("length_penalty",))
        if faults:
            raise InputError("nothing can be answered so", faults)
        if self.threads:
            torch.set_num_threads(self.threads)
        model = load(self.model)
        options = self.options(model)
        if self.chat and not self.input and _interactive():
            yield from self.conversation(model)
            return
        texts, done = iter(self.input) if self.input else stdin_lines(), 0
        while batch := list(islice(texts, self.batch if self.input or not _interactive() else 1)):
            rows = model.rows(batch, first=done + 1, **options)
            done += len(batch)
            for text, (line, found) in zip(batch, rows, strict=True):
                yield {"input": text, **found} if self.json else line

    def conversation(self, model: Any) -> Iterator[Any]:
        """Each line of the keyboard is the next message, and the model remembers the earlier ones."""
        from plait.hub.languages import opening

        messages = opening(self.system)
        for text in stdin_lines():
            messages.append({"role": "user", "content": text})
            answer = model.chat(messages, **({} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}))
            messages.append({"role": "assistant", "content": answer})
            yield {"input": text, "answer": answer} if self.json else answer

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
        return {name: READ[name](value) if name in READ else value for name, value in given.items()}


def text_of(given: str) -> str:
    """The text in a file of that name, or what was given where there is no such file."""
    from plait.text.special import read_text

    return read_text(Path(given), "a text in UTF-8") if isfile(given) else given


def lines_of(file: str) -> tuple[str, ...]:
    """The lines of a file that are not blank."""
    from plait.text.special import read_text

    return tuple(line for line in read_text(Path(file), "texts in UTF-8, one a line").splitlines() if line.strip())


# Fields that are options of a task, and those of them that name a file.
OPTIONS = ("beams", "length_penalty", "n_best", "max_new_tokens", "context", "null_threshold", "max_answer_tokens", "similar")
OPTIONS += ("prefix", "task", "chat", "system")
READ = {"context": text_of, "similar": lines_of}


def name_of(option: str) -> str:
    return "--" + option.replace("_", "-")


def _interactive() -> bool:
    """A person, or a program that waits for each answer, must not wait for a full batch."""
    import sys

    return sys.stdin is not None and sys.stdin.isatty()
