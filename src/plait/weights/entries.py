"""What a table of tensors is made of: the entries that a page declares."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from plait.weights.steps import Step
from plait.weights.templates import Template


@dataclass(frozen=True)
class Rule:
    theirs: Template
    ours: tuple[Template, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Tie:
    copy: str
    of: str


@dataclass(frozen=True)
class Drop:
    pattern: Template
    why: str


@dataclass(frozen=True)
class Computed:
    theirs: str
    make: Callable[[], Tensor]
    what: str


@dataclass(frozen=True)
class Prefix:
    text: str


@dataclass(frozen=True)
class Older:
    ending: str
    now: str


Entry = Rule | Tie | Drop | Computed | Prefix | Older


def rule(theirs: str, ours: str | Sequence[str], *steps: Step) -> Rule:
    """Their tensor is ours (or several of ours) after the steps, in this order. Holes of the same name hold the same text."""
    templates = (Template(ours),) if isinstance(ours, str) else tuple(Template(text) for text in ours)
    made = Rule(Template(theirs), templates, steps)
    for template in templates:
        if set(template.holes) != set(made.theirs.holes):
            raise ValueError(f"{theirs!r} and {template.text!r} must have the same holes, or the way back is lost")
    return made


def tie(copy: str, of: str) -> Tie:
    """Where the model has no parameter of its own for `copy` (a name of theirs), a file may hold it only with the bits of `of`."""
    return Tie(copy, of)


def drop(pattern: str, why: str) -> Drop:
    """Their tensors of this name are left out: what they are, and why nothing is lost."""
    return Drop(Template(pattern), why)


def computed(theirs: str, make: Callable[[], Tensor], what: str) -> Computed:
    """A tensor of theirs that this model computes, in float64 by `make`. A file may hold it or not; where it does, it must be that one."""
    return Computed(theirs, make, what)


def prefix(text: str) -> Prefix:
    """All names of a file may come without this beginning (files of a model saved without its head)."""
    return Prefix(text)


def older(ending: str, now: str) -> Older:
    """Names that end with `now` may end with `ending` in files of an earlier time."""
    return Older(ending, now)
