"""How answers are found: what the caller says, and what the checkpoint's generation_config.json does, in Hugging Face's words.

Sampling is the caller's choice, by a temperature above 0; a checkpoint's `do_sample` alone changes nothing. What is not built and
would change the answer is refused by name, never ignored.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from plait.errors import InputError
from plait.generate.beams import Penalty
from plait.generate.constraints import AtLeast, Bias, Constraint, Forced, NoRepeat, NoSequence, NotAt, Repetition, Used, renormalised
from plait.generate.required import Required
from plait.generate.sampling import MinP, Temperature, TopK, TopP, Typical
from plait.generate.search import mean
from plait.hub.ready import Parts

# Settings that are not built, with the values under which they do nothing; None always does nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (),
    "sequence_bias": ({},),
    "guidance_scale": (1.0,),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "constraints": ([],),
    "stop_strings": ([],),
    "token_healing": (False,),
    "watermarking_config": (),
    "max_time": (),
}
BEAMS = {"beams": "num_beams", "beam_groups": "num_beam_groups"}
IDS = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
COUNTS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "no_repeat_ngram_size")
DEFAULT_LENGTH = 512  # ids of an answer where neither the checkpoint nor the caller says how long it may be

# All settings that are followed or refused, in Hugging Face's words; `do_sample` is the caller's temperature.
SETTINGS = (
    *(*NEUTRAL, *IDS, *COUNTS, "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping", "do_sample", "temperature"),
    *("top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("bad_words_ids", "force_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"),
    *("renormalize_logits", "forced_prefix_ids"),
)

# Settings of a language model's checkpoint that are the caller's to choose, each time.
CALLERS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "length_penalty", "early_stopping", "temperature")


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
            "max_new_tokens": (_is_count(most), "a whole number from 0"),
            "min_new_tokens": (_is_count(least) and between, f"0 to max_new_tokens, which is {most}"),
            "temperature": (_is_number(self.temperature, 0), "a number from 0"),
            "top_k": (_is_count(self.top_k) and self.top_k != 0, "a whole number from 1"),
            "top_p": (_is_number(self.top_p, 0, 1) and self.top_p != 0, "a number above 0, at most 1"),
            "min_p": (_is_number(self.min_p, 0, 1), "a number from 0 to 1"),
            "typical": (_is_number(self.typical, 0, 1) and self.typical != 0, "a number above 0, at most 1"),
            "repetition_penalty": (_is_number(self.repetition_penalty, 0) and self.repetition_penalty != 0, "a number above 0"),
            "presence_penalty": (_is_number(self.presence_penalty), "a number"),
            "frequency_penalty": (_is_number(self.frequency_penalty), "a number"),
            "no_repeat_ngram_size": (_is_count(self.no_repeat_ngram_size), "a whole number from 0"),
            "length_penalty": (_is_number(self.length_penalty), "a number"),
            "beams": (_is_count(self.beams) and self.beams != 0, "a whole number from 1"),
            "beam_groups": (_is_count(self.beam_groups) and self.beam_groups != 0, "a whole number from 1"),
            "diversity_penalty": (_is_number(self.diversity_penalty, 0), "a number from 0"),
            "seed": (_is_count(self.seed), "a whole number from 0"),
            "n": (_is_count(self.n) and self.n != 0, "a whole number from 1"),
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
    whole = isinstance(bias, Mapping) and all(_is_count(id) and _is_number(by) for id, by in bias.items())
    return whole and (vocab is None or all(id < vocab for id in bias))


def settings_of(parts: Parts, task: str | None = None) -> dict[str, Any]:
    """generation_config.json, or config.json where there is none, with what the latter says of `task` (`task_specific_params`)."""
    tasks = parts.config.get("task_specific_params") or {}
    if task is not None and task not in tasks:
        known = ", ".join(sorted(tasks)) or "none"
        raise InputError(f"{parts.folder}: its config.json knows no task {task!r}; there is {known}")
    ids = {name: parts.config[name] for name in IDS if parts.config.get(name) is not None}
    said = {**ids, **(parts.generation or parts.config), **(tasks[task] if task else {})}
    return {name: value for name, value in said.items() if value is not None}


def ends_of(settings: Mapping[str, Any]) -> list[int]:
    """The ids that end an answer: eos_token_id is one or a list."""
    said = settings.get("eos_token_id", [])
    return list(said) if isinstance(said, list | tuple) else [said]


def search_options(settings: Mapping[str, Any], where: str, room: int | None, penalty: Callable[[float], Penalty] = mean) -> dict[str, Any]:
    """What `search` is to be told for an encoder-decoder with these settings; InputError names everything that cannot be followed.

    max_length and min_length count the decoder's start, as Hugging Face does; `room` is how many ids the decoder can read, `penalty`
    what a length_penalty means.
    """
    faults = _not_built(settings)
    ends, start = ends_of(settings), settings.get("decoder_start_token_id", settings.get("bos_token_id"))
    if len(ends) != 1:
        faults.append(f"eos_token_id={settings.get('eos_token_id')!r}: one id that ends an answer is needed")
    if not isinstance(start, int):
        faults.append("decoder_start_token_id is missing: an answer begins with it")
    faults += [f"{n}={settings[n]!r}: expected a whole number from 0" for n in COUNTS if not _is_count(settings.get(n, 0))]
    early = settings.get("early_stopping", False)
    if early not in (True, False, "never"):
        faults.append(f"early_stopping={early!r}: expected true, false or 'never'")
    alpha = settings.get("length_penalty", 1.0)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        faults.append(f"length_penalty={alpha!r}: expected a number")
    faults += _id_faults(settings)
    if not faults:
        length = 1 + settings["max_new_tokens"] if "max_new_tokens" in settings else settings.get("max_length")
        length = length if length is not None else min(DEFAULT_LENGTH, room or DEFAULT_LENGTH)
        if room is not None and length > room + 1:  # the last id is given out, not read
            faults.append(f"{length - 1} new tokens were asked for: the decoder reads {room} at most")
        asked = sum(map(len, settings.get("force_words_ids", []))) + len(settings.get("forced_prefix_ids", []))
        if asked >= length - 1 and asked:  # the end is a token too
            faults.append(f"an answer of {length - 1} tokens has no room for what it must hold, which is {asked}, and an end")
    if faults:
        raise InputError(f"{where}: its answers cannot be found as its settings say", faults)
    return {
        "start": start,
        "end": ends[0],
        "max_length": length - 1,
        "beams": settings.get("num_beams", 1),
        "penalty": penalty(alpha),
        "groups": settings.get("num_beam_groups", 1),
        "diversity": settings.get("diversity_penalty", 0.0),
        "early_stopping": early,
        "forbidden": forbidden(settings, ends),
        "constraints": rules_of(settings, ends, 1, length),
    }


def language_settings(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What of a checkpoint's settings a language model follows; InputError names what it cannot. Lengths and search are the caller's."""
    if faults := _not_built(settings) + _id_faults(settings):
        raise InputError(f"{where}: its texts cannot be continued as its settings say", faults)
    return {name: value for name, value in settings.items() if name not in CALLERS}


