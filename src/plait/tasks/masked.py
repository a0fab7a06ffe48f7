"""Masked language models: what stood where a token was hidden (Devlin et al. 2019, section 3.1)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from plait.core.model import Model
from plait.data.examples import Examples
from plait.tasks.objective import ExampleObjective, Loss, asked

ROWS = 256  # hidden vectors whose scores over the vocabulary are held at a time


class MaskedTokens(ExampleObjective):
    """Cross-entropy at the hidden places alone; the head projects, activates and norms before it scores (section 3.1 and its code)."""

    tower, head = "encoder", "mlm"

    def __init__(self, smoothing: float = 0.0):
        self.smoothing = smoothing

    def loss(self, net: Model, batch: Examples) -> Loss:
        vectors, answers = self.before_scores(net, batch)
        head: Any = net.heads[self.head]
        return self.token_loss(net, vectors, answers, head.scores, self.smoothing)

    def before_scores(self, net: Model, batch: Examples) -> tuple[Tensor, Tensor]:
        """What the last matrix of the head reads [N, D] and its answers [N], of the hidden places."""
        batch = self.on_device(net, batch)
        hidden, answers = asked(self.hidden(net, batch), batch.answers)
        head: Any = net.heads[self.head]
        return head.norm(head.activation(head.dense(hidden))), answers

    @torch.no_grad()
    def accuracy(self, net: Model, batches: Iterable[Examples]) -> float:
        """The share of hidden tokens that the model puts first."""
        right = total = 0
        head: Any = net.heads[self.head]
        for batch in batches:
            vectors, answers = self.before_scores(net, batch)
            for some, wanted in zip(vectors.split(ROWS), answers.split(ROWS), strict=True):
                right += int((head.scores(some).argmax(-1) == wanted).sum())
            total += len(answers)
        return right / max(total, 1)
