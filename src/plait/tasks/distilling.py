"""Distillation: a model learns from another one's scores, and from its inside, as well as from the answers."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from torch.utils.checkpoint import checkpoint

from plait.core.model import Model
from plait.tasks.hints import Hints
from plait.tasks.objective import Loss, Vectors

CHUNK = 2**21  # scores of one model held at a time


class Distilled:
    """(1 - weight) · the objective's own loss + weight · what the teacher says:

    T² · KL(teacher ‖ model) of the scores, both softened by T (Hinton et al. 2015, section 2), without a `temperature` nothing of them;
    and what `hints` find between the layers of both.

    The teacher reads the same ids and scores the same entries, so it must share the tokenizer and the classes; nothing else.
    What is reported is the model's plain loss, comparable with a run without a teacher. `objective` is one `of_classes`.
    """

    def __init__(self, objective: Any, teacher: Model, weight: float = 0.5, temperature: float | None = 2.0, hints: Hints | None = None):
        self.objective, self.tower, self.head = objective, objective.tower, objective.head
        self.teacher, self.weight, self.temperature = teacher.eval().requires_grad_(False), weight, temperature
        self.hints = hints

    def loss(self, net: Model, batch: Any) -> Loss:
        if not net.training:
            return self.objective.loss(net, batch)
        hints = self.hints
        student: Any = net if hints is None else hints.student(net)
        teacher: Any = self.teacher if hints is None else hints.teacher(self.teacher)
        vectors = self.objective.vectors(student, batch)
        own = self.objective.judged(net, vectors)
        self.teacher.to(vectors.hidden.device)
        with torch.no_grad():
            taught = self.objective.vectors(teacher, batch)
        total = (1 - self.weight) * own.total
        if self.temperature is not None:
            total = total + self.weight * self.divergence(vectors, taught, self.temperature)
        if hints is not None:
            total = total + self.weight * hints.loss(student, teacher, batch)
        return Loss(total, own.plain, own.count)

    def divergence(self, vectors: Vectors, taught: Vectors, temperature: float) -> Tensor:
        """T² times the sum of KL divergences over the vectors. Scores are held for a chunk of them, and computed again for gradients."""
        total = vectors.hidden.new_zeros((), dtype=torch.promote_types(vectors.hidden.dtype, torch.float32))
        if not len(vectors.hidden):
            return total + vectors.hidden.sum()
        with torch.no_grad():
            rows = max(1, CHUNK // taught.head(taught.hidden[:1]).shape[-1])

        def apart(ours: Tensor, theirs: Tensor) -> Tensor:
            with torch.no_grad():
                wanted = softened(taught.head(theirs), temperature)
            return kl_div(softened(vectors.head(ours), temperature), wanted, reduction="sum", log_target=True)

        for ours, theirs in zip(vectors.hidden.split(rows), taught.hidden.split(rows), strict=True):
            total = total + checkpoint(apart, ours, theirs, use_reentrant=False, preserve_rng_state=False)
        return temperature**2 * total

    def parts(self, batch: Any, n: int) -> list[Any]:
        return self.objective.parts(batch, n)

    def size(self, batch: Any) -> int:
        return self.objective.size(batch)


def softened(scores: Tensor, temperature: float) -> Tensor:
    """Log-probabilities at the temperature, in float32 at least."""
    return (scores.to(torch.promote_types(scores.dtype, torch.float32)) / temperature).log_softmax(-1)
