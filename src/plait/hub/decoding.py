"""How a checkpoint says its answers are found: generation_config.json, in the words of Hugging Face's `generate`.

What is not built and would change the answer is refused by name, never ignored.
"""

from collections.abc import Mapping
from typing import Any

from plait.errors import InputError
from plait.generate.constraints import AtLeast, Constraint, Forced, NoRepeat, NoSequence, NotAt, renormalised
from plait.generate.search import mean
from plait.hub.ready import Parts

# Settings that are not built, with the values under which they do nothing; None always does nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (),
    "sequence_bias": ({},),
    "guidance_scale": (1.0,),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "constraints": ([],),
    "force_words_ids": ([],),
    "stop_strings": ([],),
    "token_healing": (False,),
    "watermarking_config": (),
    "max_time": (),
}
IDS = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
COUNTS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "no_repeat_ngram_size")
DEFAULT_LENGTH = 512  # ids of an answer where neither the checkpoint nor the caller says how long it may be


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


def search_options(settings: Mapping[str, Any], where: str, room: int | None) -> dict[str, Any]:
    """What `search` is to be told for an encoder-decoder with these settings; InputError names everything that cannot be followed.

    max_length and min_length count the decoder's start, as Hugging Face does; `room` is how many ids the decoder can read.
    """
    faults = [
        f"{name}={settings[name]!r} is not built yet" + (f"; {name}={neutral[0]} is" if neutral else "")
        for name, neutral in NEUTRAL.items()
        if settings.get(name) is not None and settings[name] not in neutral
    ]
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
    if faults:
        raise InputError(f"{where}: its answers cannot be found as its settings say", faults)
    return {
        "start": start,
        "end": ends[0],
        "max_length": length - 1,
        "beams": settings.get("num_beams", 1),
        "penalty": mean(alpha),
        "early_stopping": early,
        "forbidden": _forbidden(settings, ends),
        "constraints": _rules(settings, ends, length),
    }


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _id_faults(settings: Mapping[str, Any]) -> list[str]:
    words = settings.get("bad_words_ids", [])
    whole = isinstance(words, list) and all(isinstance(row, list) and row and all(map(_is_count, row)) for row in words)
    faults = [] if whole else [f"bad_words_ids={words!r}: expected lists of ids"]
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if not (isinstance(said := settings.get(name, []), list) and all(map(_is_count, said))):
            faults.append(f"{name}={said!r}: expected a list of ids")
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        if not _is_count(settings.get(name, 0)):
            faults.append(f"{name}={settings[name]!r}: expected one id")
    return faults


def _forbidden(settings: Mapping[str, Any], ends: list[int]) -> list[int]:
    """Ids that never occur."""
    single = [row[0] for row in settings.get("bad_words_ids", []) if len(row) == 1 and row != ends]
    return sorted({*single, *settings.get("suppress_tokens", [])})


def _rules(settings: Mapping[str, Any], ends: list[int], length: int) -> list[Constraint]:
    """In the order in which Hugging Face's `generate` applies them: what is forced has the last word."""
    rules: list[Constraint] = []
    if n := settings.get("no_repeat_ngram_size", 0):
        rules.append(NoRepeat(n))
    if longer := [row for row in settings.get("bad_words_ids", []) if len(row) > 1]:
        rules.append(NoSequence(longer))
    if (least := max(settings.get("min_length", 0), 1 + settings.get("min_new_tokens", 0))) > 1:
        rules.append(AtLeast(least, ends))
    forced = {
        place: settings[name] for name, place in (("forced_bos_token_id", 1), ("forced_eos_token_id", length - 1)) if name in settings
    }
    if forced:
        rules.append(Forced(forced))
    if begin := settings.get("begin_suppress_tokens"):
        rules.append(NotAt(1 + ("forced_bos_token_id" in settings), begin))
    if settings.get("renormalize_logits"):
        rules.append(renormalised)
    return rules
