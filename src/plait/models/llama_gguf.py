"""The settings of Llama's page as the metadata of a GGUF: a table in two directions, as for a config.json."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from plait.core.rotary import Rotary, stretched
from plait.errors import InputError
from plait.weights.rules import Keys, fixed, group, key, read_keys, write_keys

PROJECTIONS = {"q": "q", "k": "k", "v": "v", "o": "output"}  # ours of "qkvo": theirs, in `blk.0.attn_q.bias`


def _needed(theirs: str, ours: str, kind: type = int):
    """A key that has no default."""

    def one(raw: Mapping[str, Any]) -> dict[str, Any]:
        if type(raw.get(theirs)) is not kind:
            raise ValueError(f"{theirs} is missing" if theirs not in raw else f"{theirs}={raw[theirs]!r} must be of type {kind.__name__}")
        value = raw[theirs]
        return {ours: float(f"{value:.6g}") if kind is float else value}  # stored in float32

    return group((theirs,), one, lambda settings: {theirs: settings[ours]})


def _heads(raw: Mapping[str, Any]) -> dict[str, Any]:
    heads = raw.get("attention.head_count")
    kv, usual = raw.get("attention.head_count_kv", heads), raw.get("embedding_length", 0) // (heads or 1)
    if type(heads) is not int or type(kv) is not int:
        raise ValueError(f"attention.head_count={heads!r} and attention.head_count_kv={kv!r} must be whole numbers, the same in all layers")
    sizes = {name: raw[name] for name in WIDTHS if name in raw}
    if len(set(sizes.values())) > 1 or ("rope.dimension_count" in sizes and len(sizes) == 1 and sizes["rope.dimension_count"] != usual):
        raise ValueError(f"heads of several widths, or that turn in part: {sizes}, usual here: {usual}")
    return {"n_heads": heads, "n_kv_heads": kv, "d_head": next(iter(sizes.values()), usual)}


def _head_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    heads = settings["n_heads"]
    width = settings["d_head"]
    counts = {"attention.head_count": heads, "attention.head_count_kv": settings["n_kv_heads"]}
    return counts | dict.fromkeys(WIDTHS if width != settings["d_model"] // heads else WIDTHS[:1], width)


def _is(ours: str, value: Any, what: str):
    def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
        if settings[ours] != value:
            raise ValueError(f"{what} cannot be said ({ours}={settings[ours]!r})")
        return {}

    return group((), lambda raw: {ours: value}, plain)


# ---- Llama 3's stretch: no key says it, but a tensor [d_head / 2] of what the rates of rotary positions are divided by ----

DIVISORS = "rope_freqs.weight"


def divisors(base: float, stretch: Mapping[str, Any], width: int) -> Tensor:
    cpu = torch.device("cpu")
    return Rotary(base=base).rates(width, cpu) / stretched(base, stretch).rates(width, cpu)


def stretch_of(found: Tensor, base: float) -> dict[str, Any]:
    """The arguments of `core.rotary.llama3` that give these divisors; loading proves that they do.

    Between the rates that are kept and those divided by `factor` its blend is a line, of slope length / 2π(high - low). Of the two bounds
    and the length only the quotients count, so `low` is 1. ValueError where no two rates lie between.
    """
    by = found.double()
    factor = float(by.max())
    blend = (1 / by - 1 / factor) / (1 - 1 / factor)  # 1: kept, 0: divided by factor
    between = ((blend > 1e-4) & (blend < 1 - 1e-4)).nonzero().flatten()
    if len(between) < 2:
        raise ValueError(f"{DIVISORS} is not by what Llama 3's stretch divides, or in too few steps to tell; take the model as safetensors")
    ends = between[[0, -1]]
    (x, x2), (y, y2) = Rotary(base=base).rates(2 * len(by), by.device)[ends].tolist(), blend[ends].tolist()
    slope = (y2 - y) / (x2 - x)
    high = round(1 - 1 / (y - slope * x), 3)
    return {"kind": "llama3", "factor": factor, "low": 1.0, "high": high, "original_length": round(2 * math.pi * slope * (high - 1))}


def _stretch(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {"stretch": stretch_of(raw[DIVISORS], raw.get("rope.freq_base", 10000.0)) if DIVISORS in raw else None}


def _stretch_tensor(settings: Mapping[str, Any]) -> dict[str, Any]:
    stretch = settings["stretch"]
    if stretch is None:
        return {}
    if stretch["kind"] != "llama3":
        raise ValueError(f"rotary positions that are stretched otherwise than Llama 3's cannot be said (stretch={stretch!r})")
    return {DIVISORS: divisors(settings["rope_base"], stretch, settings["d_head"]).float()}


WIDTHS = ("rope.dimension_count", "attention.key_length", "attention.value_length")
ENTRIES = (
    _needed("block_count", "n_layers"),
    _needed("context_length", "max_length"),
    _needed("embedding_length", "d_model"),
    _needed("feed_forward_length", "d_ff"),
    group(("attention.head_count", "attention.head_count_kv", *WIDTHS), _heads, _head_keys),
    key("rope.freq_base", "rope_base", 10000.0),
    _needed("attention.layer_norm_rms_epsilon", "norm_eps", float),
    _needed("vocab_size", "vocab_size"),
    group((DIVISORS,), _stretch, _stretch_tensor),
    _is("window", None, "attention within a window"),
    _is("activation", "silu", "another activation than silu"),
    fixed("rope.scaling.type", "none"),
    fixed("rope.scale_linear", 1.0),
    fixed("expert_count", 0),
)
IGNORED = ("tensor_data_layout", "rope.scaling.finetuned")
# Qwen2 first: what it can say is always written so, as llama.cpp does. There q and k lie in halves, and these three have biases.
TABLES = (
    Keys(
        "qwen2",
        (*ENTRIES, _is("bias", "qkv", "other biases than of q, k and v"), _is("ffn_bias", False, "biases of the feed-forward")),
        IGNORED,
    ),
    Keys("llama", ENTRIES, IGNORED),
)
ARCHITECTURES = tuple(table.model_type for table in TABLES)  # `general.architecture` of a GGUF


def settings(metadata: Mapping[str, Any], source: Any) -> dict[str, Any]:
    kind = metadata.get("general.architecture")
    own = {name.removeprefix(f"{kind}."): value for name, value in metadata.items() if name.startswith(f"{kind}.")}
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    raw, names = {"model_type": kind, **({"vocab_size": len(tokens)} if tokens else {}), **own}, source.shapes()
    bias = "".join(ours for ours, theirs in PROJECTIONS.items() if f"blk.0.attn_{theirs}.bias" in names)
    tensors = {"bias": bias, "ffn_bias": "blk.0.ffn_up.bias" in names, "tie": "output.weight" not in names}
    return read_keys(TABLES, raw | ({DIVISORS: source.read(DIVISORS)} if DIVISORS in names else {})) | tensors


def metadata(settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        raw = write_keys(TABLES, settings)
    except InputError as error:
        raise InputError("no GGUF can describe this model", error.faults) from None
    kind, _ = raw.pop("model_type"), raw.pop(DIVISORS, None)  # the rules of tensors write it
    return {"general.architecture": kind, **{f"{kind}.{name}": value for name, value in raw.items()}}
