"""Batches of pictures: read, changed by chance, prepared and padded when they are asked for; a pure function of (seed, epoch, rows)."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from plait.data.batches import BatchOrder
from plait.data.feed import RowFeed
from plait.data.folders import Member, on_disk, stamp_of
from plait.data.picture_rows import BoxRow, PictureRow
from plait.errors import InputError
from plait.media.augment import Augmentation, Augmented
from plait.media.boxes import normalised
from plait.media.pictures import read_picture
from plait.media.preparing import Preparation

KEPT = 2**29  # bytes of decoded pictures that a set keeps; what is beyond is decoded again each time
POOL = 16384  # rows shuffled together; all are alike in size, so this only bounds what one cut looks at

NONE = np.zeros((0, 4), np.float32)  # boxes

R = TypeVar("R", PictureRow, BoxRow)
Mixed = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


class Batch:
    """Rows with their pixels first: what batches of pictures share. A part of one has its rows at the same padded size, so that it
    gives the same numbers."""

    pixels: Tensor

    @property
    def unit(self) -> str:
        """What `size` counts."""
        return "clips" if self.pixels.dim() == 5 else "pictures"

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> int:
        """Pictures: what they are for a model, in entries, only the model knows."""
        return len(self)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        def moved(value: Any) -> Any:
            if isinstance(value, list):
                return [moved(one) for one in value]
            return value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value

        return type(self)(**{f.name: moved(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]

    def parts(self, n: int) -> list[Self]:
        """The batch cut into at most n smaller ones that hold the same rows; numbers of the whole batch go with each."""
        edges = np.linspace(0, len(self), min(n, len(self)) + 1).round().astype(int)

        def cut(value: Any, rows: slice) -> Any:
            return value[rows] if isinstance(value, Tensor | list) else value

        slices = [slice(int(first), int(last)) for first, last in pairwise(edges)]
        return [type(self)(**{f.name: cut(getattr(self, f.name), rows) for f in fields(self)}) for rows in slices]  # type: ignore[arg-type]


@dataclass(slots=True)
class PictureBatch(Batch):
    """B pictures or clips with their answers: class numbers [B] int64, or shares, several labels or values [B, ...] float32."""

    pixels: Tensor  # [B, 3, H, W] float32, or of clips [B, T, 3, H, W]
    real: Tensor | None  # [B, H, W] bool: true where a pixel is no padding; None where all are
    answers: Tensor


@dataclass(slots=True)
class BoxBatch(Batch):
    """B pictures with their boxes. `all_rows` and `all_boxes` are numbers of the whole batch, in a part of it too."""

    pixels: Tensor  # [B, 3, H, W] float32
    real: Tensor | None  # [B, H, W] bool: true where a pixel is no padding; None where all are
    boxes: list[Tensor]  # [n, 4] float32 each: cx cy w h in 0..1 of the real part
    labels: list[Tensor]  # [n] int64 each
    sizes: Tensor  # [B, 2] int64: height and width of the picture that is shown in the real part
    all_rows: int
    all_boxes: int


class PictureFeed(RowFeed):
    """A feed of a set of pictures; `fingerprint` tells of its rows and of what is done to them as well."""

    def __init__(self, order: BatchOrder, batch: Callable[[np.ndarray, int], Any], places: Sequence[str], content: str):
        super().__init__(order, batch, places)
        self.content = content

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.order.fingerprint} {self.content}".encode()).hexdigest()[:16]

    def rereading(self) -> "Rereading":
        """All batches as `all` gives them, each made when it is looked at: of a validation set that no memory holds."""
        return Rereading(self)


class Rereading(Sequence[Any]):
    """Batches of an epoch in their order, made anew each time."""

    def __init__(self, feed: RowFeed):
        self.feed, self.rows = feed, [np.sort(rows) for rows in feed.order.batches(0)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Any) -> Any:
        return [self[i] for i in range(*at.indices(len(self)))] if isinstance(at, slice) else self.feed.batch(self.rows[at], 0)

    def __iter__(self) -> Iterator[Any]:
        return (self.feed.batch(rows, 0) for rows in self.rows)


class Pictures(Generic[R]):
    """Rows, and what is done to their pictures. Decoded ones are kept as uint8 while they fit into `KEPT` bytes together.

    Without an `augmentation` a batch depends on nothing but its rows. With `frames` rows are clips of so many.
    """

    def __init__(self, rows: Sequence[R], preparation: Preparation, augmentation: Augmentation | None = None, frames: int | None = None):
        self.rows, self.preparation, self.augmentation, self.frames = rows, preparation, augmentation, frames
        self._kept, self._bytes = dict[int, np.ndarray](), 0
        sized = augmentation is not None and augmentation.sized
        self._prepare = replace(preparation, size=None) if sized else preparation

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: np.ndarray, epoch: int = 0, seed: int = 0) -> Any:
        """The rows of these indices as they are in this epoch."""
        raise NotImplementedError

    def feed(self, rows_per_batch: int, seed: int = 0) -> PictureFeed:
        lengths = np.stack([np.ones(len(self), np.int64), np.zeros(len(self), np.int64)], axis=1)  # so that an area is a number of rows
        order = BatchOrder(lengths, rows_per_batch, seed, max(1, POOL // rows_per_batch) * rows_per_batch)
        return PictureFeed(order, partial(self.batch, seed=seed), [row.where for row in self.rows], self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """Differs where a batch of the same rows would hold something else."""
        digest = hashlib.sha256(repr((self.preparation, self.augmentation, self.frames)).encode())
        for row in self.rows:
            digest.update(stamp_of(row.source).encode())
        return digest.hexdigest()[:16]

    def picture(self, row: int) -> np.ndarray:
        """np.uint8 [H, W, 3], or of a clip [T, H, W, 3], as it lies; InputError names the file."""
        if (known := self._kept.get(row)) is not None:
            return known
        picture = read(self.rows[row], self.frames)
        picture.flags.writeable = False  # it may be asked for again
        if self._bytes + picture.nbytes <= KEPT:
            self._bytes += picture.nbytes
            self._kept[row] = picture
        return picture

    def augmented(self, row: int, boxes: np.ndarray, epoch: int, seed: int) -> Augmented:
        """The picture, those of its boxes [N, 4] that are still on it, and which these are, as this epoch has them."""
        if self.augmentation is None:
            return Augmented(self.picture(row), boxes, np.arange(len(boxes)))
        return self.augmentation(self.picture(row), np.random.default_rng([seed, epoch, row]), boxes)


class PictureSet(Pictures[PictureRow]):
    """Pictures with an answer each: `answers` has a line for each row."""

    def __init__(
        self,
        rows: Sequence[PictureRow],
        answers: np.ndarray,
        preparation: Preparation,
        augmentation: Augmentation | None = None,
        frames: int | None = None,
        mixed: Mixed | None = None,
    ):
        """`mixed` makes of pixels [B, ...] and answers [B] those of pictures mixed with each other, as `media.augment.mixed` does."""
        super().__init__(rows, preparation, augmentation, frames)
        self.answers, self.mixed = answers, mixed

    def batch(self, rows: np.ndarray, epoch: int = 0, seed: int = 0) -> PictureBatch:
        pictures = [self.augmented(int(row), NONE, epoch, seed).picture for row in rows]
        pixels, real = self._prepare.batch(pictures)
        answers = self.answers[rows]
        if self.mixed is not None:
            # A row is in one batch of an epoch, so its first row numbers a batch; beyond all rows, those have numbers of their own.
            pixels, answers = self.mixed(pixels, answers, np.random.default_rng([seed, epoch, len(self) + int(rows[0])]))
        return PictureBatch(torch.from_numpy(pixels), _tensor(real), torch.from_numpy(answers))

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{super().fingerprint} {self.answers.tobytes().hex()} {self.mixed is not None}".encode()).hexdigest()[:16]


class BoxSet(Pictures[BoxRow]):
    """Pictures with boxes; `classes` are the names that labels count."""

    def __init__(self, rows: Sequence[BoxRow], classes: Sequence[str], preparation: Preparation, augmentation: Augmentation | None = None):
        super().__init__(rows, preparation, augmentation)
        if preparation.crop is not None:
            raise InputError(
                "the preparation cuts the middle out of a picture, and boxes would lie beside their objects: leave its crop out"
            )
        self.numbers = {name: number for number, name in enumerate(classes)}
        unknown = [f"{row.where}: {name!r}" for row in rows for name in dict.fromkeys(row.labels) if name not in self.numbers]
        if unknown:
            raise InputError(f"boxes of classes that the model does not know; it knows {', '.join(classes)}", unknown)

    def batch(self, rows: np.ndarray, epoch: int = 0, seed: int = 0) -> BoxBatch:
        pictures, boxes, labels, sizes = list[np.ndarray](), list[Tensor](), list[Tensor](), list[tuple[int, ...]]()
        for index in map(int, rows):
            row, read = self.rows[index], self.picture(index).shape[:2]
            # A large JPEG is read reduced; its boxes are in pixels of the file.
            scaled = row.boxes * np.tile(np.divide(read[::-1], row.size[::-1]), 2).astype(np.float32)
            picture, found, kept = self.augmented(index, scaled, epoch, seed)
            pictures.append(picture)
            sizes.append(row.size if self.augmentation is None else picture.shape[:2])
            boxes.append(torch.from_numpy(normalised(found, *picture.shape[:2])))
            labels.append(torch.tensor([self.numbers[row.labels[i]] for i in kept], dtype=torch.int64))
        pixels, real = self._prepare.batch(pictures)
        return BoxBatch(torch.from_numpy(pixels), _tensor(real), boxes, labels, torch.tensor(sizes), len(rows), sum(map(len, labels)))

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(super().fingerprint.encode())
        for row in self.rows:
            digest.update(row.boxes.tobytes() + repr(row.labels).encode())
        return digest.hexdigest()[:16]


def _tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)


def read(row: PictureRow | BoxRow, frames: int | None = None) -> np.ndarray:
    """np.uint8 [H, W, 3] of a row's picture, or [T, H, W, 3] of so many frames of its clip; InputError names the file and the row."""
    source, where = row.source, row.where
    if not isinstance(source, bytes) and str(source) != where:
        where = f"{source} ({where})"
    if frames is None:
        return read_picture(source.read() if isinstance(source, Member) else source, where)
    from plait.media.clips import read_clip

    with on_disk(source) as path:
        try:
            return read_clip(path, frames)
        except InputError as error:
            raise InputError(error.message.replace(str(path), where), [fault.replace(str(path), where) for fault in error.faults]) from None
