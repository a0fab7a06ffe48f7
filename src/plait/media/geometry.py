"""Changes of where the pixels of a picture stand, drawn from a generator: flips, crops, sizes, small rotations and shifts.

A step is called with a picture, uint8 [H, W, 3], and a generator; it gives the new picture and the moves that led there, for whatever
else has a place in the picture (`boxes.followed`). What is drawn depends on the picture's size and never on its pixels.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from plait.media.boxes import Move
from plait.media.pictures import pillow
from plait.media.preparing import FILTERS, Shortest

if TYPE_CHECKING:
    from PIL.Image import Image

TRIES = 10  # for a rectangle that fits, before the fallback


class Step(Protocol):
    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]: ...


def image_of(picture: np.ndarray) -> "Image":
    """A picture as Pillow's; InputError without Pillow."""
    return pillow().fromarray(np.ascontiguousarray(picture))


def resized(picture: np.ndarray, height: int, width: int, interpolation: str) -> tuple[np.ndarray, Move]:
    """A picture of another size, smoothed where it gets smaller (Pillow's way)."""
    old_height, old_width = picture.shape[:2]
    move = Move(np.array([[width / old_width, 0, 0], [0, height / old_height, 0]]), height, width)
    return np.array(image_of(picture).resize((width, height), FILTERS.index(interpolation))), move


def cropped(picture: np.ndarray, y: int, x: int, height: int, width: int) -> tuple[np.ndarray, Move]:
    """The part of a picture whose upper left pixel stands at (x, y)."""
    return picture[y : y + height, x : x + width], Move(np.array([[1.0, 0, -x], [0, 1, -y]]), height, width)


def warped(picture: np.ndarray, linear: Any, shift: Any) -> tuple[np.ndarray, Move]:
    """A picture after a linear map [2, 2] about its centre and a shift (x, y) in pixels; what comes in from outside has the colour of the
    border, so that ink on paper and chalk on slate both go on as they were.
    """
    height, width = picture.shape[:2]
    centre = np.array([width, height]) / 2
    matrix = np.column_stack([linear, centre + shift - np.dot(linear, centre)])
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]  # Pillow asks where an output pixel comes from
    size, fill = (width, height), tuple(int(grey) for grey in border(picture))
    image = image_of(picture).transform(size, pillow().Transform.AFFINE, tuple(back.ravel()), FILTERS.index("bilinear"), fillcolor=fill)
    return np.array(image), Move(matrix, height, width)


def border(picture: np.ndarray) -> np.ndarray:
    """The median colour [3] of a picture's outermost pixels."""
    edges = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    return np.median(edges, axis=0).astype(np.uint8)


def rectangle(
    rng: np.random.Generator, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int] | None:
    """(y, x, height, width) of a part of a picture: its share of the area in `scale`, its width over its height in `ratio` (as likely to
    be wide as high), its place anywhere. None where none of ten such fits.
    """
    whole = rng.uniform(*scale, TRIES) * height * width
    shape = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1]), TRIES))
    high, wide = np.rint(np.sqrt(whole / shape)).astype(int), np.rint(np.sqrt(whole * shape)).astype(int)
    fits = np.flatnonzero((high >= 1) & (high <= height) & (wide >= 1) & (wide <= width))
    if not len(fits):
        return None
    h, w = int(high[fits[0]]), int(wide[fits[0]])
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


@dataclass(frozen=True)
class Flip:
    """Left for right, top for bottom, and rows for columns (which makes a quarter turn together with one of the others), each with its
    probability. All three at 0.5 give each of the eight ways in which a square can lie.
    """

    horizontal: float = 0.5
    vertical: float = 0.0
    diagonal: float = 0.0

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        across, down, over = rng.random(3) < (self.horizontal, self.vertical, self.diagonal)
        (height, width), moves = picture.shape[:2], list[Move]()
        if across:
            picture = picture[:, ::-1]
            moves.append(Move(np.array([[-1.0, 0, width], [0, 1, 0]]), height, width))
        if down:
            picture = picture[::-1]
            moves.append(Move(np.array([[1.0, 0, 0], [0, -1, height]]), height, width))
        if over:
            picture = picture.swapaxes(0, 1)
            moves.append(Move(np.array([[0.0, 1, 0], [1, 0, 0]]), width, height))
        return picture, moves


@dataclass(frozen=True)
class ResizedCrop:
    """A part of the picture of any size and shape, brought to one size (Szegedy et al. 2015, section 6).

    `scale` is its share of the area, `ratio` its width over its height; `size` is (height, width), None that of the picture.
    """

    size: tuple[int, int] | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        height, width = picture.shape[:2]
        part = rectangle(rng, height, width, self.scale, self.ratio)
        if part is None:  # a panorama, or a few pixels: the largest part in the middle that is not too long
            h, w = min(height, max(1, round(width / self.ratio[0]))), min(width, max(1, round(height * self.ratio[1])))
            part = (height - h) // 2, (width - w) // 2, h, w
        piece, first = cropped(picture, *part)
        piece, second = resized(piece, *(self.size or (height, width)), self.interpolation)
        return piece, [first, second]


@dataclass(frozen=True)
class PaddedCrop:
    """A small picture shifted by up to `by` pixels each way: padded all round and cropped to its old size (He et al. 2016, section 4.2).
    The padding has the colour of the border."""

    by: int = 4

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        height, width = picture.shape[:2]
        padded = np.empty((height + 2 * self.by, width + 2 * self.by, 3), np.uint8)
        padded[:] = border(picture)
        padded[self.by : self.by + height, self.by : self.by + width] = picture
        y, x = (int(n) for n in rng.integers(2 * self.by + 1, size=2))
        piece, _ = cropped(padded, y, x, height, width)
        return piece, [Move(np.array([[1.0, 0, self.by - x], [0, 1, self.by - y]]), height, width)]


@dataclass(frozen=True)
class Crop:
    """A part of the picture whose sides are each `least` to `most` pixels (or the whole side, where that is shorter), anywhere."""

    least: int = 384
    most: int = 600

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        height, width = picture.shape[:2]
        h, w = (int(rng.integers(min(self.least, side), min(self.most, side) + 1)) for side in (height, width))
        piece, move = cropped(picture, int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
        return piece, [move]


@dataclass(frozen=True)
class ShortestEdge:
    """The whole picture so large that its shorter side has one of these `sizes`, or its longer one `longest` where it would be more."""

    sizes: tuple[int, ...]
    longest: int
    interpolation: str = "bilinear"

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        edge = self.sizes[int(rng.integers(len(self.sizes)))]
        picture, move = resized(picture, *Shortest(edge, self.longest).of(*picture.shape[:2]), self.interpolation)
        return picture, [move]


@dataclass(frozen=True)
class Affine:
    """A small rotation, zoom, shear and shift: up to `degrees` either way, a factor in `zoom`, up to `shear` pixels a pixel and the share
    `shift` of each side either way."""

    degrees: float = 0.0
    shift: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        turn, shear, across, down = rng.uniform(-1, 1, 4) * (np.deg2rad(self.degrees), self.shear, self.shift, self.shift)
        zoom = np.exp(rng.uniform(np.log(self.zoom[0]), np.log(self.zoom[1])))
        linear = zoom * np.array(rotation(turn)) @ [[1, shear], [0, 1]]
        picture, move = warped(picture, linear, np.array([across, down]) * picture.shape[1::-1])
        return picture, [move]


def rotation(turn: float) -> list[list[float]]:
    """The linear map [2, 2] of a rotation by `turn` radians, clockwise as a picture is looked at (its y goes down)."""
    return [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
