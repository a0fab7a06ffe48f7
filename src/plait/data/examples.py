"""Batches for a model of one tower: ids, and what is to be said of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.data.batches import BatchOrder
from plait.data.corpus import Flat
from plait.data.feed import RowFeed

IGNORED = -100  # an answer that is not asked for; the number that torch's cross-entropy leaves out


@dataclass(slots=True)
class Examples:
    """B rows, padded on the right.

    `answers` are [B, L], one of each entry (IGNORED where none is asked for), or without `per_entry` [B, ...], of each row as a whole.
    """

    ids: Tensor  # [B, L] int64
    real: Tensor  # [B, L] bool: true where a token is real
    answers: Tensor
    types: Tensor | None = None  # [B, L] first or second text of a pair
    segment: Tensor | None = None  # [B, L] which document of a packed row an entry belongs to
    positions: Tensor | None = None  # [B, L] places within those documents
    per_entry: bool = True

    @property
    def count(self) -> int:
        """Answers asked for: what a loss is averaged over."""
        return int((self.answers != IGNORED).sum()) if self.per_entry else len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def _fields(self) -> dict[str, Tensor | None]:
        return {name: getattr(self, name) for name in ("ids", "real", "answers", "types", "segment", "positions")}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Examples":
        moved = {name: t if t is None else t.to(device, non_blocking=non_blocking) for name, t in self._fields().items()}
        return Examples(**moved, per_entry=self.per_entry)  # type: ignore[arg-type]

    @property
    def size(self) -> int:
        """Tokens."""
        return int(self.real.sum())

    def parts(self, n: int) -> list["Examples"]:
        """The batch cut into at most n smaller ones that hold the same rows."""
        return [self.rows(rows) for rows in torch.arange(len(self)).tensor_split(min(n, len(self)))]

    def rows(self, which: Tensor) -> "Examples":
        """Some rows, without the columns that are padding in all of them."""
        width = max(int(self.real[which].sum(1).max()), 1)
        wide = {name: t if t is None else t[which, :width] for name, t in self._fields().items() if name != "answers"}
        answers = self.answers[which, :width] if self.per_entry else self.answers[which]
        return Examples(answers=answers, **wide, per_entry=self.per_entry)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """All rows of a set: `ids`, and `answers` as rows of the same lengths (a `Flat`), or an array with one line a row."""

    ids: Flat
    answers: Flat | np.ndarray
    pad: int
    firsts: np.ndarray | None = None  # of pairs of texts: how many ids belong to the first one

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Examples:
        """The rows of these indices; the epoch makes no difference."""
        lengths = self.ids.lengths[rows]
        columns = np.arange(max(1, int(lengths.max())))
        real = columns < lengths[:, None]
        ids = _filled(self.ids, rows, real, self.pad)
        per_entry = isinstance(self.answers, Flat)
        answers = _filled(self.answers, rows, real, IGNORED) if isinstance(self.answers, Flat) else self.answers[rows]
        types = None if self.firsts is None else torch.from_numpy((columns >= self.firsts[rows, None]).astype(np.int64))
        return Examples(torch.from_numpy(ids), torch.from_numpy(real), torch.from_numpy(answers), types, per_entry=per_entry)

    def feed(self, tokens_per_batch: int, seed: int = 0, places: Sequence[str] | None = None) -> RowFeed:
        lengths = self.ids.lengths
        return RowFeed(BatchOrder(np.stack([lengths, np.zeros_like(lengths)], axis=1), tokens_per_batch, seed), self.batch, places)


def _filled(flat: Flat, rows: np.ndarray, real: np.ndarray, other: int) -> np.ndarray:
    table = np.full(real.shape, other, np.int64)
    table[real] = np.concatenate([flat[int(row)] for row in rows])
    return table


def example_set(ids: Sequence[Sequence[int]], answers: Any, pad: int, firsts: Sequence[int] | None = None) -> ExampleSet:
    """From lists; `answers` is an array with a line for each row, or a list of lists as long as the rows' ids."""
    given = answers if isinstance(answers, np.ndarray) else Flat.of(answers)
    return ExampleSet(Flat.of(ids), given, pad, None if firsts is None else np.asarray(firsts))
