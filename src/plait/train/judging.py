"""How good a model is on what it does not learn from: its loss, and the figures of its task."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from plait.core.model import Model
from plait.tasks.objective import Objective
from plait.train.averaging import MovingAverage
from plait.train.parallel import Team
from plait.train.precision import Precision

Measure = Callable[[Model], dict[str, float]]


class Judge:
    """Evaluates `learner`, whose model is `net`, on `valid`, one batch in memory at a time; with an average, in its place."""

    def __init__(
        self,
        net: Model,
        learner: nn.Module,
        objective: Objective,
        valid: Sequence[Any],
        measure: Measure | None,
        average: MovingAverage | None,
        precision: Precision,
        team: Team,
    ):
        self.net, self.learner, self.objective, self.valid, self.measure = net, learner, objective, valid, measure
        self.average, self.precision, self.team = average, precision, team

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Within, the model is as it would be put to use: without dropout, its weights the average where one is kept."""
        self.learner.eval()
        with torch.no_grad(), nullcontext() if self.average is None else self.average.in_place():
            yield
        self.learner.train()

    def loss(self) -> float:
        """Nats a prediction over the whole set; each rank takes its rows of every batch."""
        total, count = torch.zeros((), dtype=torch.float64, device=self.team.device), 0
        for batch in self.valid:
            for part, weight in self.team.parts(self.objective, batch):
                with self.precision.context():
                    loss = self.learner(part, weight)
                total, count = total + loss.plain.double(), count + loss.count
        both = self.team.sum(torch.stack([total, torch.full_like(total, count)]))
        return float(both[0]) / max(float(both[1]), 1.0)

    def figures(self) -> dict[str, float]:
        """What the task measures besides; nothing where the weights lie in pieces, which only a training step puts together."""
        layout = self.team.layout
        return {} if self.measure is None or layout.shard or layout.tensor > 1 else self.measure(self.net)
