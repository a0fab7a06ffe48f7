"""Distillation: a model learns from another one's scores as well as from the answers."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from plait.core.model import Model
from plait.tasks.objective import Loss

CHUNK = 2**21  # scores of one model held at a time


class Scored(Protocol):
    """An objective that can say what is scored: the vectors [N, ...] of the entries asked, and what turns them into scores [N, C]."""

    def vectors(self, net: Model, batch: Any) -> tuple[Tensor, Callable[[Tensor], Tensor]]: ...


class Distilled:
    """(1 - weight) · the objective's own loss + weight · T² · KL(teacher ‖ model), both softened by T (Hinton et al. 2015, section 2).

    The teacher reads the same ids and scores the same entries, so it must share the tokenizer and the classes; nothing else.
    What is reported is the model's plain loss, comparable with a run without a teacher.
    """

    def __init__(self, objective: Any, teacher: Model, weight: float = 0.5, temperature: float = 2.0):
        self.objective: Any = objective
        self.teacher, self.weight, self.temperature = teacher.eval().requires_grad_(False), weight, temperature

    def loss(self, net: Model, batch: Any) -> Loss:
        own = self.objective.loss(net, batch)
        if not net.training:
            return own
        taught = self.divergence(net, batch)
        return Loss((1 - self.weight) * own.total + self.weight * taught, own.plain, own.count)

    def divergence(self, net: Model, batch: Any) -> Tensor:
        """T² times the sum of KL divergences over the entries asked."""
        hidden, head = self.objective.vectors(net, batch)
        with torch.no_grad():
            theirs, teacher_head = self.objective.vectors(self.teacher, batch)
        total, t = hidden.new_zeros(()), self.temperature
        width = head(hidden[:1]).shape[-1] if len(hidden) else 1
        for ours, right in zip(hidden.split(rows := max(1, CHUNK // width)), theirs.split(rows), strict=True):
            with torch.no_grad():
                wanted = (teacher_head(right).float() / t).log_softmax(-1)
            total = total + kl_div((head(ours).float() / t).log_softmax(-1), wanted, reduction="sum", log_target=True)
        return t * t * total

    def parts(self, batch: Any, n: int) -> list[Any]:
        return self.objective.parts(batch, n)

    def size(self, batch: Any) -> int:
        return self.objective.size(batch)
