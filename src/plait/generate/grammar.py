"""Answers that follow a grammar: a regular expression, or JSON by a schema. Needs `llguidance` (the extra `grammar`).

Before each token the parser says which ids of the vocabulary may follow; the end may where the grammar is met. Every way to cut a
text into tokens is allowed, so that nothing but the text is constrained.
"""

import json
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.errors import InputError

EXACT = '%llguidance {"no_forcing": true}\n'  # else text that is certain is cut into tokens in one way only
WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as json.dumps does: spaces cannot run on
KEPT = 1024  # parsers that are remembered, 2 KB each: as many texts, beams or guesses take their next step from one


def regex(pattern: str, space: bool = False) -> str:
    """The rules of answers that match `pattern` as a whole: Rust's regular expressions, so no look-around and no references back.

    With `space` one may stand before: what many tokenizers write before a text's first word, and leave out when they decode.
    """
    lark = _library().regex_to_lark(f" ?(?:{pattern})" if space else pattern, "")
    return f"{EXACT}start: /{lark}/"


def json_schema(schema: Mapping[str, Any], space: bool = False) -> str:
    """The rules of answers that are JSON by `schema`, with the spaces that `json.dumps` writes; a keyword not known is refused."""
    before = '" "? ' if space else ""
    return f"{EXACT}start: {before}%json {json.dumps({**schema, 'x-guidance': WRITTEN})}"


class Spelling:
    """What each id writes (`tokens`, by id; None: nothing) and which of them end an answer, made ready once for any number of grammars."""

    def __init__(self, tokens: Sequence[bytes | None], ends: Sequence[int]):
        faults = [f"the id {end} ends an answer: expected 0 to {len(tokens) - 1}" for end in ends if not 0 <= end < len(tokens)]
        if faults or not ends:
            raise InputError("a grammar needs to know how an answer ends", faults or ["no id ends one"])
        silent = {*ends, *(id for id, token in enumerate(tokens) if not token)}
        self.eos_token_id, self.bos_token_id, self.special_token_ids = ends[0], None, sorted(silent)
        self.tokens, self.is_tokenizer_wrapper = [b"" if id in silent else token for id, token in enumerate(tokens)], True
        self.ready = _library().LLTokenizer(self, eos_token=list(ends))

    def __call__(self, text: str | bytes) -> list[int]:
        """Part of what the library asks of a tokenizer; it calls this only where it may choose how a text is cut."""
        return []


class Grammar:
    """A constraint: from place `start` on, the ids write what `rules` allow. It may serve any number of rows, beams and answers.

    A row that left the rules, or whose vocabulary has no way on, gets no id at all. InputError for rules that are not understood,
    for those that nothing meets, and for those that outgrow the parser's limits.
    """

    def __init__(self, rules: str, spelling: Spelling, start: int = 0):
        self.spelling, self.start = spelling, start
        self.fresh = _library().LLMatcher(spelling.ready, rules, log_level=0)
        if self.fresh.is_error():
            raise InputError("this grammar cannot be used", [_first_lines(self.fresh.get_error())])
        if not self.allowed(self.fresh.deep_copy()).any():
            raise InputError("nothing this vocabulary can write meets this grammar: loosen it, or take a model that knows its characters")
        self.states: dict[tuple[int, ...], Any] = {}  # the parser behind the ids of rows, the latest last

    def at(self, start: int) -> "Grammar":
        """The same rules from another place on."""
        other = copy(self)
        other.start, other.states = start, {}
        return other

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        allowed = np.zeros(scores.shape, dtype=bool)
        for mask, row in zip(allowed, ids[:, self.start :].tolist(), strict=True):
            found = self.allowed(self.after(tuple(row)))[: len(mask)]  # a model may have more rows of scores than there are tokens
            mask[: len(found)] = found
        scores.masked_fill_(~torch.from_numpy(allowed).to(scores.device), float("-inf"))

    def after(self, ids: tuple[int, ...]) -> Any:
        """The parser behind these ids, None where they break the rules: one step on from an earlier call where that knows the way."""
        if ids in self.states:
            return self.states[ids]
        before = self.states.get(ids[:-1])
        state, rest = (self.fresh, ids) if before is None else (before, ids[-1:])
        state = state.deep_copy()
        self.states[ids] = state if state.try_consume_tokens(list(rest)) == len(rest) else None
        if len(self.states) > KEPT:
            del self.states[next(iter(self.states))]
        return self.states[ids]

    def allowed(self, state: Any) -> np.ndarray:
        """bool [V]: which ids may follow."""
        nothing = np.zeros(len(self.spelling.tokens), dtype=bool)
        if state is None:
            return nothing
        bits = np.unpackbits(np.frombuffer(state.compute_bitmask(), np.uint8), bitorder="little").astype(bool)
        if not state.is_error():
            return bits[: len(nothing)]
        why = _first_lines(state.get_error())
        if why != "NoExtensionBias":  # the library's word for: this vocabulary has no way on
            raise InputError("this grammar is too large for its parser", [why])
        return nothing


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise InputError("grammars need the package llguidance: pip install 'plait[grammar]'") from None
    return llguidance


def _first_lines(error: str) -> str:
    """The library's message without the state of its parser."""
    return error.split("<state>")[0].strip()
