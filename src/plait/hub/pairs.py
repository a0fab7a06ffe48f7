"""Released models of an encoder and a decoder that are ready: they translate, summarise, or do what a prefix asks (T5)."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

from plait.generate.layout import ROWS
from plait.hub.ready import Parts, Ready
from plait.hub.sequences import Sequences
from plait.hub.settings import settings_of
from plait.tasks.sequences import Rewriter
from plait.text.saving import sentinels_of

LANGUAGE = re.compile(r">>.*?<<\s*", re.DOTALL)  # the target language, before a text for a Marian model of several


class SequenceModel(Ready, Sequences):
    """One text in, another out, by the search that the checkpoint's own settings describe.

    A Marian model translates: what is longer than it takes goes in pieces. Of other models a text that is too long is refused, since
    the summaries of two halves are not the summary of the whole.

    Two options of its own: `task` is one of those in config.json's `task_specific_params`, which give a prefix and settings; `prefix`
    stands before each text (T5: "translate English to German: ").
    """

    few_rows = ROWS
    row_options = (*Sequences.row_options, "prefix", "task")

    def __init__(self, parts: Parts):
        super().__init__(parts)
        self.where = str(parts.folder)

    @cached_property
    def task(self) -> str:  # type: ignore[override]
        return "translate" if self.config.get("model_type") == "marian" else "text-to-text"

    def prepared(self, chosen: Mapping[str, Any], task: str | None = None, prefix: str | None = None) -> tuple[Rewriter, dict[str, Any]]:
        said = self.settings(task, chosen)
        return Reading(self, prefix if prefix is not None else said.get("prefix", "")), said

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; where they fill hidden spans, the sentinels too, which say what fills which."""
        sentinels = set(sentinels_of(self.target_tokenizer))
        if sentinels.isdisjoint(ids):
            return super().decode(ids)
        parts = [(one, list(some)) for one, some in groupby(ids, sentinels.__contains__)]
        shown = [" ".join(self.target_tokenizer.tokens(some)) if one else super(SequenceModel, self).decode(some) for one, some in parts]
        return " ".join(filter(None, (text.strip() for text in shown)))

    def settings(self, task: str | None = None, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the checkpoint says of its search, with `more` instead where it is given."""
        given = {name: value for name, value in (more or {}).items() if value is not None}
        said = settings_of(self.parts, task)
        if "max_new_tokens" in given and said.get("min_length", 0) > given["max_new_tokens"]:
            said["min_length"] = 0  # asked for less than the checkpoint's least
        if "num_beams" in given:  # the search is chosen, so no other one is wanted
            said = {name: value for name, value in said.items() if name not in ("num_beam_groups", "diversity_penalty")}
        return {**said, **given}


class Reading(Rewriter):
    """How a model's texts are read: with a prefix, which each piece of a long one gets."""

    def __init__(self, model: SequenceModel, prefix: str = ""):
        super().__init__(model.net, model.decode, model.max_length)
        self.model, self.prefix = model, prefix
        self.in_pieces = model.task == "translate"

    @property
    def shared(self) -> bool:
        if self.model.parts.tokenizers is None:
            return True
        source, target = self.model.parts.tokenizers
        return source is target or source.backend.get_vocab() == target.backend.get_vocab()

    def pieces(self, text: str) -> list[list[int]]:
        code = LANGUAGE.match(text) if self.in_pieces else None
        if code is None:
            return super().pieces(text)
        return Reading(self.model, self.prefix + code[0]).pieces(text[code.end() :])

    def encode(self, text: str) -> list[int]:
        return self.model.encode(self.prefix + text) if text.strip() else []
