"""Documents as rows of one length for a causal model: long ones cut, short ones packed together without seeing each other."""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch

from plait.data.corpus import Flat
from plait.data.examples import IGNORED, Examples
from plait.data.feed import JobFeed
from plait.errors import InputError


@dataclass(frozen=True, slots=True)
class Documents:
    """Texts as ids, each with the tokens that begin and end it; the arrays may lie on disk (`numpy.memmap`).

    `scored`, as long as the ids, is false for a token that is read but not to be learned (a prompt); None: all are learned.
    """

    texts: Flat
    scored: np.ndarray | None = None

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.texts.offsets.tobytes())
        for array in (self.texts.ids, self.scored):
            for start in range(0, 0 if array is None else len(array), 2**24):
                digest.update(np.ascontiguousarray(array[start : start + 2**24]).tobytes())  # type: ignore[index]
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Rows:
    """Pieces of documents, row after row: piece p is `lengths[p]` predictions from the id at `starts[p]` on; row r has the pieces
    `pieces[bounds[r]:bounds[r + 1]]`."""

    starts: np.ndarray
    lengths: np.ndarray
    pieces: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1


class PackedFeed(JobFeed):
    """Batches of `rows` rows, each `context` predictions wide.

    A document with more predictions than that is cut in windows, in each epoch at other places; pieces that are shorter share a row,
    as many as fit, each with positions and a segment of its own. Every token but a document's first is predicted once an epoch.
    """

    def __init__(self, documents: Documents, context: int, rows: int, seed: int = 0, pad: int = 0):
        if faults := [f"{name}={value}: must be at least 1" for name, value in (("context", context), ("rows", rows)) if value < 1]:
            raise InputError("no batches can be made", faults)
        if not len(documents.texts.ids) > len(documents.texts):
            raise InputError("no document has two tokens, one to read and one to predict: give more text")
        self.documents, self.context, self.rows, self.seed, self.pad = documents, context, rows, seed, pad
        self.planned = lru_cache(maxsize=2)(self._planned)

    @property
    def tokens(self) -> int:
        return int(np.maximum(self.documents.texts.lengths - 1, 0).sum())

    @property
    def fingerprint(self) -> str:
        how = repr((self.context, self.rows, self.seed, self.documents.fingerprint))
        return hashlib.sha256(how.encode()).hexdigest()[:16]

    def batches(self, epoch: int) -> int:
        return -(-len(self.planned(epoch)) // self.rows)

    @property
    def fullness(self) -> float:
        """The share of the first epoch's entries that is no padding."""
        return self.tokens / (len(self.planned(0)) * self.context)

    def jobs(self, epoch: int, position: int) -> Iterator[tuple[int, int, Callable[[], Examples]]]:
        while True:
            rows, batches = self.planned(epoch), self.batches(epoch)
            if position > batches:
                raise InputError(f"position {position} of epoch {epoch} does not exist: the epoch has {batches} batches; the data changed")
            for at in range(position, batches):
                yield epoch, at + 1, partial(self.batch, rows, range(at * self.rows, min((at + 1) * self.rows, len(rows))))
            epoch, position = epoch + 1, 0

    def where(self, epoch: int, position: int, row: int) -> str:
        rows = self.planned(epoch)
        at = (position - 1) * self.rows + row
        starts = rows.starts[rows.pieces[rows.bounds[at] : rows.bounds[at + 1]]]
        documents = np.searchsorted(self.documents.texts.offsets, starts, side="right") - 1
        offsets = starts - self.documents.texts.offsets[documents]
        return " and ".join(f"document {d} from token {o} on" for d, o in zip(documents, offsets, strict=True))

    def all(self) -> Iterator[Examples]:
        """Every prediction once, in the order of the text and cut from its beginning: for validation."""
        rows = packed(*cut(self.documents.texts, self.context, None), self.context, None)
        for at in range(0, len(rows), self.rows):
            yield self.batch(rows, range(at, min(at + self.rows, len(rows))))

    def _planned(self, epoch: int) -> Rows:
        # Raw 64-bit draws, whose stream numpy keeps for good (see BatchOrder).
        bits = np.random.Philox(key=np.array([self.seed, epoch], np.uint64))
        shift = int(bits.random_raw() % self.context)
        return packed(*cut(self.documents.texts, self.context, shift), self.context, bits)

    def batch(self, rows: Rows, which: range) -> Examples:
        """These rows as tensors; segments and positions only where a row holds more than one piece."""
        bounds = rows.bounds[which.start : which.stop + 1]
        pieces = rows.pieces[bounds[0] : bounds[-1]]
        lengths, many = rows.lengths[pieces], np.diff(bounds)
        before = np.cumsum(lengths) - lengths  # predictions of the batch before each piece
        first = np.repeat(before[bounds[:-1] - bounds[0]], many)  # and before the piece's row
        within = np.arange(int(lengths.sum())) - np.repeat(before, lengths)
        source = np.repeat(rows.starts[pieces], lengths) + within
        row = np.repeat(np.repeat(np.arange(len(which)), many), lengths)
        column = np.repeat(before - first, lengths) + within

        def table(values: np.ndarray, fill: int) -> torch.Tensor:
            made = np.full((len(which), width), fill, np.int64)
            made[row, column] = values
            return torch.from_numpy(made)

        width = int(column.max()) + 1
        ids = self.documents.texts.ids
        answers = np.asarray(ids[source + 1], np.int64)
        if self.documents.scored is not None:
            answers = np.where(self.documents.scored[source + 1], answers, IGNORED)
        real = np.zeros((len(which), width), bool)
        real[row, column] = True
        batch = Examples(table(ids[source], self.pad), torch.from_numpy(real), table(answers, IGNORED))
        if many.max() > 1:
            number = np.arange(len(pieces)) - np.repeat(bounds[:-1] - bounds[0], many)
            batch.segment, batch.positions = table(np.repeat(number, lengths), -1), table(within, 0)
        return batch


def cut(texts: Flat, context: int, shift: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(first ids, numbers of predictions) of pieces of at most `context` predictions, document after document.

    A document that is longer is cut after `shift` predictions and then every `context`; without a shift, every `context`.
    """
    predictions = np.maximum(texts.lengths - 1, 0)
    head = np.where(predictions > context, shift or 0, 0)
    whole = -(-(predictions - head) // context)
    counts = whole + (head > 0)
    document = np.repeat(np.arange(len(texts)), counts)
    number = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    lead = np.repeat(head, counts)
    begin = np.where(lead > 0, np.maximum(lead + (number - 1) * context, 0), number * context)
    end = np.minimum(np.where(lead > 0, lead + number * context, (number + 1) * context), predictions[document])
    return texts.offsets[document] + begin, end - begin


def packed(starts: np.ndarray, lengths: np.ndarray, context: int, bits: np.random.Philox | None, pool: int = 8192) -> Rows:
    """Pieces shuffled by `bits` (None: in their order), those that fill a row alone, the others by best fit within pools."""
    order = np.arange(len(starts)) if bits is None else np.argsort(bits.random_raw(len(starts)), kind="stable")
    full, short = order[lengths[order] == context], order[lengths[order] < context]
    rows: list[list[int]] = []
    for start in range(0, len(short), pool):
        rows += fitted(short[start : start + pool], lengths, context)
    sizes = np.array([1] * len(full) + [len(row) for row in rows], np.int64)
    pieces = np.concatenate([full, *map(np.asarray, rows)]).astype(np.int64) if len(sizes) else np.empty(0, np.int64)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    if bits is None:
        return Rows(starts, lengths, pieces, bounds)
    order = np.argsort(bits.random_raw(len(sizes)), kind="stable")
    moved = np.concatenate([pieces[bounds[row] : bounds[row + 1]] for row in order])
    return Rows(starts, lengths, moved, np.concatenate([[0], np.cumsum(sizes[order])]))


def fitted(pieces: np.ndarray, lengths: np.ndarray, context: int) -> list[list[int]]:
    """Rows of pieces: the longest that is left, then again and again the longest that still fits."""
    by_length: dict[int, list[int]] = {}
    for piece in reversed(pieces):
        by_length.setdefault(int(lengths[piece]), []).append(int(piece))
    left, rows = sorted(by_length), list[list[int]]()
    while left:
        row, room = [], context
        while at := bisect_right(left, room):
            length = left[at - 1]
            row.append(by_length[length].pop())
            room -= length
            if not by_length[length]:
                del left[at - 1]
        rows.append(row)
    return rows
