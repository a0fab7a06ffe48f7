"""Boxes as tensors [..., 4]: the two ways to write them, and how much two of them overlap.

Functions of two boxes broadcast: boxes [N, 1, 4] and [M, 4] give every pair, [N, M].
"""

import torch
from torch import Tensor

LEAST = 1e-12  # area that is divided by: of two boxes without any the overlap is 0, not 0 / 0


def corners(boxes: Tensor) -> Tensor:
    """cx cy w h -> x0 y0 x1 y1."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def centred(boxes: Tensor) -> Tensor:
    """x0 y0 x1 y1 -> cx cy w h."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def area(boxes: Tensor) -> Tensor:
    """Of boxes x0 y0 x1 y1 [..., 4]: [...], 0 where an end lies before its beginning."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes x0 y0 x1 y1: [...], from 0 to 1."""
    shared, union = _shared_and_union(a, b)
    return shared / union.clamp(min=LEAST)


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU less the empty share of the smallest box around both (Rezatofighi et al. 2019, algorithm 1): [...], from -1 to 1.

    It tells boxes apart that do not touch: the further away, the lower.
    """
    shared, union = _shared_and_union(a, b)
    around = area(torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], -1))
    return shared / union.clamp(min=LEAST) - (around - union) / around.clamp(min=LEAST)


def _shared_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    shared = area(torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], -1))
    return shared, area(a) + area(b) - shared
