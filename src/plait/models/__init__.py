"""Every published model is a page: its config, its presets, one assembly function. This list is all there is to registering one."""

from dataclasses import fields
from types import ModuleType
from typing import Any

from plait.core.model import Model
from plait.core.shape import shaped
from plait.models import (
    albert,
    bart,
    bert,
    conditional_detr,
    detr,
    dinov2,
    distilbert,
    gpt2,
    llama,
    modern,
    modern_decoder,
    modern_detector,
    modern_encoder,
    modern_video,
    modern_vision,
    neox,
    opt,
    roberta,
    t5,
    timesformer,
    vaswani,
    vit,
)

PAGES: dict[str, ModuleType] = {
    "vaswani": vaswani,
    "modern": modern,
    "modern-decoder": modern_decoder,
    "modern-encoder": modern_encoder,
    "modern-vision": modern_vision,
    "modern-video": modern_video,
    "modern-detector": modern_detector,
    "bert": bert,
    "roberta": roberta,
    "distilbert": distilbert,
    "albert": albert,
    "t5": t5,
    "bart": bart,
    "gpt2": gpt2,
    "llama": llama,
    "neox": neox,
    "opt": opt,
    "detr": detr,
    "conditional-detr": conditional_detr,
    "vit": vit,
    "dinov2": dinov2,
    "timesformer": timesformer,
}


def build(arch: str, config: dict[str, Any]) -> Model:
    """A saved description {"arch": ..., "config": {...}} as a model; unknown settings are an error, never ignored.

    The setting `shape`, which every page has, lists what was taken out of the model since its page built it (`core/shape.py`).
    """
    config = dict(config)
    shapes = config.pop("shape", ())
    if arch not in PAGES:
        raise ValueError(f"no model called {arch!r}: there are {', '.join(PAGES)}")
    page = PAGES[arch]
    known = {f.name for f in fields(page.Config)}
    if unknown := sorted(set(config) - known):
        raise ValueError(f"settings that {arch} does not have: {', '.join(unknown)} (it has {', '.join(sorted(known))})")
    net = page.build(page.Config(**config))
    for shape in shapes:
        shaped(net, shape)
    return net


def of_pairs(arch: str) -> bool:
    """Whether a page has a source and a target side with a vocabulary each, as translation wants it."""
    return {"source_vocab", "target_vocab"} <= {f.name for f in fields(PAGES[arch].Config)}


def vocabulary(arch: str, source: int, target: int, tie: str | None = None) -> dict[str, Any]:
    """The settings by which a page is told its vocabulary sizes; one with one vocabulary takes the target's, one of pictures has none."""
    if not of_pairs(arch):
        return {"vocab_size": target} if "vocab_size" in {f.name for f in fields(PAGES[arch].Config)} else {}
    return {"source_vocab": source, "target_vocab": target, **({} if tie is None else {"tie": tie})}
