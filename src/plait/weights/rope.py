"""How Hugging Face configs describe rotary positions: the base and the ways to stretch them, old keys and new."""

import math
from collections.abc import Mapping
from typing import Any

from plait.weights.config import group

# Their kind of rope scaling -> (their argument, ours, its default; None: needed)
ROPES: dict[str, tuple[tuple[str, str, float | None], ...]] = {
    "default": (),
    "linear": (("factor", "factor", None),),
    "llama3": (("factor", "factor", None), ("low_freq_factor", "low", None), ("high_freq_factor", "high", None)),
    "yarn": (("factor", "factor", None), ("beta_fast", "fast", 32.0), ("beta_slow", "slow", 1.0)),
}
ORIGINAL = "original_max_position_embeddings"


def _read(raw: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in (raw.get("rope_scaling") or raw.get("rope_parameters") or {}).items() if value is not None}
    base = float(given.pop("rope_theta", raw.get("rope_theta") or 10000.0))
    old, kind = given.pop("type", "default"), given.pop("rope_type", None)
    kind = kind or old
    if kind not in ROPES:
        raise ValueError(f"rope scaling of type {kind!r} is not supported: there is {', '.join(ROPES)}")
    if given.pop("partial_rotary_factor", 1.0) != 1.0 or raw.get("partial_rotary_factor") not in (None, 1.0):
        raise ValueError("partial_rotary_factor is not supported: all channels of a head turn here")
    if kind == "default":
        stretch = None
    else:
        if missing := [theirs for theirs, _, default in ROPES[kind] if default is None and theirs not in given]:
            raise ValueError(f"rope scaling of type {kind!r} lacks {', '.join(missing)}")
        stretch = {"kind": kind, **{ours: float(given.pop(theirs, default)) for theirs, ours, default in ROPES[kind]}}
        if kind != "linear":
            length = given.pop(ORIGINAL, raw.get("max_position_embeddings"))
            if length is None:
                raise ValueError(f"rope scaling of type {kind!r} lacks {ORIGINAL}")
            stretch["original_length"] = int(length)
        if kind == "yarn":
            stretch["magnitude"] = _magnitude(stretch["factor"], given)
            if given.pop("truncate", True) is not True:
                raise ValueError("rope scaling with truncate=false is not supported: the ramp begins and ends at whole channels here")
    if given:
        raise ValueError(f"rope scaling of type {kind!r} has {', '.join(f'{k}={v!r}' for k, v in given.items())}, which is not understood")
    return {"rope_base": base, "stretch": stretch}


def _magnitude(factor: float, given: dict) -> float:
    """YaRN, section 3.4; with the two mscale of DeepSeek-V2 their quotient."""

    def of(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    upper, lower = given.pop("mscale", None), given.pop("mscale_all_dim", None)
    usual = of(upper) / of(lower) if upper and lower else of(1.0)
    return float(given.pop("attention_factor", usual))


def _write(settings: Mapping[str, Any]) -> dict[str, Any]:
    stretch, out = settings["stretch"], {"rope_theta": settings["rope_base"]}
    if stretch is None:
        return {**out, "rope_scaling": None}
    names = {ours: theirs for theirs, ours, _ in ROPES[stretch["kind"]]}
    names |= {"kind": "rope_type", "original_length": ORIGINAL, "magnitude": "attention_factor"}
    return {**out, "rope_scaling": {names[ours]: value for ours, value in stretch.items()}}


rope = group(("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"), _read, _write)