def filters_of(settings: Mapping[str, Any]) -> list[Constraint]:
    """From what ids are drawn; nothing where the likeliest is taken."""
    if not settings.get("temperature"):
        return []
    found: list[Constraint] = [Temperature(settings["temperature"])]
    found += [TopK(k)] if (k := settings.get("top_k")) else []
    found += [TopP(p)] if 0 < (p := settings.get("top_p", 1.0)) < 1 else []
    found += [MinP(p)] if (p := settings.get("min_p")) else []
    found += [Typical(mass)] if 0 < (mass := settings.get("typical_p", 1.0)) < 1 else []
    return found


def _not_built(settings: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}={settings[name]!r} is not built yet" + (f"; {name}={neutral[0]} is" if neutral else "")
        for name, neutral in NEUTRAL.items()
        if settings.get(name) is not None and settings[name] not in neutral
    ]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _id_faults(settings: Mapping[str, Any]) -> list[str]:
    faults = []
    for name in ("bad_words_ids", "force_words_ids"):
        words = settings.get(name, [])
        if not (isinstance(words, list) and all(isinstance(row, list) and row and all(map(_is_count, row)) for row in words)):
            faults.append(f"{name}={words!r}: expected lists of ids")
    for name in ("suppress_tokens", "begin_suppress_tokens", "forced_prefix_ids"):
        if not (isinstance(said := settings.get(name, []), list) and all(map(_is_count, said))):
            faults.append(f"{name}={said!r}: expected a list of ids")
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        if not _is_count(settings.get(name, 0)):
            faults.append(f"{name}={settings[name]!r}: expected one id")
    return faults


def forbidden(settings: Mapping[str, Any], ends: list[int]) -> list[int]:
    """Ids that never occur."""
    single = [row[0] for row in settings.get("bad_words_ids", []) if len(row) == 1 and row != ends]
    return sorted({*single, *settings.get("suppress_tokens", [])})


def rules_of(settings: Mapping[str, Any], ends: list[int], begin: int, length: int) -> list[Constraint]:
    """For an answer of ids `begin` to `length` (the start, or a prompt, is before it).

    In the order in which Hugging Face's `generate` applies them: what is forced has the last word.
    """
    rules: list[Constraint] = []
    if bias := settings.get("logit_bias"):
        rules.append(Bias(dict(bias)))
    if (penalty := settings.get("repetition_penalty", 1.0)) != 1.0:
        rules.append(Repetition(penalty))
    presence, frequency = settings.get("presence_penalty", 0.0), settings.get("frequency_penalty", 0.0)
    if presence or frequency:
        rules.append(Used(presence, frequency, begin))
    if n := settings.get("no_repeat_ngram_size", 0):
        rules.append(NoRepeat(n))
    if longer := [row for row in settings.get("bad_words_ids", []) if len(row) > 1]:
        rules.append(NoSequence(longer))
    if (least := max(settings.get("min_length", 0), begin + settings.get("min_new_tokens", 0))) > begin and ends:
        rules.append(AtLeast(least, ends))
    if words := settings.get("force_words_ids"):
        rules.append(Required(words, ends, begin, length))
    first = begin + ("forced_bos_token_id" in settings)
    places = (("forced_bos_token_id", begin), ("forced_eos_token_id", length - 1))
    forced = {place: settings[name] for name, place in places if name in settings}
    if forced := {**forced, **dict(enumerate(settings.get("forced_prefix_ids", []), first))}:
        rules.append(Forced(forced))
    if suppressed := settings.get("begin_suppress_tokens"):
        rules.append(NotAt(first + len(settings.get("forced_prefix_ids", [])), suppressed))
    if settings.get("renormalize_logits"):
        rules.append(renormalised)
    return rules
