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
    input: Annotated[list[str], positional, "texts, or files of pictures and clips; without any, lines are read from standard input"] = (
        field(default_factory=list)
    )
    beams: Annotated[int | None, "of a translator: beams of the search; 1 is greedy (default 4)"] = None
    length_penalty: Annotated[float | None, "of a translator: exponent of ((5 + length) / 6) that scores are divided by"] = None
    beam_groups: Annotated[int | None, "with --beams: they search in so many groups, which --diversity-penalty keeps apart"] = None
    diversity_penalty: Annotated[float | None, "with --beam-groups: what a token costs that an earlier group took at that place"] = None
    n_best: Annotated[int | None, "answers an input: of a translator with --json, of a mask always"] = None
    context: Annotated[str | None, "of a model that answers: the text, or a file with the text, in which the answers stand"] = None
    null_threshold: Annotated[float | None, "of a model that answers: no answer where that scores better by more"] = None
    max_answer_tokens: Annotated[int | None, "of a model that answers: tokens of the longest answer (default 30)"] = None
    similar: Annotated[str | None, "FILE", "of an embedding model: rank this file's lines by cosine, the --n-best (default 5) first"] = None
    threshold: Annotated[float | None, "of a detector: show objects at least so probable (default 0.5)"] = None
    draw: Annotated[str | None, "FOLDER", "of a detector: write each picture there, with its objects' boxes drawn on it"] = None
    max_new_tokens: Annotated[int | None, "of a model that writes: tokens it may add (a language model's default is 50)"] = None
    min_new_tokens: Annotated[int | None, "of a model that writes: tokens before it may end"] = None
    temperature: Annotated[float | None, "of a model that writes: above 0 it draws tokens, their scores divided by this"] = None
    top_k: Annotated[int | None, "with --temperature: only from the K likeliest tokens"] = None
    top_p: Annotated[float | None, "with --temperature: only from the fewest that have this probability together"] = None
    min_p: Annotated[float | None, "with --temperature: only those at least so many times as likely as the likeliest"] = None
    typical: Annotated[float | None, "with --temperature: locally typical tokens that have this probability together"] = None
    seed: Annotated[int | None, "with --temperature: the same seed draws the same text of the same input (default 0)"] = None
    n: Annotated[int | None, "of a model that writes, with --json: samples of an input, or its best of --beams"] = None
    repetition_penalty: Annotated[float | None, "of a model that writes: divides the scores of tokens that are there"] = None
    presence_penalty: Annotated[float | None, "of a model that writes: taken off the score of a token that it has used"] = None
    frequency_penalty: Annotated[float | None, "of a model that writes: taken off a token's score for each time it was used"] = None
    no_repeat_ngram_size: Annotated[int | None, "of a model that writes: no run of so many tokens twice"] = None
    logit_bias: Annotated[list[str] | None, "ID=NUMBER", "of a model that writes: numbers added to the scores of tokens"] = None
    stop: Annotated[list[str] | None, "of a model that writes: strings that end an answer, before they occur in it"] = None
    json_schema: Annotated[str | None, "FILE", "of a model that writes: answers are JSON by this schema, a file or its text"] = None
    regex: Annotated[str | None, "of a model that writes: answers match this regular expression as a whole"] = None
    speculate: Annotated[str | None, "lookup|MODEL", "of a model that writes: guess tokens, for speed; the answer stays"] = None
    target_prefix: Annotated[str | None, "of a model that translates or rewrites: what each answer begins with"] = None
    required: Annotated[list[str] | None, "of a model that translates or rewrites: words that each answer holds"] = None
    ensemble: Annotated[list[str] | None, "MODEL", "further models with the same vocabulary; all answer together"] = None
    prefix: Annotated[str | None, "of a text-to-text model: what stands before each text, such as 'summarize: '"] = None
    task: Annotated[str | None, "of a text-to-text model: one that its config.json names; gives prefix and settings"] = None
    chat: Annotated[bool | None, "of a language model: each input is a message to answer; at a keyboard, a conversation"] = None
    system: Annotated[str | None, "with --chat: what the model is told first"] = None
    bits: Annotated[int | None, "8 or 4: matrices rounded to so many bits a value, for less memory and faster generation"] = None
    exact: Annotated[bool, "an answer is the same to the last bit alone and in any batch; slower"] = False
    batch: Annotated[int, "inputs read ahead and answered together"] = 64
    threads: Annotated[int | None, "CPU threads; default: all cores"] = None
    json: Annotated[bool, "one JSON object an input: input, answer, score, alternatives"] = False

    def run(self) -> Iterator[Any]:
        """Yields a string (or with `json` a dictionary) for each input, in order."""
        import torch

        from plait.errors import InputError
        from plait.hub import load

        faults = number_faults(
            self, ("beams", "n_best", "max_answer_tokens", "batch", "threads", "n"), ("length_penalty", "max_new_tokens")
        )
        if faults:
            raise InputError("nothing can be answered so", faults)
        if self.threads:
            torch.set_num_threads(self.threads)
        model = load([self.model, *(self.ensemble or ())], bits=self.bits, exact=self.exact)
        options = self.options(model)
        if self.chat and not self.input and _interactive():
            yield from self.conversation(model)
            return
        model.rows([], **options)  # what is wrong with them is said once, not of each input
        texts, done, faults = iter(self.input) if self.input else stdin_lines(), 0, []
        while batch := list(islice(texts, self.batch if self.input or not _interactive() else 1)):
            for text, row in zip(batch, answered(model, batch, done + 1, options), strict=True):
                done += 1
                if isinstance(row, InputError):
                    said = "; ".join(row.faults or [row.message])
                    faults.append(f"input {done}: {said.removeprefix(f'input {done}: ')}")
                    row = "", {"error": said}
                yield {"input": text, **row[1]} if self.json else row[0]
        if faults:
            raise InputError(f"{len(faults)} of {done} inputs cannot be answered", faults)

    def conversation(self, model: Any) -> Iterator[Any]:
        """Each line of the keyboard is the next message, and the model remembers the earlier ones."""
        from plait.hub.languages import opening

        messages = opening(self.system)
        how = {name: value for name, value in self.options(model).items() if name not in ("chat", "system")}
        for text in stdin_lines():
            messages.append({"role": "user", "content": text})
            answer = model.chat(messages, **how)
            messages.append({"role": "assistant", "content": answer})
            yield {"input": text, "answer": answer} if self.json else answer

    def options(self, model: Any) -> dict[str, Any]:
        """What was asked of the model; InputError names what a model of its task does not take."""
        from plait.errors import InputError, choices

        taken = [*signature(model.rows).parameters, *getattr(model, "row_options", ())]
        given = {name: getattr(self, name) for name in OPTIONS if getattr(self, name) is not None}
        if faults := [f"{name_of(name)} {value}" for name, value in given.items() if name not in taken]:
            known = [name_of(name) for name in OPTIONS if name in taken]
            raise InputError(
                f"{self.model}: its task is {model.task}, which takes {choices(known) if known else 'no options'}; not", faults
            )
        return {name: READ[name](value) if name in READ else value for name, value in given.items()}


