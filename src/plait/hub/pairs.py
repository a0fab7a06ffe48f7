"""Models of an encoder and a decoder that are ready: they translate, summarise, or do what a prefix asks (T5)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from plait.core.stream import Stream
from plait.errors import InputError
from plait.generate.constraints import NEVER, Constraint, NoSequence, Repetition
from plait.generate.layout import ROWS
from plait.generate.running import Continuation, Running, continuing
from plait.generate.sampling import Draws
from plait.generate.search import Hypothesis
from plait.generate.text import before, texts_of
from plait.hub.decoding import OPTIONS, Decoding, filters_of, search_options, settings_of
from plait.hub.ready import Ready, Row, texts_given, vocabulary
from plait.tasks.sequences import Answer, Rewriter, searched

LANGUAGE = re.compile(r">>.*?<<\s*", re.DOTALL)  # the target language, before a text for a Marian model of several

PLAIN = Decoding()


class SequenceModel(Ready):
    """One text in, another out, by the search that the checkpoint's own settings describe.

    A Marian model translates: what is longer than it takes goes in pieces. Of other models a text that is too long is refused, since
    the summaries of two halves are not the summary of the whole.
    """

    few_rows = ROWS
    row_options = OPTIONS

    @cached_property
    def task(self) -> str:  # type: ignore[override]
        return "translate" if self.config.get("model_type") == "marian" else "text-to-text"

    def __call__(self, text: str | Sequence[str], **options: Any) -> Any:
        """A string for a string, a list for a list. Options as of `answers`."""
        texts, one = texts_given(text)
        found = [answer.text for answer in self.answers(texts, **options)]
        return found[0] if one else found

    def answers(
        self,
        texts: Sequence[str],
        *,
        first: int = 1,
        n_best: int = 1,
        task: str | None = None,
        prefix: str | None = None,
        **settings: Any,
    ) -> list[Answer]:
        """As `__call__`, with scores and runners-up.

        `task` is one of those in config.json's `task_specific_params`, which give a prefix and settings. `prefix` stands before each
        text (T5: "translate English to German: "). Everything else is an option of `Decoding`, or a setting of the search in Hugging
        Face's words (num_beams, length_penalty, max_new_tokens, no_repeat_ngram_size ...), instead of the checkpoint's. With a
        temperature the `n` samples of a text, each with its log-probability, are its answers.
        """
        reading, how = self.reading(task, prefix, n_best, settings)
        return reading(texts, first=first, **how)

    def reading(self, task: str | None, prefix: str | None, n_best: int, settings: dict[str, Any]) -> tuple["Reading", dict[str, Any]]:
        """How texts are read and answered, and what `Rewriter` is to be told; InputError has everything that cannot be."""
        asked = Decoding(**{name: settings.pop(name) for name in OPTIONS if settings.get(name) is not None})
        said = self.settings(task, settings | asked.settings())
        beams = 1 if asked.temperature else said.get("num_beams", 1)
        asked = replace(asked, n=max(n_best, asked.n), beams=beams)
        if faults := asked.faults(vocabulary(self.net, "decoder")):
            raise InputError("nothing can be answered so", faults)
        how = search_options(said | {"num_beams": beams}, str(self.parts.folder), self.max_length)
        reading = Reading(self, prefix if prefix is not None else said.get("prefix", ""), asked, filters_of(said))
        return reading, {**how, "n_best": asked.n}

    def settings(self, task: str | None = None, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the checkpoint says of its search, with `more` instead where it is given."""
        given = {name: value for name, value in (more or {}).items() if value is not None}
        said = settings_of(self.parts, task)
        if "max_new_tokens" in given and said.get("min_length", 0) > given["max_new_tokens"]:
            said["min_length"] = 0  # asked for less than the checkpoint's least
        if "num_beams" in given:  # the search is chosen, so no other one is wanted
            said = {name: value for name, value in said.items() if name not in ("num_beam_groups", "diversity_penalty")}
        return {**said, **given}

    def generate(
        self,
        text: str | Sequence[Any],
        max_new_tokens: int = 50,
        min_new_tokens: int = 0,
        temperature: float = 0.0,
        stream: bool = False,
        **settings: Any,
    ) -> Any:
        """Text for text, ids (of a source, as `encode` gives them) for ids; lists of either for lists. Options as of `answers`.

        With `n` above 1 there is a list of answers for each. With `stream`, of one text an iterator over pieces of its answer, of ids
        over ids.
        """
        settings |= {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "temperature": temperature}
        if stream:
            return self._streamed(text, settings)
        n = settings.get("n", 1)
        if isinstance(text, str) or (len(text) and isinstance(text[0], str)):
            answers = self.answers([text] if isinstance(text, str) else text, **settings)
            found: list[Any] = [[answer.text, *(other for other, _ in answer.alternatives)] if n > 1 else answer.text for answer in answers]
            return found[0] if isinstance(text, str) else found
        one = bool(len(text) and isinstance(text[0], int))
        rows = self._rows([list(text)] if one else [list(row) for row in text])
        reading, how = self.reading(None, "", 1, settings)
        found = [[h.ids for h in some] if n > 1 else some[0].ids for some in reading.search(rows, **how)] if rows else []
        return found[0] if one else found

    def _rows(self, rows: list[list[int]]) -> list[list[int]]:
        if faults := [f"row {i}: {fault}" for i, row in enumerate(rows) for fault in self._row_faults([row])]:
            raise InputError("these rows cannot be read", faults)
        return rows

    def _streamed(self, text: str | Sequence[Any], settings: dict[str, Any]) -> Iterator[Any]:
        reading, how = self.reading(None, settings.pop("prefix", None), 1, settings)
        if how.pop("beams") > 1 or how.pop("n_best") > 1:
            raise InputError("stream=True goes with one answer of one beam: give beams=1 and n=1")
        if isinstance(text, str):
            pieces = reading.pieces(text)
        elif len(text) and isinstance(text[0], int):
            pieces = self._rows([list(text)])
        else:
            raise InputError("stream=True goes with one text, not with a list of them")
        if len(pieces) > 1:
            raise InputError(f"stream=True: this text goes in {len(pieces)} pieces, since it is longer than {self.max_length} tokens")
        texts = reading.continuations(pieces, 1, **how)
        ids = (token for _, token in continuing(Running(self.net), reading.with_sources(pieces, texts)) if token is not None)
        return texts_of(ids, self.decode, reading.asked.stops) if isinstance(text, str) else ids

    def rows(
        self,
        texts: Sequence[str],
        first: int = 1,
        beams: int | None = None,
        n_best: int = 1,
        length_penalty: float | None = None,
        max_new_tokens: int | None = None,
        prefix: str | None = None,
        task: str | None = None,
        **options: Any,
    ) -> list[Row]:
        """(line, JSON) of each text, for the command line."""
        settings = {"num_beams": beams, "length_penalty": length_penalty, "max_new_tokens": max_new_tokens, **options}
        rows = []
        for answer in self.answers(texts, first=first, n_best=n_best, prefix=prefix, task=task, **settings):
            others = [{"answer": text, "score": score} for text, score in answer.alternatives]
            rows.append((answer.text, {"answer": answer.text, "score": answer.score, "alternatives": others}))
        return rows


