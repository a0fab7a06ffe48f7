"""Vectors of texts, learned from pairs that belong together: each text of a group is told from what belongs to the others."""

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.core.model import Model
from plait.data.examples import Examples
from plait.tasks.encoding import Pooling
from plait.tasks.objective import ExampleObjective, Loss

ANCHOR, POSITIVE, NEGATIVE = range(3)
WRONG = float("-inf")


class Contrast(ExampleObjective):
    """Multiple negatives (Henderson et al. 2017, section 4.4; van den Oord et al. 2018, equation 4): cosines over a temperature.

    A batch is groups, one after the other, of anchors, as many positives in the same order, and any number of texts more that answer
    none; `answers` [B] are these roles. A group's texts are negatives to each other and to no other group, so that the loss is a sum
    over groups and a batch is cut between them.
    """

    def __init__(self, pooling: Pooling, temperature: float = 0.05):
        self.pooling, self.temperature = pooling, temperature

    def parts(self, batch: Examples, n: int) -> list[Examples]:
        groups = groups_of(batch.answers)
        if n == 1 or len(groups) == 1:
            return [batch]
        cuts = torch.arange(len(groups)).tensor_split(min(n, len(groups)))
        return [batch.rows(torch.cat([groups[int(i)] for i in part])) for part in cuts]

    def loss(self, net: Model, batch: Examples) -> Loss:
        groups, batch = groups_of(batch.answers), self.on_device(net, batch)
        vectors = self.pooling.of(self.hidden(net, batch), batch.real)
        losses, count = [], 0
        for group in groups:
            group = group.to(vectors.device)
            others = batch.answers[group] != ANCHOR
            anchors, texts = group[~others], group[others]
            cosines = vectors[anchors] @ vectors[texts].T / self.temperature
            cosines = cosines.masked_fill(also_right(batch.ids, anchors, texts), WRONG)
            losses.append(F.cross_entropy(cosines, torch.arange(len(anchors), device=cosines.device), reduction="sum"))
            count += len(anchors)
        total = torch.stack(losses).sum()
        return Loss(total, total.detach(), count)


def groups_of(roles: Tensor) -> list[Tensor]:
    """The rows of each group; one begins with the first anchor after texts that are none."""
    is_anchor = roles.cpu() == ANCHOR
    begins = is_anchor & ~torch.cat([torch.tensor([False]), is_anchor[:-1]])
    return list(torch.arange(len(roles)).tensor_split(begins.nonzero()[1:, 0]))


def also_right(ids: Tensor, anchors: Tensor, texts: Tensor) -> Tensor:
    """[A, T] which texts are no negatives of an anchor: the same as its positive, or a positive of an anchor that is the same."""
    n = len(anchors)
    right = (ids[texts[:n], None] == ids[None, texts]).all(-1)
    right[:, :n] |= (ids[anchors, None] == ids[None, anchors]).all(-1)
    return right.fill_diagonal_(False)
