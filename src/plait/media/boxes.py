"""Boxes of a picture as numbers, where they are when its pixels move, and pictures with boxes drawn on them.

Boxes are [N, 4]: x0 y0 x1 y1 in pixels, measured from the upper left corner of the picture, so that the whole picture is 0 0 width height.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from plait.errors import InputError
from plait.media.pictures import pillow

LEAST = 0.1  # of a box's area: what less than this is left of is not to be told from the border

# Okabe and Ito (2008), "Color Universal Design": told apart with any kind of colour vision. Its black is left out, lines have black rims.
COLOURS = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0), (0, 114, 178))
LEGIBLE = 320  # pixels of the longer side: smaller pictures are enlarged before anything is written on them
LONGEST = 32  # letters of a name


class Move(NamedTuple):
    """Where pixels went: a point (x, y, 1) of the old picture stands at `matrix` [2, 3] @ it in the new one, of this size."""

    matrix: np.ndarray
    height: int
    width: int


def area(boxes: np.ndarray) -> np.ndarray:
    """Square pixels [N] of boxes [N, 4]; 0 for one whose sides are crossed."""
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)


def clipped(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The part of each box [N, 4] that is inside the picture; of a box outside a line or a point of the border is left."""
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))


def moved(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The smallest upright boxes [N, 4] around boxes [N, 4] after a move's `matrix` [2, 3]."""
    corners = boxes[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 4, 2) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(1), corners.max(1)], axis=1)


def followed(boxes: np.ndarray, moves: Iterable[Move], least: float = LEAST) -> tuple[np.ndarray, np.ndarray]:
    """(boxes [n, 4] float32, indices [n] of those kept): boxes [N, 4] after moves, each clipped to the picture that it led to.

    A box of which less than the share `least` of its area was left inside, or nothing at all, is dropped.
    """
    if not len(boxes):  # as with most pictures, and there are many
        return boxes.astype(np.float32), np.zeros(0, np.int64)
    boxes, share = boxes.astype(np.float64), np.ones(len(boxes))
    for move in moves:
        whole = moved(boxes, move.matrix)
        boxes = clipped(whole, move.height, move.width)
        share *= area(boxes) / np.maximum(area(whole), np.finfo(np.float64).tiny)
    boxes = boxes.astype(np.float32)
    kept = np.flatnonzero((share >= least) & (area(boxes) > 0))
    return boxes[kept], kept


