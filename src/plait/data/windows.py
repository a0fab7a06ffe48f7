"""Documents cut in rows that a model reads one by one, of which each epoch hides other parts."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.data.batches import BatchOrder
from plait.data.feed import RowFeed
from plait.data.packing import Documents
from plait.errors import InputError


@dataclass(frozen=True)
class Windows:
    """Row r is the `lengths[r]` ids from `starts[r]` on."""

    documents: Documents
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, documents: Documents, context: int, special: int = 0) -> "Windows":
        """Rows of at most `context` tokens with the `special` ones that a model wants around them; longer documents are cut."""
        texts, room = documents.texts, context - special
        if room < 1:
            raise InputError(f"--context {context} leaves no room for a token of the text")
        counts = -(-texts.lengths // room)
        number = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(texts.offsets[:-1], counts) + number * room
        if not len(starts):
            raise InputError("no document has a token: give more text")
        return cls(documents, starts, np.minimum(np.repeat(texts.offsets[1:], counts) - starts, room))

    def __getitem__(self, row: int) -> np.ndarray:
        return self.documents.texts.ids[self.starts[row] : self.starts[row] + self.lengths[row]]


class WindowFeed(RowFeed):
    """Batches of windows of like length; a kind of feed says how batches are `made`, and by what settings (`how`)."""

    def __init__(self, windows: Windows, widths: np.ndarray, tokens_per_batch: int, seed: int):
        """`widths` [N, 2] as of `BatchOrder`."""
        self.windows = windows
        super().__init__(BatchOrder(widths, tokens_per_batch, seed), self.made)

    @property
    def how(self) -> tuple:
        raise NotImplementedError

    def made(self, rows: np.ndarray, epoch: int) -> Any:
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        how = (self.order.fingerprint, self.windows.documents.fingerprint, *self.how)
        return hashlib.sha256(repr(how).encode()).hexdigest()[:16]

    def where(self, epoch: int, position: int, row: int) -> str:
        start = self.windows.starts[self.order.batches(epoch)[position - 1][row]]
        offsets = self.windows.documents.texts.offsets
        document = int(np.searchsorted(offsets, start, side="right")) - 1
        return f"document {document} from token {start - offsets[document]} on"
