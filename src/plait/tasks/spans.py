"""Answers out of a text: where one starts and ends, learned from windows of the text."""

import torch.nn.functional as F

from plait.core.model import Model
from plait.data.examples import Examples
from plait.tasks.objective import ExampleObjective, Loss


class Spans(ExampleObjective):
    """The mean of two cross-entropies over a window's entries, of the start and of the end (Devlin et al. 2019, section 4.2).

    A batch's answers are [B, 2]: the entries of both. A window without the answer has the first entry for both (section 4.3).
    """

    head = "answer"

    def loss(self, net: Model, batch: Examples) -> Loss:
        batch = self.on_device(net, batch)
        scores = net.heads[self.head](self.hidden(net, batch)).transpose(1, 2)  # [B, 2, L]
        scores = scores.masked_fill(~batch.real[:, None], float("-inf"))
        total = F.cross_entropy(scores.flatten(0, 1), batch.answers.flatten(), reduction="sum") / 2
        return Loss(total, total.detach(), len(batch))