def answered(model: Any, texts: list[str], first: int, options: dict[str, Any]) -> list[Any]:
    """A row of each text, or the InputError that says why there is none.

    What a model cannot answer together it is asked in halves: the inputs that are wrong are found in a few calls, and the others have
    the answers that they have alone.
    """
    from plait.errors import InputError

    try:
        return list(model.rows(texts, first=first, **options))
    except InputError as error:
        if len(texts) == 1:
            return [error]
    half = len(texts) // 2
    return [*answered(model, texts[:half], first, options), *answered(model, texts[half:], first + half, options)]


def text_of(given: str, option: str = "context") -> str:
    """The text in a file of that name, or what was given where it cannot be meant as a file's name."""
    from plait.errors import InputError
    from plait.text.special import read_text

    if isfile(given):
        return read_text(Path(given), "a text in UTF-8")
    if not any(map(str.isspace, given)) and (Path(given).suffix or Path(given).name != given):
        raise InputError(f"{name_of(option)} {given}: there is no such file; give a file with the text, or the text itself")
    return given


def schema_in(given: str) -> str:
    """The JSON text of a schema: what was given where it begins as one does, else what the file of that name holds."""
    return given if given.lstrip().startswith("{") else text_of(given, "json_schema")


def draft_of(given: str) -> Any:
    """Who guesses: the text itself, or another model."""
    from plait.hub import load

    return given if given == "lookup" else load(given)


def lines_of(file: str) -> tuple[str, ...]:
    """The lines of a file that are not blank."""
    from plait.text.special import read_text

    return tuple(line for line in read_text(Path(file), "texts in UTF-8, one a line").splitlines() if line.strip())


def biases_of(pairs: list[str]) -> dict[int, float]:
    """ID=NUMBER of each, as a mapping."""
    from plait.errors import InputError

    found, faults = {}, []
    for pair in pairs:
        try:
            id, number = pair.split("=")
            found[int(id)] = float(number)
        except ValueError:
            faults.append(f"--logit-bias {pair}: expected ID=NUMBER, such as 13=-2.5")
    if faults:
        raise InputError("nothing can be answered so", faults)
    return found


# Fields that are options of a task, and those of them that are read: from a file, or from their words.
OPTIONS = [
    *("beams", "length_penalty", "n_best", "max_new_tokens", "context", "null_threshold", "max_answer_tokens", "similar"),
    *("threshold", "draw"),
    *("prefix", "task", "chat", "system", "min_new_tokens", "temperature", "top_k", "top_p", "min_p", "typical", "seed", "n"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size", "logit_bias", "stop"),
    *("json_schema", "regex", "speculate", "beam_groups", "diversity_penalty", "target_prefix", "required"),
]
READ = {"context": text_of, "similar": lines_of, "logit_bias": biases_of, "json_schema": schema_in, "speculate": draft_of}


def name_of(option: str) -> str:
    return "--" + option.replace("_", "-")


def _interactive() -> bool:
    """A person, or a program that waits for each answer, must not wait for a full batch."""
    import sys

    return sys.stdin is not None and sys.stdin.isatty()
