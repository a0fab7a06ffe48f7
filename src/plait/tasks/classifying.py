"""Classification: labels of texts, pairs or pictures, learned from one vector of each."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.core.heads import pooled
from plait.core.model import Model
from plait.tasks.objective import ExampleObjective, Loss, Scoring, Vectors


class Classifying(Scoring, ExampleObjective):
    """Devlin et al. 2019, section 4.1. `problem` as of `tasks.labels.Classifier`, and with it what a batch's answers are:

    "single": [B] numbers of labels, or [B, labels] the share of each (of pictures that were mixed); cross-entropy. "multi": [B, labels],
    1 for each that a row has; binary cross-entropy, the mean over labels. "regression": [B] values, squared error.
    """

    head = "classify"

    def __init__(self, problem: str = "single", smoothing: float = 0.0):
        self.problem, self.smoothing, self.of_classes = problem, smoothing, problem == "single"

    def scores(self, net: Model, batch: Any) -> Tensor:
        """[B, labels]"""
        head = net.heads[self.head]
        return head(pooled(head, self.read(net, batch)))

    def vectors(self, net: Model, batch: Any) -> Vectors:
        batch = self.on_device(net, batch)
        head = net.heads[self.head]
        return Vectors(pooled(head, self.read(net, batch)), head, batch.answers)

    def judged(self, net: Model, vectors: Vectors) -> Loss:
        scores, answers = vectors.head(vectors.hidden), vectors.answers
        if self.problem == "single":
            plain = F.cross_entropy(scores, answers, reduction="sum")
            smooth = self.smoothing if net.training else 0.0
            total = F.cross_entropy(scores, answers, reduction="sum", label_smoothing=smooth) if smooth else plain
            return Loss(total, plain.detach(), len(answers))
        if self.problem == "multi":
            total = F.binary_cross_entropy_with_logits(scores, answers.to(scores.dtype), reduction="sum") / scores.shape[-1]
        else:
            total = torch.sum((scores[:, 0] - answers) ** 2)
        return Loss(total, total.detach(), len(answers))
