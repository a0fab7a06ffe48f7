"""How good a model is on what it does not learn from: its loss, and the figures of its task."""

import time
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
SHARE = 0.05  # of the time spent, that evaluations may have taken before another one


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
        self.seconds = 0.0  # that judging took
        self.last: float | None = None  # seconds of the last time

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Within, the model is as it would be put to use: without dropout, its weights the average where one is kept."""
        begun = time.perf_counter()
        self.learner.eval()
        with torch.no_grad(), nullcontext() if self.average is None else self.average.in_place():
            yield
        if self.team.layout.shard:
            self.learner.reshard()  # type: ignore[operator]  # what it has put together may be the average, or what it was filled with since
        self.learner.train()
        self.last = time.perf_counter() - begun
        self.seconds += self.last

    def affordable(self, spent: float | None, speed: float) -> bool:
        """Whether another evaluation leaves most of the time to training.

        `spent` are the seconds so far of a budget of time, `speed` the tokens trained on in a second, which tell what the first costs.
        """
        if spent is None:
            return True
        cost = self.expected(speed) if self.last is None else self.last
        return bool(self.team.first_says(float(self.seconds + cost <= SHARE * spent)))

    def expected(self, speed: float) -> float:
        """Seconds of one evaluation, a third of a training step's operations a token, twice where there are figures besides."""
        tokens = sum(self.objective.size(batch) for batch in self.valid)
        return tokens / (3 * speed) * (1 if self.measure is None else 2)

    def loss(self) -> float:
        """Nats a prediction over the whole set; each rank takes its rows of every batch."""
        total, count = torch.zeros((), dtype=torch.float64, device=self.team.device), 0
        for batch in self.valid:
            for part, weight in self.team.parts(self.objective, batch):
                with self.precision.context():
                    loss = self.learner(part, weight)
                total, count = total + loss.plain.double(), count + loss.count
        both = self.team.sum(torch.stack([total, torch.full_like(total, count)]))
        return self.team.first_says(float(both[0]) / max(float(both[1]), 1.0))  # what hangs on it is one decision

    def figures(self) -> dict[str, float]:
        """What the task measures besides: each rank does, on all of the set, since the model may lie in pieces on all of them."""
        if self.measure is None:
            return {}
        if self.team.layout.shard:  # blocks put themselves together, the rest only in the learner's own forward pass
            self.learner.unshard()  # type: ignore[operator]
        return self.measure(self.net)
