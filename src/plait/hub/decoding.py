"""How answers are found, as the caller says: `Decoding`. What a checkpoint says of it is in `settings.py`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

BEAMS = {"beams": "num_beams", "beam_groups": "num_beam_groups"}  # ours: Hugging Face's words


@dataclass(frozen=True)
class Decoding:
    """How an answer is found, as the caller says; None is as the checkpoint says, which may be not at all.

    temperature           0 takes the likeliest id each time; above 0 ids are drawn, their scores divided by it
    top_k, top_p          with a temperature: only from the k likeliest ids; from the fewest with the probability p together
    min_p, typical        with a temperature: only ids at least min_p times as likely as the likeliest; locally typical ones
    repetition_penalty    scores of ids that are there, the prompt's too, are divided by it (multiplied where negative)
    presence_penalty      what an id's score falls by if it was generated; frequency_penalty: for each time
    no_repeat_ngram_size  no run of so many ids occurs twice
    logit_bias            id -> number added to its score
    seed                  the drawn text is a pure function of seed, prompt, sample number and scores, whatever the batch
    n                     samples of a prompt, or its n best of `beams`
    beams                 of a beam search, with length_penalty the exponent of the length that scores are divided by
    beam_groups           the beams search in so many groups, which pay diversity_penalty for an id that an earlier one took at that step
    stop                  a string or several that end a text before they occur in it
    json_schema, regex    a grammar of the answer's text: JSON by a schema (a mapping, or its JSON), or a regular expression, as a whole
    speculate             "lookup", or a smaller model of the same vocabulary: guesses that change the time, not the answer
    """

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    logit_bias: Mapping[int, float] | None = None
    length_penalty: float | None = None
    beams: int | None = None
    beam_groups: int | None = None
    diversity_penalty: float | None = None
    seed: int = 0
    n: int = 1
    stop: str | Sequence[str] = ()
    json_schema: Mapping[str, Any] | str | None = None
    regex: str | None = None
    speculate: Any = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    def settings(self) -> dict[str, Any]:
        """In Hugging Face's words, where it has one."""
        words = {"typical": "typical_p", **BEAMS}
        said = {words.get(f.name, f.name): getattr(self, f.name) for f in fields(self) if f.name not in OURS}
        return {name: value for name, value in said.items() if value is not None}

    def faults(self, vocab: int | None = None) -> list[str]:
        """Everything that cannot be; `vocab` is the number of ids."""
        most, least, beams = self.max_new_tokens, self.min_new_tokens, self.beams or 1
        between = least is None or most is None or least <= max(most, 0)
        checks = {
            "max_new_tokens": (is_count(most), "a whole number from 0"),
            "min_new_tokens": (is_count(least) and between, f"0 to max_new_tokens, which is {most}"),
            "temperature": (_is_number(self.temperature, 0), "a number from 0"),
            "top_k": (is_count(self.top_k) and self.top_k != 0, "a whole number from 1"),
            "top_p": (_is_number(self.top_p, 0, 1) and self.top_p != 0, "a number above 0, at most 1"),
            "min_p": (_is_number(self.min_p, 0, 1), "a number from 0 to 1"),
            "typical": (_is_number(self.typical, 0, 1) and self.typical != 0, "a number above 0, at most 1"),
            "repetition_penalty": (_is_number(self.repetition_penalty, 0) and self.repetition_penalty != 0, "a number above 0"),
            "presence_penalty": (_is_number(self.presence_penalty), "a number"),
            "frequency_penalty": (_is_number(self.frequency_penalty), "a number"),
            "no_repeat_ngram_size": (is_count(self.no_repeat_ngram_size), "a whole number from 0"),
            "length_penalty": (_is_number(self.length_penalty), "a number"),
            "beams": (is_count(self.beams) and self.beams != 0, "a whole number from 1"),
            "beam_groups": (is_count(self.beam_groups) and self.beam_groups != 0, "a whole number from 1"),
            "diversity_penalty": (_is_number(self.diversity_penalty, 0), "a number from 0"),
            "seed": (is_count(self.seed), "a whole number from 0"),
            "n": (is_count(self.n) and self.n != 0, "a whole number from 1"),
            "json_schema": (isinstance(self.json_schema, Mapping | str), "a JSON schema: a mapping, or its JSON"),
            "regex": (isinstance(self.regex, str), "a regular expression"),
            "speculate": (self.speculate == "lookup" or hasattr(self.speculate, "net"), "'lookup', or a loaded model"),
            "stop": (all(isinstance(word, str) and word for word in self.stops), "strings that are not empty"),
            "logit_bias": (_is_bias(self.logit_bias, vocab), f"ids below {vocab} -> numbers"),
        }
        faults = [
            f"{name}={value!r}: expected {wanted}"
            for name, (right, wanted) in checks.items()
            if (value := getattr(self, name)) is not None and not right
        ]
        if faults:
            return faults
        if not self.temperature:
            names = [name for name in ("top_k", "top_p", "min_p", "typical") if getattr(self, name) is not None]
            faults += [f"{name}={getattr(self, name)}: is of sampling, so it goes with a temperature above 0" for name in names]
        if beams > 1 and self.temperature:
            faults.append(f"beams={beams}: beams are searched, not drawn: give temperature 0, or one beam")
        if beams % (self.beam_groups or 1):
            faults.append(f"beam_groups={self.beam_groups}: groups have as many beams each, so it divides beams, which is {beams}")
        if self.diversity_penalty and (self.beam_groups or 1) == 1:
            faults.append(f"diversity_penalty={self.diversity_penalty}: groups of beams pay it, and there is one: give beam_groups")
        if beams > 1 and self.stops:
            faults.append(f"beams={beams}: stop strings go with one beam")
        if beams > 1 and self.speculate is not None:
            faults.append(f"beams={beams}: speculation goes with one beam")
        if self.json_schema is not None and self.regex is not None:
            faults.append(f"regex={self.regex!r}: an answer follows one grammar, and there is a json_schema too")
        if self.n > 1 and not self.temperature and self.n > beams:
            faults.append(f"n={self.n} answers: at most as many as beams, which is {beams}; or give a temperature above 0")
        return faults


OPTIONS = tuple(f.name for f in fields(Decoding))
OURS = ("seed", "n", "stop", "json_schema", "regex", "speculate")  # that are no settings in Hugging Face's words


def _is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and least <= value <= most


def _is_bias(bias: Any, vocab: int | None) -> bool:
    whole = isinstance(bias, Mapping) and all(is_count(id) and _is_number(by) for id, by in bias.items())
    return whole and (vocab is None or all(id < vocab for id in bias))


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
