"""Classification: labels of texts or pairs, learned from the vector of the first entry."""

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.core.model import Model
from plait.data.examples import Examples
from plait.tasks.objective import ExampleObjective, Loss


class Classifying(ExampleObjective):
    """Devlin et al. 2019, section 4.1. `problem` as of `tasks.labels.Classifier`, and with it what a batch's answers are:

    "single": [B] numbers of labels, cross-entropy. "multi": [B, 1, labels], 1 for each that a text has; binary cross-entropy, the mean
    over labels (three dimensions, so that no batch is as wide as it has labels). "regression": [B] values, squared error.
    """

    head = "classify"

    def __init__(self, problem: str = "single", smoothing: float = 0.0):
        self.problem, self.smoothing = problem, smoothing

    def scores(self, net: Model, batch: Examples) -> Tensor:
        """[B, labels]"""
        return net.heads[self.head](self.hidden(net, batch)[:, 0])

    def loss(self, net: Model, batch: Examples) -> Loss:
        batch = self.on_device(net, batch)
        scores, answers = self.scores(net, batch), batch.answers
        if self.problem == "single":
            plain = F.cross_entropy(scores, answers, reduction="sum")
            smooth = self.smoothing if net.training else 0.0
            total = F.cross_entropy(scores, answers, reduction="sum", label_smoothing=smooth) if smooth else plain
            return Loss(total, plain.detach(), len(batch))
        if self.problem == "multi":
            total = F.binary_cross_entropy_with_logits(scores, answers[:, 0].to(scores.dtype), reduction="sum") / scores.shape[-1]
        else:
            total = torch.sum((scores[:, 0] - answers) ** 2)
        return Loss(total, total.detach(), len(batch))
