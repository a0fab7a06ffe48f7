"""How Hugging Face configs describe rotary positions: the base, the ways to stretch them, and how many channels turn, old keys and new."""

import math
from collections.abc import Mapping
from typing import Any

from plait.weights.config import Group, group

# Their kind of rope scaling -> (their argument, ours, its default; None: needed)
ROPES: dict[str, tuple[tuple[str, str, float | None], ...]] = {
    "default": (),
    "linear": (("factor", "factor", None),),
    "llama3": (("factor", "factor", None), ("low_freq_factor", "low", None), ("high_freq_factor", "high", None)),
    "yarn": (("factor", "factor", None), ("beta_fast", "fast", 32.0), ("beta_slow", "slow", 1.0)),
}
ORIGINAL = "original_max_position_embeddings"


def ropes(base: str = "rope_theta", share: str = "partial_rotary_factor", whole: float | None = None) -> Group:
    """Settings `rope_base` and `stretch`, and with a default `whole` also `turned`, the share of a head's channels that turn.

    `base` and `share` are the keys of files that have no `rope_parameters`, which newer ones put everything into.
    """

    def read(raw: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in (raw.get("rope_scaling") or raw.get("rope_parameters") or {}).items() if value is not None}
        rate = _number(base, given.pop("rope_theta", raw.get(base) or 10000.0))
        turned = given.pop("partial_rotary_factor", 1.0 if raw.get(share) is None and whole is None else raw.get(share, whole))
        if isinstance(turned, bool) or not isinstance(turned, int | float) or not 0 <= turned <= 1:
            raise ValueError(f"{share}={turned!r} must be a number from 0 to 1")
        if whole is None and turned != 1:
            raise ValueError(f"{share}={turned} is not supported: all channels of a head turn here")
        return {"rope_base": rate, "stretch": _stretch(given, raw), **({} if whole is None else {"turned": float(turned)})}

    def write(settings: Mapping[str, Any]) -> dict[str, Any]:
        said = {base: settings["rope_base"], "rope_scaling": _scaling(settings["stretch"])}
        return said if whole is None else {share: settings["turned"], **said}

    return group((base, share, "rope_scaling", "rope_parameters"), read, write)


def _stretch(given: dict[str, Any], raw: Mapping[str, Any]) -> dict[str, Any] | None:
    old, kind = given.pop("type", "default"), given.pop("rope_type", None)
    kind = kind or old
    if kind not in ROPES:
        raise ValueError(f"rope scaling of type {kind!r} is not supported: there is {', '.join(ROPES)}")
    if kind == "default":
        stretch = None
    else:
        if missing := [theirs for theirs, _, default in ROPES[kind] if default is None and theirs not in given]:
            raise ValueError(f"rope scaling of type {kind!r} lacks {', '.join(missing)}")
        stretch = {"kind": kind, **{ours: _number(theirs, given.pop(theirs, default)) for theirs, ours, default in ROPES[kind]}}
        if kind != "linear":
            length = given.pop(ORIGINAL, raw.get("max_position_embeddings"))
            if length is None:
                raise ValueError(f"rope scaling of type {kind!r} lacks {ORIGINAL}")
            stretch["original_length"] = int(_number(ORIGINAL, length))
        if kind == "yarn":
            stretch["magnitude"] = _magnitude(stretch["factor"], given)
            if given.pop("truncate", True) is not True:
                raise ValueError("rope scaling with truncate=false is not supported: the ramp begins and ends at whole channels here")
    if given:
        raise ValueError(f"rope scaling of type {kind!r} has {', '.join(f'{k}={v!r}' for k, v in given.items())}, which is not understood")
    return stretch


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}={value!r} must be a number")
    return float(value)


def _magnitude(factor: float, given: dict) -> float:
    """YaRN, section 3.4; with the two mscale of DeepSeek-V2 their quotient."""

    def of(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    upper, lower = given.pop("mscale", None), given.pop("mscale_all_dim", None)
    usual = of(upper) / of(lower) if upper and lower else of(1.0)
    return float(given.pop("attention_factor", usual))


def _scaling(stretch: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if stretch is None:
        return None
    names = {ours: theirs for theirs, ours, _ in ROPES[stretch["kind"]]}
    names |= {"kind": "rope_type", "original_length": ORIGINAL, "magnitude": "attention_factor"}
    return {names[ours]: value for ours, value in stretch.items()}


rope = ropes()
