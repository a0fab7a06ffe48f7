"""What a task hands to the loop, and how the model for it is chosen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait import models
from plait.core.model import Model, parameters
from plait.data.feed import Feed
from plait.errors import InputError, choices
from plait.tasks.objective import Objective
from plait.train import sizing
from plait.train.parallel import together
from plait.train.recipes import DETECTOR, LANGUAGE, MODERN, SCRATCH, Recipe, paper, tuning
from plait.verbs.train import Train

Say = Callable[[str], None]


@dataclass
class Lesson:
    """A task made ready: data read and encoded, a model chosen. `notes` is what config.json of the run says besides."""

    arch: str
    config: dict[str, Any]
    objective: Objective
    feed: Feed
    valid: Sequence[Any]
    fingerprint: str  # of the data of both sides: a resumed run must find the same
    keep: Callable[[Path], None]  # writes the tokenizer, and whatever else answering needs, into the run's folder
    recipe: Recipe
    notes: dict[str, Any] = field(default_factory=dict)
    start: Callable[[Model], Any] | None = None  # fills in the weights that training starts from
    measure: Callable[[Model], dict[str, float]] | None = None  # figures of the validation set beside its loss
    shown: Callable[[Sequence[int]], str] | None = None  # ids as text, for whoever looks at a batch
    workers: int = 0  # threads that make batches ahead, where the user does not say
    weights: Callable[[Model], Mapping[str, Tensor]] = Model.state_dict  # what training changes: checkpoints hold no more
    result: Callable[[Model, Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda net, best: best  # of the best: what the run keeps


@dataclass(frozen=True)
class Choice:
    """What a run trains: saved, so that a resumed run does not choose anew."""

    arch: str
    config: dict[str, Any]
    batch_tokens: int
    smoothing: float = 0.0

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "Choice":
        return cls(saved["arch"], saved["config"], saved["batch_tokens"], saved.get("smoothing", 0.0))


def usual_recipe(arch: str, config: Mapping[str, Any], released: bool = False) -> Recipe:
    """What a model is trained by where the user does not say."""
    if released:
        return tuning(config.get("d_model", 768))
    if arch == "vaswani":
        return paper(config["d_model"])
    if arch == "modern-decoder":
        return LANGUAGE
    if arch in ("detr", "conditional-detr", "modern-detector"):
        return DETECTOR
    if arch == "modern-video":  # what moves is found by Adam alone (docs/log.md)
        return SCRATCH
    return MODERN if arch.startswith("modern") else SCRATCH


def presets_of(fits: Callable[[str], bool]) -> dict[str, tuple[str, dict[str, Any]]]:
    """`arch-size` -> (arch, settings), of the pages that fit."""
    return {f"{arch}-{size}": (arch, dict(c)) for arch, page in models.PAGES.items() if fits(arch) for size, c in page.PRESETS.items()}


def has_towers(towers: tuple[str, ...], takes: str = "ids") -> Callable[[str], bool]:
    """Whether a page is a model of these towers, the first of which is given ids (of one vocabulary), "pixels" or "clips"."""

    def fits(arch: str) -> bool:
        page = models.PAGES[arch]
        with torch.device("meta"):
            tiny = page.build(page.Config(**{**page.PRESETS["tiny"], **models.vocabulary(arch, 8, 8)}))
        return tiny.towers == towers and tiny.takes(towers[0]) == takes and not models.of_pairs(arch)

    return fits


def choose(
    verb: Train,
    presets: dict[str, tuple[str, dict[str, Any]]],
    usual: str,
    told: Callable[[str], dict[str, Any]],
    tokens: int,
    say: Say,
) -> Choice:
    """The preset asked for, or the largest of the page `usual` that data and budget can train; dropout by the expected epochs.

    `told(arch)` are settings that the data decide: sizes of vocabularies, heads, labels.
    """
    if verb.preset is not None and verb.preset not in presets:
        raise InputError(f"--preset {verb.preset}: there is no such preset for {verb.task}; choose {choices(presets)}")
    counts = {}
    for name, (arch, config) in presets.items():
        if name == verb.preset or (verb.preset is None and arch == usual):
            presets[name] = arch, {**config, **told(arch)}
            with torch.device("meta"):
                counts[name] = parameters(models.build(*presets[name]))
    seconds = verb.minutes and verb.minutes * 60
    flops = together(sizing.product_rate()) if seconds else 0.0
    name = verb.preset or sizing.pick(counts, tokens, seconds=seconds, flops=flops)
    if seconds:
        epochs = sizing.epochs_for(counts[name], tokens, seconds, flops)
    else:
        epochs = verb.epochs or (verb.steps or 0) * (verb.batch_tokens or sizing.STEP_TOKENS) / tokens
    batch_tokens = verb.batch_tokens or (sizing.STEP_TOKENS if verb.steps else sizing.batch_tokens(tokens, epochs))
    arch, config = presets[name]
    says_nothing = arch.startswith("modern") and "dropout" not in config
    dropout, smoothing = sizing.regularisation(epochs) if says_nothing else (config.get("dropout", 0.1), 0.1)
    dropout = dropout if verb.dropout is None else verb.dropout
    smoothing = smoothing if verb.smoothing is None else verb.smoothing
    speed = f" at {flops / 1e9:.0f} GFLOP/s" if seconds else ""
    say(f"preset {name} ({counts[name] / 1e6:.2f} M parameters): {tokens:,} training tokens, about {epochs:.1f} epochs{speed}")
    known = {f.name for f in fields(models.PAGES[arch].Config)}
    return Choice(arch, {**config, **({"dropout": dropout} if "dropout" in known else {})}, batch_tokens, smoothing)
