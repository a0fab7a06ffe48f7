"""What a look at batches of pictures keeps of each: its boxes, and what is around it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.data.picture_feed import BoxBatch, PictureBatch

STRIPE = 2  # rows or columns of one value at the lower or right border, from which on they are taken for padding


@dataclass
class Seen:
    """One picture of a batch."""

    padded: float  # share of its area that the batch declares to be padding
    fill: float | None  # the value of that padding; NaN where it has several
    hidden: bool  # whether it ends in a stripe of one value that is not declared
    boxes: np.ndarray | None = None  # [n, 4] cx cy w h in 0..1
    labels: np.ndarray | None = None


def seen_in(batch: Any) -> Iterator[Seen]:
    """Each picture of a batch; nothing where it is one of texts."""
    if not isinstance(batch, PictureBatch | BoxBatch):
        return
    for row, pixels in enumerate(batch.pixels.cpu().numpy()):
        pixels = pixels.reshape(-1, *pixels.shape[-2:])  # [3 (of each frame), H, W]
        real = np.ones(pixels.shape[-2:], bool) if batch.real is None else batch.real[row].cpu().numpy()
        around, inside = pixels[:, ~real], pixels[:, real.any(1)][:, :, real.any(0)]
        fill = None if not around.size else float(around.flat[0]) if np.ptp(around) == 0 else np.nan
        ends = (inside[:, -STRIPE:], inside[:, :, -STRIPE:])
        hidden = any(np.ptp(end) == 0 for end in ends if end.size) and np.ptp(inside) > 0
        boxes = (batch.boxes[row].cpu().numpy(), batch.labels[row].cpu().numpy()) if isinstance(batch, BoxBatch) else ()
        yield Seen(1 - float(real.mean()), fill, bool(hidden), *boxes)
