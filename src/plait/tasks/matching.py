"""Which answer of a detector is judged by which box: the assignment of least cost, one to one (Carion et al. 2020, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from plait.errors import InputError
from plait.tasks.boxes import corners, generalised_iou


@dataclass(frozen=True)
class Weights:
    """Of the class, of the boxes' L1 distance and of their generalised IoU, in the cost and in the loss alike (appendix A.4)."""

    label: float = 1.0
    l1: float = 5.0
    giou: float = 2.0


@dataclass(frozen=True)
class Targets:
    """The boxes of B pictures, padded to the most that one has; `counts` says how many are real."""

    boxes: Tensor  # [B, M, 4] cx cy w h in 0..1
    labels: Tensor  # [B, M] int64
    counts: tuple[int, ...]

    @classmethod
    def of(cls, boxes: Sequence[Tensor], labels: Sequence[Tensor], n_queries: int, n_classes: int, like: Tensor) -> "Targets":
        """From [n, 4] and [n] of each picture; InputError names all that no detector with these queries and classes can learn.

        `like` says on which device and in which precision.
        """
        faults = []
        for row, (some, theirs) in enumerate(zip(boxes, labels, strict=True)):
            n = len(some)
            if n > n_queries:
                faults.append(f"picture {row} of the batch has {n} boxes, the model has {n_queries} queries and gives one box for each")
            if len(theirs) != n:
                faults.append(f"picture {row} of the batch has {n} boxes and {len(theirs)} labels")
            if n and not bool(some.isfinite().all() and (some[:, 2:] >= 0).all()):
                faults.append(f"picture {row} of the batch has a box that is none: cx cy w h are numbers, w and h not below 0")
            if len(theirs) and not 0 <= int(theirs.min()) <= int(theirs.max()) < n_classes:
                span = f"{int(theirs.min())} to {int(theirs.max())}"
                faults.append(f"picture {row} of the batch has labels {span}, the model knows the classes 0 to {n_classes - 1}")
        if faults:
            raise InputError(
                "these boxes cannot be learned: check the data, or train with as many queries and classes as they need", faults
            )
        padded = pad_sequence(list(boxes), batch_first=True)
        return cls(padded.to(like), pad_sequence(list(labels), batch_first=True).to(like.device), tuple(map(len, boxes)))


@torch.no_grad()
def costs(scores: Tensor, boxes: Tensor, targets: Targets, weights: Weights) -> Tensor:
    """[..., B, N, M] of scores [..., B, N, C + 1] and boxes [..., B, N, 4]: what it costs that an answer stands for a box.

    The class counts by its probability, not by the logarithm: so it is of the size of the other two (section 3.1, "matching cost").
    """
    wanted = targets.labels[:, None].expand(*scores.shape[:-1], -1)
    probable = scores.softmax(-1).gather(-1, wanted)
    mine, theirs = boxes[..., None, :], targets.boxes[:, None]
    apart = (mine - theirs).abs().sum(-1)
    return weights.l1 * apart - weights.label * probable - weights.giou * generalised_iou(corners(mine), corners(theirs))


def matched(cost: Tensor, counts: Sequence[int]) -> Tensor:
    """[4, K]: layer, picture, answer and box of each pair that costs [Y, B, N, M] of Y layers put together, in that order.

    InputError where a cost is no number, as it is for a model whose weights are none any more.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise InputError("to learn boxes the package scipy is needed: pip install 'plait[vision]'") from None
    table = cost.double().cpu().numpy()  # one transfer for all layers
    pairs, bad = [np.empty((4, 0), np.int64)], set[int]()
    for layer, row in np.ndindex(table.shape[:2]):
        square = table[layer, row, :, : counts[row]]
        if not np.isfinite(square).all():
            bad.add(row)
            continue
        answers, boxes = linear_sum_assignment(square)
        pairs.append(np.stack([np.full_like(answers, layer), np.full_like(answers, row), answers, boxes]))
    if bad:
        rows = ", ".join(map(str, sorted(bad)))
        raise InputError(f"pictures {rows} of the batch: the model's scores or boxes are no numbers, so none can be matched to a box")
    return torch.from_numpy(np.concatenate(pairs, 1)).to(cost.device)
