"""Changes of what the pixels of a picture show, and not of where they stand: colour jitter, RandAugment's operations, erasing.

Steps as those of `geometry`, whose list of moves is empty.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from plait.media.boxes import Move
from plait.media.geometry import image_of, rectangle

if TYPE_CHECKING:
    from PIL.Image import Image


def enhanced(kind: str, image: "Image", factor: float) -> "Image":
    """Pillow's Brightness, Contrast, Color (saturation) or Sharpness: 0 takes all of it away, 1 changes nothing."""
    return getattr(import_module("PIL.ImageEnhance"), kind)(image).enhance(factor)


def turned(image: "Image", turn: float) -> "Image":
    """A picture whose hues stand `turn` times round the circle of colours further on."""
    from PIL import Image

    hue, saturation, value = image.convert("HSV").split()
    further = [round(i + turn * 256) % 256 for i in range(256)]
    return Image.merge("HSV", (hue.point(further), saturation, value)).convert("RGB")


def _by(name: str, image: "Image", *values: int) -> "Image":
    return getattr(import_module("PIL.ImageOps"), name)(image, *values)


# What RandAugment draws from, by a strength in -1..1; the ranges are AutoAugment's (Cubuk et al. 2019, table 6), grown from no change at 0.
OPERATIONS: dict[str, Callable[["Image", float], "Image"]] = {
    "identity": lambda image, strength: image,
    "autocontrast": lambda image, strength: _by("autocontrast", image),
    "equalize": lambda image, strength: _by("equalize", image),
    "solarize": lambda image, strength: _by("solarize", image, round(256 * (1 - abs(strength)))),
    "posterize": lambda image, strength: _by("posterize", image, 8 - round(4 * abs(strength))),
    "brightness": lambda image, strength: enhanced("Brightness", image, 1 + 0.9 * strength),
    "contrast": lambda image, strength: enhanced("Contrast", image, 1 + 0.9 * strength),
    "saturation": lambda image, strength: enhanced("Color", image, 1 + 0.9 * strength),
    "sharpness": lambda image, strength: enhanced("Sharpness", image, 1 + 0.9 * strength),
}


@dataclass(frozen=True)
class Jitter:
    """Brightness, contrast and saturation times a factor within 1 - x and 1 + x, and hues turned by up to `hue` of the circle either way,
    in any order (Krizhevsky et al. 2012, section 4.1, has the idea; this form is the usual one since Howard 2013)."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        image = image_of(picture)
        amounts = (rng.uniform(-1, 1, 4) * (self.brightness, self.contrast, self.saturation, self.hue)).tolist()
        for at in rng.permutation(4).tolist():
            if at == 3:
                image = turned(image, amounts[at]) if self.hue else image  # the way to HSV and back is not exact
            else:
                image = enhanced(("Brightness", "Contrast", "Color")[at], image, max(0.0, 1 + amounts[at]))
        return np.array(image), []


@dataclass(frozen=True)
class Erase:
    """With probability `share`, a rectangle replaced by random pixels (Zhong et al. 2020, section 3.1): its share of the picture's area in
    `scale`, its width over its height in `ratio`."""

    share: float = 0.25
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Move]]:
        height, width = picture.shape[:2]
        if rng.random() < self.share and (part := rectangle(rng, height, width, self.scale, self.ratio)):
            y, x, h, w = part
            picture = picture.copy()
            picture[y : y + h, x : x + w] = rng.integers(256, size=(h, w, 3), dtype=np.uint8)
        return picture, []