def normalised(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes [N, 4] as a detector learns them: centre x, centre y, width, height, float32 in 0..1 of the picture's sides."""
    parts = boxes / np.array([width, height, width, height], np.float64)
    return np.concatenate([(parts[:, :2] + parts[:, 2:]) / 2, parts[:, 2:] - parts[:, :2]], axis=1).astype(np.float32)


def absolute(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The way back of `normalised`: [N, 4] centre x, centre y, width, height in 0..1 to x0 y0 x1 y1 in pixels, float32."""
    centre, half = boxes[:, :2].astype(np.float64), boxes[:, 2:] / 2
    return (np.concatenate([centre - half, centre + half], axis=1) * [width, height, width, height]).astype(np.float32)


def iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union [N, M] of boxes [N, 4] and [M, 4], in 0..1; 0 where both are without area."""
    low, high = np.maximum(one[:, None, :2], other[None, :, :2]), np.minimum(one[:, None, 2:], other[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=2)
    return common / np.maximum(area(one)[:, None] + area(other) - common, np.finfo(np.float32).tiny)


# ---- drawing ----


def drawn(
    picture: np.ndarray,
    boxes: np.ndarray,
    names: Sequence[str] | None = None,
    scores: Sequence[float] | np.ndarray | None = None,
    classes: Sequence[str] | None = None,
) -> np.ndarray:
    """A copy of a picture, uint8 [H, W, 3], with boxes [N, 4] drawn on it and their names (one a box) and scores written beside them.

    Lines are as thick as the picture is large, light in dark rims, so that they are seen on any ground; a class is told by its name, and
    by a colour that does not depend on which boxes are there if all `classes` are given. A picture with a longer side under 320 pixels
    comes back enlarged, a whole number of times.
    """
    given = {"names": names, "scores": scores}
    if faults := [f"{len(each)} {what}" for what, each in given.items() if each is not None and len(each) != len(boxes)]:
        raise InputError(f"{len(boxes)} boxes, but {' and '.join(faults)}: give one for each box, or None")
    scale = max(1, -(-LEGIBLE // max(picture.shape[:2])))
    boxes = np.where(np.isnan(boxes), 0, boxes) * scale  # a model that diverged has such, and it is good to see that it did
    image = pillow().fromarray(picture.repeat(scale, axis=0).repeat(scale, axis=1))
    from PIL import ImageDraw, ImageFont

    thick = max(2, round(max(image.size) / 320))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(max(11, round(max(image.size) / 50)))
    order = list(classes if classes is not None else sorted(set(names or ())))
    texts, colours = [""] * len(boxes), [COLOURS[0]] * len(boxes)
    for i, name in enumerate(names or ()):
        texts[i] = " ".join(name.split())
        texts[i] = texts[i] if len(texts[i]) <= LONGEST else texts[i][: LONGEST - 1] + "…"
        colours[i] = COLOURS[order.index(name) % len(COLOURS)] if name in order else COLOURS[-1]
    turn = range(len(boxes)) if scores is None else np.argsort(np.asarray(scores), kind="stable").tolist()  # the surest box on top
    for i in turn:
        x0, y0, x1, y1 = _seen(boxes[i], image.size)
        for colour, by in (((0, 0, 0), 1), (colours[i], 0)):  # the rim is the same line, a pixel thicker on both sides
            draw.rectangle((x0 - by, y0 - by, x1 + by, y1 + by), outline=colour, width=min(thick, 1 + int(min(x1 - x0, y1 - y0))) + 2 * by)
    taken = np.zeros((0, 4))
    for i in reversed(turn):  # ... and its name is where it belongs, whoever else must move
        text = " ".join([texts[i]] * bool(texts[i]) + ([] if scores is None else [f"{scores[i]:.2f}"]))
        if text:
            x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font)
            place = _place(_seen(boxes[i], image.size), (x1 - x0 + 6, y1 - y0 + 6), image.size, taken)
            taken = np.concatenate([taken, place[None]])
            draw.rectangle(tuple(place), fill=colours[i], outline=(0, 0, 0))
            light = np.dot(colours[i], (0.299, 0.587, 0.114)) > 110  # luma, ITU-R BT.601
            draw.text((place[0] + 3 - x0, place[1] + 3 - y0), text, fill=(0, 0, 0) if light else (255, 255, 255), font=font)
    return np.array(image)


def _seen(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels [4] that a box's line is drawn through: inside the picture, the right and lower border included."""
    last = np.array(size) - 1
    low, high = np.clip(box[:2], 0, last), np.clip(box[2:] - 1, 0, last)
    return np.concatenate([low, np.maximum(low, high)])


def _place(box: np.ndarray, label: tuple[float, float], size: tuple[int, int], taken: np.ndarray) -> np.ndarray:
    """Where a label of this width and height goes: above the box, else below, else inside; the first place that is free."""
    (wide, high), (x0, y0, x1, y1) = label, box
    corners = [(x0, y0 - high), (x0, y1 + 1), (x1 - wide, y0 - high), (x1 - wide, y1 + 1), (x0, y0), (x0, y1 - high)]
    limit = np.maximum(np.array(size) - 1 - label, 0)
    places = [np.concatenate([at, at + label]) for at in (np.clip(corner, 0, limit) for corner in corners)]
    return next((place for place in places if not iou(place[None], taken).any()), places[0])
