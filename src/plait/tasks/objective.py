"""What training asks of a task: the loss of a batch, as sums, so that parts of a batch add up to the whole."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from plait.core.losses import linear_cross_entropy
from plait.core.model import Model
from plait.core.stream import Stream
from plait.data.examples import IGNORED, Examples

ROWS = 256  # vectors whose scores over a vocabulary are held at a time, where they are only counted


@dataclass
class Loss:
    """Sums over `count` predictions: `total` is what is minimised (smoothed), `plain` the negative log-likelihood in nats."""

    total: Tensor
    plain: Tensor
    count: int


@dataclass
class Vectors:
    """What an objective asks of a model: hidden vectors [N, D], what turns them into scores [N, C], and the right classes [N]."""

    hidden: Tensor
    head: Any
    answers: Tensor


class Objective(Protocol):
    def loss(self, net: Model, batch: Any) -> Loss: ...

    def parts(self, batch: Any, n: int) -> list[Any]:
        """The batch cut into at most n smaller ones that hold the same rows."""
        ...

    def size(self, batch: Any) -> int:
        """Tokens the batch feeds to the model, for the speed shown."""
        ...


class Scoring:
    """An objective that judges vectors, one by one. `of_classes`: the scores of each are one distribution, of which one class is right."""

    smoothing = 0.0
    of_classes = True

    def vectors(self, net: Model, batch: Any) -> Vectors:
        raise NotImplementedError

    def loss(self, net: Model, batch: Any) -> Loss:
        return self.judged(net, self.vectors(net, batch))

    def judged(self, net: Model, vectors: Vectors) -> Loss:
        """Cross-entropy against the weight matrix of the head, without ever holding all scores."""
        hidden, head = vectors.hidden, vectors.head
        if not hasattr(head, "weight"):  # an adapted or quantised head: its own forward counts
            raise TypeError(f"head {type(head).__name__} has no weight matrix to take the loss against")
        scale = getattr(head, "scale", 1.0)
        hidden = hidden if scale == 1.0 else hidden * scale
        smoothing = self.smoothing if net.training else 0.0
        total, plain = linear_cross_entropy(hidden, head.weight, head.bias, vectors.answers, smoothing)
        return Loss(total, plain, len(vectors.answers))

    @torch.no_grad()
    def accuracy(self, net: Model, batches: Iterable[Any]) -> float:
        """The share of right classes that the model puts first."""
        right = total = 0
        for batch in batches:
            found = self.vectors(net, batch)
            for some, wanted in zip(found.hidden.split(ROWS), found.answers.split(ROWS), strict=True):
                right += int((found.head(some).argmax(-1) == wanted).sum())
            total += len(found.answers)
        return right / max(total, 1)


class ExampleObjective:
    """What objectives over `Examples`, or batches of pictures, have in common. `tower` reads them, `head` scores its hidden vectors."""

    tower, head = "encoder", ""

    def parts(self, batch: Any, n: int) -> list[Any]:
        return [batch] if n == 1 else batch.parts(n)

    def size(self, batch: Any) -> int:
        return batch.size

    def read(self, net: Model, batch: Any) -> Stream:
        """The finished stream of a batch that is on the model's device."""
        return net(**{self.tower: stream_of(net, self.tower, batch)})[self.tower]

    def hidden(self, net: Model, batch: Any) -> Tensor:
        """[B, L, D]"""
        return self.read(net, batch).x

    def on_device(self, net: Model, batch: Any) -> Any:
        return batch.to(next(net.parameters()).device, non_blocking=True)


class EntryObjective(Scoring, ExampleObjective):
    """One class for each entry of which something is asked."""

    def __init__(self, smoothing: float = 0.0):
        self.smoothing = smoothing

    def vectors(self, net: Model, batch: Examples) -> Vectors:
        batch = self.on_device(net, batch)
        hidden, answers = asked(self.hidden(net, batch), batch.answers)
        return Vectors(hidden, net.heads[self.head], answers)


def stream_of(net: Model, tower: str, batch: Any) -> Stream:
    """The batch's ids, or its pixels, as a stream; what says nothing (all real, a model without types) is left out."""
    if net.takes(tower) != "ids":
        return Stream(batch.pixels, real=batch.real)
    types = batch.types if batch.types is not None and knows_types(net, tower) else None
    real = None if bool(batch.real.all()) else batch.real
    return Stream(batch.ids, real=real, segment=batch.segment, positions=batch.positions, types=types)


def knows_types(net: Model, tower: str) -> bool:
    """Whether a second id makes a difference: RoBERTa has a table of types with one row, DistilBERT none."""
    types = getattr(net.get_submodule(f"{tower}.embed"), "types", None)
    return types is not None and len(types.weight) > 1


def asked(hidden: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden vectors [N, D] and answers [N] of the entries of which something is asked."""
    wanted = answers != IGNORED
    if bool(wanted.all()):
        return hidden.flatten(0, 1), answers.flatten()
    return hidden[wanted], answers[wanted]