class Reading(Rewriter):
    """How a model's texts are read, with a prefix, which each piece of a long one gets; and answered, as a caller asked."""

    def __init__(self, model: SequenceModel, prefix: str, asked: Decoding = PLAIN, filters: Sequence[Constraint] = ()):
        super().__init__(model.net, lambda ids: before(model.decode(ids), asked.stops), model.max_length)
        self.model, self.prefix, self.asked, self.filters = model, prefix, asked, filters
        self.in_pieces = model.task == "translate"

    def pieces(self, text: str) -> list[list[int]]:
        code = LANGUAGE.match(text) if self.in_pieces else None
        if code is None:
            return super().pieces(text)
        return Reading(self.model, self.prefix + code[0], self.asked, self.filters).pieces(text[code.end() :])

    def encode(self, text: str) -> list[int]:
        return self.model.encode(self.prefix + text) if text.strip() else []

    def search(self, rows: list[list[int]], beams: int, n_best: int, **how: Any) -> list[list[Hypothesis]]:
        # Without beams a repetition is penalised by the raw scores, as Hugging Face's greedy search does; with beams by log-probabilities.
        penalised = beams == 1 and any(isinstance(rule, Repetition) for rule in how["constraints"])
        if self.asked.temperature or self.asked.stops or penalised:
            texts = self.continuations(rows, n_best, **how)
            for _ in continuing(Running(self.net), self.with_sources(rows, texts)):
                pass
            return [[Hypothesis(text.ids, text.log_prob, text.log_prob, text.ended) for text in some] for some in texts]
        found = searched(self.net, rows, beams=beams, n_best=n_best, **how)
        if any(some[0].score == NEVER for some in found):
            raise InputError("no answer can be found: the settings forbid every one; ask for less")
        return found

    def continuations(
        self, rows: list[list[int]], n: int, start: int, end: int, max_length: int, forbidden: Any, constraints: Any, **_: Any
    ) -> list[list[Continuation]]:
        """What a running batch is to write: `n` texts for each row of source ids."""
        asked, stops = self.asked, self.asked.stops
        rules = (*constraints, *([NoSequence([[id] for id in forbidden])] if forbidden else ()), *self.filters)
        stopped = (lambda ids: before(text := self.model.decode(ids), stops) != text) if stops else None

        def text(i: int, k: int) -> Continuation:
            draws = Draws.of(asked.seed, k, rows[i], [start]) if asked.temperature else None
            return Continuation([start], max_length, [end], rules, draws, stopped, f"text {i + 1} of its batch")

        return [[text(i, k) for k in range(n)] for i in range(len(rows))]

    def with_sources(self, rows: list[list[int]], texts: list[list[Continuation]]) -> Iterator[tuple[list[Continuation], Stream | None]]:
        """Each source is encoded by itself when there is room for its texts, so nothing is computed for padding."""
        device = next(self.net.parameters()).device
        for row, some in zip(rows, texts, strict=True):
            with torch.inference_mode():
                memory = self.net.run("encoder", torch.tensor([row], device=device))
            yield some, memory
