"""Detection: boxes and their classes, learned and answered as a set (Carion et al. 2020, "End-to-end object detection ...")."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.core.model import Model
from plait.core.stream import Stream, Watcher
from plait.data.picture_feed import BoxBatch
from plait.tasks.boxes import corners, generalised_iou
from plait.tasks.focal import focal
from plait.tasks.matching import Targets, Weights, costs, matched
from plait.tasks.objective import Loss

PICTURES = 200  # of a validation set that are measured while training goes on: the evaluator takes some 0.02 s for each
ENCODER, DECODER, HEAD = "encoder", "decoder", "detect"
FOCAL = Weights(label=2.0)  # where classes are judged apart (Zhu et al. 2021, "Deformable DETR", section 5)


class Found(NamedTuple):
    """Boxes of one picture, the best first."""

    boxes: np.ndarray  # [n, 4] float32: x0 y0 x1 y1 in pixels of the picture as it was read
    scores: np.ndarray  # [n] float32
    labels: np.ndarray  # [n] int64


class Detecting:
    """Each box is matched with one answer; the class of every answer, and place and size of the matched ones, are learned.

    Cross-entropy is the mean over all answers, where those that stand for no box weigh `no_object` (section 3.1). L1 distance and
    generalised IoU are means over the boxes of the batch (appendix A.2). With `auxiliary` every layer of the decoder answers, through
    the same final norm and head, and is matched and judged for itself (section 3.2). Loss.total is the loss of the whole batch times
    its rows, or a part's share of it. Where the head judges classes apart (`apart`), their loss is the focal loss, a mean over boxes.
    """

    tower, head = DECODER, HEAD

    def __init__(self, n_queries: int, auxiliary: bool = True, no_object: float = 0.1, weights: Weights | None = None):
        self.n_queries, self.auxiliary, self.no_object, self.weights = n_queries, auxiliary, no_object, weights

    def parts(self, batch: BoxBatch, n: int) -> list[BoxBatch]:
        return [batch] if n == 1 else batch.parts(n)

    def size(self, batch: BoxBatch) -> int:
        """Pictures: what they are for the model, in entries, only the model knows."""
        return len(batch)

    def loss(self, net: Model, batch: BoxBatch) -> Loss:
        scores, boxes = outputs(net, pixels_of(net, batch), self.n_queries, every_layer=self.auxiliary)
        if not bool(scores.isfinite().all() & boxes.isfinite().all()):  # training says at which step, and what the last good state is
            nothing = (scores.sum() + boxes.sum()) * math.nan
            return Loss(nothing, nothing.detach(), len(batch))
        each = apart(net)
        n_queries, n_classes, by = scores.shape[2], scores.shape[3] - (not each), self.weights or (FOCAL if each else Weights())
        targets = Targets.of(batch.boxes, batch.labels, n_queries, n_classes, like=scores)
        n_boxes = max(batch.all_boxes, 1)
        if each:
            absent, more = focal(scores)
            wrong = more.detach().gather(-1, targets.labels[:, None].expand(*scores.shape[:-1], -1))
            cost = costs(scores, boxes, targets, replace(by, label=0.0)) + by.label * wrong
            layer, row, answer, box = matched(cost, targets.counts)
            label = (absent.sum() + more[layer, row, answer, targets.labels[row, box]].sum()) / n_boxes
        else:
            layer, row, answer, box = matched(costs(scores, boxes, targets, by), targets.counts)
            wanted = torch.full(scores.shape[:3], n_classes, device=scores.device)
            wanted[layer, row, answer] = targets.labels[row, box]
            weight = torch.ones(n_classes + 1, dtype=scores.dtype, device=scores.device)
            weight[-1] = self.no_object
            all_weights = batch.all_boxes + self.no_object * (batch.all_rows * n_queries - batch.all_boxes)
            label = F.cross_entropy(scores.flatten(0, 2), wanted.flatten(), weight, reduction="sum") / all_weights
        mine, theirs = boxes[layer, row, answer], targets.boxes[row, box]
        l1, giou = (mine - theirs).abs().sum(), (1 - generalised_iou(corners(mine), corners(theirs))).sum()
        total = (by.label * label + by.l1 * l1 / n_boxes + by.giou * giou / n_boxes) * batch.all_rows
        return Loss(total, total.detach(), len(batch))

    @torch.no_grad()
    def figures(self, net: Model, batches: Iterable[BoxBatch], most: int = PICTURES) -> dict[str, float]:
        """AP and AP50 in percent, of the first batches that have `most` pictures together; no further one is asked for."""
        from plait.tasks.average_precision import average_precision

        found, right, names = [], [], []
        for batch in batches:
            scores, boxes = outputs(net, pixels_of(net, batch), self.n_queries)
            scores, boxes = readable(net, scores[-1], boxes[-1])
            names = [str(i) for i in range(scores.shape[-1] - 1)]
            found += answers(scores, boxes, batch.sizes)
            right += [(absolute(some, size).numpy(), these.numpy()) for some, size, these in zip(batch.boxes, batch.sizes, batch.labels)]
            if len(right) >= most:
                break
        figures = average_precision(found, right, names).figures
        return {name: figures.get(name, 0.0) for name in ("ap", "ap50")}


class Leaving(Watcher):
    """Keeps what leaves each block of one tower, gradients and all."""

    def __init__(self, tower: str):
        self.tower = tower
        self.seen: list[Tensor] = []

    def wants(self, path: tuple) -> bool:
        return path[0] == self.tower and len(path) == 2

    def see(self, path: tuple, found: Tensor) -> None:
        self.seen.append(found)


def pixels_of(net: Model, batch: BoxBatch) -> Stream:
    device = next(net.parameters()).device
    real = None if batch.real is None else batch.real.to(device, non_blocking=True)
    return Stream(batch.pixels.to(device, non_blocking=True), real=real)


def outputs(net: Model, pixels: Stream, n_queries: int, every_layer: bool = False) -> tuple[Tensor, Tensor]:
    """Scores [Y, B, N, C + 1] ("no object" last; `apart`: without it) and boxes [Y, B, N, 4] of the last layer, or of all Y, in float32
    at least.
    """
    watch = Leaving(DECODER) if every_layer else None
    queries = torch.arange(n_queries, device=pixels.x.device).expand(len(pixels.x), -1)
    last = net(watch=watch, **{ENCODER: pixels, DECODER: queries})[DECODER].x
    norm: Any = net.get_submodule(DECODER).norm
    earlier = [] if watch is None else [h if norm is None else norm(h) for h in watch.seen[:-1]]
    scores, boxes = net.heads[HEAD](torch.stack([*earlier, last]))
    precision = torch.promote_types(scores.dtype, torch.float32)
    return scores.to(precision), boxes.to(precision)


def apart(net: Model) -> bool:
    """Whether the head judges classes each for itself: scores [..., C] are their logits, and none is that of "no object"."""
    return getattr(net.heads[HEAD], "apart", False)


def chances(net: Model, scores: Tensor) -> Tensor:
    """[..., C]: how probable each class is of what the head scores."""
    return scores.sigmoid() if apart(net) else scores.softmax(-1)[..., :-1]


def readable(net: Model, scores: Tensor, boxes: Tensor, most: int = 100) -> tuple[Tensor, Tensor]:
    """What a head says of B pictures, in the form that `answers` reads: scores with "no object" last.

    Of a head that judges classes apart, the `most` surest pairs of an answer and a class: [B, K, C + 1] and [B, K, 4]. A sigmoid is the
    softmax of a score beside 0, so in each pair its own score stands beside one of 0 for "no object", and no other class is possible.
    """
    if not apart(net):
        return scores, boxes
    n = scores.shape[-1]
    best, which = scores.flatten(1).topk(min(most, scores[0].numel()))
    alone = scores.new_full((*best.shape, n + 1), -math.inf).scatter(-1, (which % n)[..., None], best[..., None])
    alone[..., -1] = 0.0
    return alone, boxes.gather(1, (which // n)[..., None].expand(-1, -1, 4))


def answers(scores: Tensor, boxes: Tensor, sizes: Tensor, threshold: float = 0.0, most: int = 100) -> list[Found]:
    """Scores [B, N, C + 1] and boxes [B, N, 4] as at most `most` boxes a picture, with at least this probability of their class.

    Each answer has the class that is the most probable but for "no object", so that it also counts where that comes first
    (section 4.1, "technical details"). `sizes` [B, 2] are height and width of the pictures as they were read.
    """
    best, label = scores.softmax(-1)[..., :-1].max(-1)
    best, order = best.sort(dim=-1, descending=True, stable=True)
    found = []
    for row, size in enumerate(sizes):
        which = order[row, :most][best[row, :most] >= threshold]
        mine = absolute(boxes[row, which].cpu(), size)
        found.append(Found(mine.float().numpy(), best[row, : len(which)].float().cpu().numpy(), label[row, which].cpu().numpy()))
    return found


def absolute(boxes: Tensor, size: Tensor) -> Tensor:
    """cx cy w h in 0..1 [n, 4] as x0 y0 x1 y1 in pixels of a picture of this height and width [2]."""
    return corners(boxes) * size.to(boxes).flip(0).repeat(2)
