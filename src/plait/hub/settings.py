"""What a checkpoint says of its answers: generation_config.json, in Hugging Face's words, as rules, filters and options of a search.

Sampling is the caller's choice, by a temperature above 0; a checkpoint's `do_sample` alone changes nothing. What is not built and
would change the answer is refused by name, never ignored.
"""

from collections.abc import Callable, Mapping
from typing import Any

from plait.errors import InputError
from plait.generate.beams import Penalty
from plait.generate.constraints import AtLeast, Bias, Constraint, Forced, NoRepeat, NoSequence, NotAt, Repetition, Used, renormalised
from plait.generate.required import Required
from plait.generate.sampling import MinP, Temperature, TopK, TopP, Typical
from plait.generate.search import mean
from plait.hub.decoding import is_count
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
    faults += [f"{n}={settings[n]!r}: expected a whole number from 0" for n in COUNTS if not is_count(settings.get(n, 0))]
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


def _id_faults(settings: Mapping[str, Any]) -> list[str]:
    faults = []
    for name in ("bad_words_ids", "force_words_ids"):
        words = settings.get(name, [])
        if not (isinstance(words, list) and all(isinstance(row, list) and row and all(map(is_count, row)) for row in words)):
            faults.append(f"{name}={words!r}: expected lists of ids")
    for name in ("suppress_tokens", "begin_suppress_tokens", "forced_prefix_ids"):
        if not (isinstance(said := settings.get(name, []), list) and all(map(is_count, said))):
            faults.append(f"{name}={said!r}: expected a list of ids")
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        if not is_count(settings.get(name, 0)):
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
