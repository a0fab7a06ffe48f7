"""Models of an encoder and a decoder that are ready: they translate, summarise, or do what a prefix asks (T5)."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from plait.errors import InputError
from plait.generate.layout import ROWS
from plait.generate.search import Hypothesis
from plait.hub.decoding import search_options, settings_of
from plait.hub.ready import Ready, Row
from plait.tasks.sequences import Answer, Rewriter, searched

LANGUAGE = re.compile(r">>.*?<<\s*", re.DOTALL)  # the target language, before a text for a Marian model of several


class SequenceModel(Ready):
    """One text in, another out, by the search that the checkpoint's own settings describe.

    A Marian model translates: what is longer than it takes goes in pieces. Of other models a text that is too long is refused, since
    the summaries of two halves are not the summary of the whole.
    """

    few_rows = ROWS

    @cached_property
    def task(self) -> str:  # type: ignore[override]
        return "translate" if self.config.get("model_type") == "marian" else "text-to-text"

    def __call__(self, text: str | Sequence[str], **options: Any) -> Any:
        """A string for a string, a list for a list. Options as of `answers`."""
        found = [answer.text for answer in self.answers([text] if isinstance(text, str) else text, **options)]
        return found[0] if isinstance(text, str) else found

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
        text (T5: "translate English to German: "). Everything else is a setting of the search in Hugging Face's words (num_beams,
        length_penalty, max_new_tokens, no_repeat_ngram_size ...) instead of the checkpoint's.
        """
        said = self.settings(task, settings)
        how = search_options(said, str(self.parts.folder), self.max_length)
        beams = how.pop("beams")
        if n_best > beams:
            raise InputError(f"n_best={n_best}: at most as many as num_beams, which is {beams}")
        rewrite = Reading(self, prefix if prefix is not None else said.get("prefix", ""))
        return rewrite(texts, beams=beams, n_best=n_best, first=first, **how)

    def settings(self, task: str | None = None, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the checkpoint says of its search, with `more` instead where it is given."""
        given = {name: value for name, value in (more or {}).items() if value is not None}
        said = settings_of(self.parts, task)
        if "max_new_tokens" in given and said.get("min_length", 0) > given["max_new_tokens"]:
            said["min_length"] = 0  # asked for less than the checkpoint's least
        if "num_beams" in given:  # the search is chosen, so no other one is wanted
            said = {name: value for name, value in said.items() if name not in ("do_sample", "num_beam_groups", "diversity_penalty")}
        return {**said, **given}

    def generate(
        self, text: str | Sequence[Any], max_new_tokens: int = 50, min_new_tokens: int = 0, temperature: float = 0.0, **settings: Any
    ) -> Any:
        """Text for text, ids (of a source, as `encode` gives them) for ids; lists of either for lists."""
        if temperature:
            raise InputError(f"temperature={temperature}: sampling is not built yet; 0 takes the likeliest")
        settings |= {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "do_sample": False}
        if isinstance(text, str) or (len(text) and isinstance(text[0], str)):
            return self(text, **settings)
        rows = [list(text)] if len(text) and isinstance(text[0], int) else [list(row) for row in text]
        if faults := [f"row {i}: {fault}" for i, row in enumerate(rows) for fault in self._row_faults([row])]:
            raise InputError("these rows cannot be read", faults)
        how = search_options(self.settings(more=settings), str(self.parts.folder), self.max_length)
        found = [hypotheses[0].ids for hypotheses in searched(self.net, rows, **how)] if rows else []
        return found[0] if len(text) and isinstance(text[0], int) else found

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
    ) -> list[Row]:
        """(line, JSON) of each text, for the command line."""
        settings = {"num_beams": beams, "length_penalty": length_penalty, "max_new_tokens": max_new_tokens}
        rows = []
        for answer in self.answers(texts, first=first, n_best=n_best, prefix=prefix, task=task, **settings):
            others = [{"answer": text, "score": score} for text, score in answer.alternatives]
            rows.append((answer.text, {"answer": answer.text, "score": answer.score, "alternatives": others}))
        return rows


class Reading(Rewriter):
    """How a model's texts are read: with a prefix, which each piece of a long one gets."""

    def __init__(self, model: SequenceModel, prefix: str):
        super().__init__(model.net, model.decode, model.max_length)
        self.model, self.prefix = model, prefix
        self.in_pieces = model.task == "translate"

    def pieces(self, text: str) -> list[list[int]]:
        code = LANGUAGE.match(text) if self.in_pieces else None
        return super().pieces(text) if code is None else Reading(self.model, self.prefix + code[0]).pieces(text[code.end() :])

    def encode(self, text: str) -> list[int]:
        return self.model.encode(self.prefix + text) if text.strip() else []

    def search(self, rows: list[list[int]], beams: int, n_best: int, **how: Any) -> list[list[Hypothesis]]:
        return searched(self.net, rows, beams=beams, n_best=n_best, **how)
