"""What is changed by chance in the pictures that a model learns from, so that it learns what stays the same.

All of it is a pure function of a generator: the same seed, the same pixels. Boxes go where their pixels go.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from plait.errors import InputError, choices
from plait.media.boxes import LEAST, Move, followed
from plait.media.colours import OPERATIONS, Erase, Jitter
from plait.media.geometry import Affine, Crop, Flip, PaddedCrop, ResizedCrop, ShortestEdge, Step, image_of, rotation, warped

Size = int | tuple[int, int] | None


class Augmented(NamedTuple):
    picture: np.ndarray  # uint8 [H, W, 3], or a clip [T, H, W, 3]
    boxes: np.ndarray  # float32 [n, 4]
    kept: np.ndarray  # [n], which of the given boxes these are


def through(steps: Sequence[Step], picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
    """A picture after all steps, and the moves of all."""
    moves = list[Move]()
    for step in steps:
        picture, more = step(picture, rng)
        moves += more
    return picture, moves


@dataclass(frozen=True)
class Sometimes:
    """All of some steps with probability `share`, else none."""

    share: float
    steps: tuple[Step, ...]

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        return through(self.steps, picture, rng) if rng.random() < self.share else (picture, [])


# RandAugment's operations that move pixels, by a strength in -1..1: (linear map, shift in shares of the sides). The ranges are
# AutoAugment's too; it shifts by up to 150 pixels of 331.
_WARPS: dict[str, Callable[[float], tuple[list[list[float]], tuple[float, float]]]] = {
    "rotate": lambda strength: (rotation(np.deg2rad(30 * strength)), (0, 0)),
    "shear x": lambda strength: ([[1, 0.3 * strength], [0, 1]], (0, 0)),
    "shear y": lambda strength: ([[1, 0], [0.3 * strength, 1]], (0, 0)),
    "translate x": lambda strength: ([[1, 0], [0, 1]], (150 / 331 * strength, 0)),
    "translate y": lambda strength: ([[1, 0], [0, 1]], (0, 150 / 331 * strength)),
}


@dataclass(frozen=True)
class RandAugment:
    """`count` of 14 operations, each as likely, at one magnitude of 0..10 (Cubuk et al. 2020, section 3.1).

    Operations that have two directions take either. A `spread` above 0 draws each magnitude about the one given, as later recipes do.
    """

    count: int = 2
    magnitude: float = 9.0
    spread: float = 0.0

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        names, moves = [*OPERATIONS, *_WARPS], list[Move]()
        for _ in range(self.count):
            name = names[int(rng.integers(len(names)))]
            strength = np.clip(rng.normal(self.magnitude, self.spread), 0, 10) / 10 * (1 if rng.random() < 0.5 else -1)
            if name in OPERATIONS:
                picture = np.array(OPERATIONS[name](image_of(picture), strength))
            else:
                linear, shift = _WARPS[name](strength)
                picture, move = warped(picture, linear, np.array(shift) * picture.shape[1::-1])
                moves.append(move)
        return picture, moves


@dataclass(frozen=True)
class Augmentation:
    """Steps in order. Boxes of which less than the share `least` of the area is left are dropped."""

    steps: tuple[Step, ...] = ()
    least: float = LEAST

    @classmethod
    def named(cls, name: str, size: Size = None) -> "Augmentation":
        """One of `PRESETS`. `size` is the side, or height and width, of what the model is given: None keeps a picture's own size, and is
        800 for boxes, whose shorter side it is."""
        if name not in PRESETS:
            raise InputError(f"no augmentation is called {name!r}: choose {choices(PRESETS)}")
        return cls(PRESETS[name](size))

    @property
    def sized(self) -> bool:
        """Whether pictures come out in the size that a model is given, so that only their grey values remain to be prepared."""
        return any(isinstance(step, ShortestEdge) or (isinstance(step, ResizedCrop) and step.size is not None) for step in self.steps)

    def __call__(self, picture: np.ndarray, rng: np.random.Generator, boxes: np.ndarray | None = None) -> Augmented:
        """A picture, uint8 [H, W, 3], and its boxes [N, 4] (None: it has none) after all steps.

        A clip [T, H, W, 3] is changed alike in every frame. Boxes are clipped to the picture, whatever is drawn.
        """
        if picture.ndim == 4:
            start, frames = rng.bit_generator.state, list[np.ndarray]()
            for frame in picture[1:]:
                frames.append(self(frame, rng).picture)
                rng.bit_generator.state = start  # what is drawn depends on the size alone
            first = self(picture[0], rng, boxes)
            return first._replace(picture=np.stack([first.picture, *frames]))
        still = Move(np.eye(2, 3), *picture.shape[:2])
        picture, moves = through(self.steps, picture, rng)
        return Augmented(
            np.ascontiguousarray(picture), *followed(np.zeros((0, 4)) if boxes is None else boxes, [still, *moves], self.least)
        )


def _sides(size: Size) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _fine_tuning(size: Size) -> tuple[Step, ...]:
    return ResizedCrop(_sides(size), scale=(0.35, 1.0)), Flip(), Jitter(0.2, 0.2, 0.2)


def _deit(size: Size) -> tuple[Step, ...]:
    """The recipe of Touvron et al. 2021, table 9, but for what mixes pictures (`mixed`)."""
    return ResizedCrop(_sides(size)), Flip(), RandAugment(2, 9, 0.5), Erase(0.25)


def _detr(size: Size) -> tuple[Step, ...]:
    """The recipe of Carion et al. 2020, section 4 (its sizes, in pixels, are for a shorter side of at most 800), with a little jitter."""
    side = min(_sides(size) or (800, 800))
    large, small, (least, most) = (
        tuple(max(1, round(pixels * side / 800)) for pixels in these) for these in (range(480, 801, 32), (400, 500, 600), (384, 600))
    )
    longest = max(1, round(1333 * side / 800))
    crop = Sometimes(0.5, (ShortestEdge(small, longest), Crop(least, most)))  # the paper has no longest here; a panorama needs one
    return Flip(), crop, ShortestEdge(large, longest), Jitter(0.1, 0.1, 0.1)


PRESETS: dict[str, Callable[[Size], tuple[Step, ...]]] = {
    "none": lambda size: (),
    "digits": lambda size: (Affine(degrees=12, shift=0.08, zoom=(0.88, 1.12), shear=0.15),),  # no flips: they make other signs
    "small": lambda size: (PaddedCrop(4), Flip()),  # pictures of some 32 pixels
    "photographs": _fine_tuning,
    "strong": _deit,
    "boxes": _detr,
    "overhead": lambda size: (Flip(0.5, 0.5, 0.5), *_detr(size)[1:]),  # boxes where nothing is up: microscopes, satellites
}


def mixed(
    pixels: np.ndarray, answers: np.ndarray, rng: np.random.Generator, classes: int, mixup: float = 0.8, cutmix: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """A batch whose rows are each mixed with another row, and their soft answers, float32 [B, classes], each in the share of its pixels.

    `pixels` are [B, 3, H, W] or [B, T, 3, H, W] of one size, `answers` class numbers [B] or shares [B, classes]. Mixup (Zhang et al. 2018)
    weighs whole pictures, CutMix (Yun et al. 2019, section 3.2) puts a rectangle of the other in; one of them, as likely, for all the
    batch. `mixup` and `cutmix` are the alpha of their Beta(alpha, alpha); 0 leaves that one out. The defaults are those of Touvron et al.
    2021, table 9.
    """
    soft = answers.astype(np.float32) if answers.ndim == 2 else np.eye(classes, dtype=np.float32)[answers]
    if not (mixup or cutmix):
        return pixels, soft
    cutting = bool(cutmix) and (not mixup or rng.random() < 0.5)
    alpha, (height, width) = cutmix if cutting else mixup, pixels.shape[-2:]
    other, share = rng.permutation(len(pixels)), rng.beta(alpha, alpha, len(pixels))
    if cutting:
        sides = np.sqrt(1 - share)[:, None] * (height, width)
        middle = rng.integers((height, width), size=sides.shape)
        low = np.clip(np.rint(middle - sides / 2), 0, (height, width)).astype(int)
        high = np.clip(np.rint(middle + sides / 2), 0, (height, width)).astype(int)
        result = pixels.copy()
        for row, ((y0, x0), (y1, x1)) in enumerate(zip(low, high)):
            result[row, ..., y0:y1, x0:x1] = pixels[other[row], ..., y0:y1, x0:x1]
        share = 1 - np.prod(high - low, axis=1) / (height * width)
    else:
        weight = share.astype(pixels.dtype).reshape(-1, *[1] * (pixels.ndim - 1))
        result = weight * pixels + (1 - weight) * pixels[other]
    weight = share.astype(np.float32)[:, None]
    return result, weight * soft + (1 - weight) * soft[other]
