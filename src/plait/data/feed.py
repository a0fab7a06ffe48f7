"""What the loop is fed with: batches of all ranks together, in an order that is a pure function of (seed, epoch, position)."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np

from plait.data.batches import BatchOrder


class Feed(Protocol):
    """Batches without end. `tokens` is how many an epoch holds; `fingerprint` differs where a place would mean another batch."""

    @property
    def tokens(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def stream(self, epoch: int, position: int) -> Iterator[tuple[int, int, Any]]:
        """(epoch, position after the batch, batch), the first batch that at `position` of `epoch`."""
        ...

    def batches(self, epoch: int) -> int:
        """How many batches the epoch has."""
        ...

    def where(self, epoch: int, position: int, row: int) -> str:
        """Where a row comes from, in words, of the batch before `position` (as the stream gives it), counted from 0."""
        ...


class JobFeed:
    """A feed that says first what each batch is, and makes it then: `jobs` are calls that may be made anywhere, in any order."""

    def jobs(self, epoch: int, position: int) -> Iterator[tuple[int, int, Callable[[], Any]]]:
        """(epoch, position after the batch, what makes the batch) without end, as `stream`."""
        raise NotImplementedError

    def stream(self, epoch: int, position: int) -> Iterator[tuple[int, int, Any]]:
        for epoch, position, job in self.jobs(epoch, position):
            yield epoch, position, job()


class RowFeed(JobFeed):
    """Batches of whole rows: `order` says which, `batch(rows, epoch)` makes tensors of them."""

    def __init__(self, order: BatchOrder, batch: Callable[[np.ndarray, int], Any], places: Sequence[str] | None = None):
        """`places` say of each row where it was read (file:line)."""
        self.order, self.batch, self.places = order, batch, places
        self.batches = lru_cache(maxsize=2)(lambda epoch: len(order.batches(epoch)))  # asked for before every step

    @property
    def tokens(self) -> int:
        return int(self.order.lengths.sum())

    @property
    def fingerprint(self) -> str:
        return self.order.fingerprint

    def jobs(self, epoch: int, position: int) -> Iterator[tuple[int, int, Callable[[], Any]]]:
        for epoch, position, rows in self.order.stream(epoch, position):
            yield epoch, position + 1, partial(self.batch, rows, epoch)

    def where(self, epoch: int, position: int, row: int) -> str:
        number = int(self.order.batches(epoch)[position - 1][row])
        return f"row {number}" if self.places is None else self.places[number]

    def all(self) -> Iterator[Any]:
        """Every row once, in batches of rows of like length: for validation."""
        for rows in self.order.batches(0):
            yield self.batch(np.sort(rows), 0)
