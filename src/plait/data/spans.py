"""Texts with spans hidden by one token each, and the spans as what is to be written (Raffel et al. 2020, sections 3.1.4 and 3.3.4)."""

from dataclasses import dataclass

import numpy as np

from plait.data.batches import Batch, from_flat
from plait.data.corpus import Flat
from plait.data.packing import Documents
from plait.data.windows import WindowFeed, Windows
from plait.errors import InputError
from plait.text.loaded import LoadedTokenizer
from plait.text.saving import sentinels_of

SHARE, MEAN = 0.15, 3.0  # of all tokens; tokens of a span


@dataclass(frozen=True)
class Corruption:
    """How spans are hidden. `sentinels` stand for them, in this order, and once more behind the last one written."""

    sentinels: np.ndarray
    share: float = SHARE
    mean: float = MEAN

    @classmethod
    def of(cls, tokenizer: LoadedTokenizer) -> "Corruption":
        """With the sentinels of a tokenizer, by their names; InputError where it has not two."""
        if len(found := sentinels_of(tokenizer)) < 2:
            raise InputError("this model's tokenizer has no <extra_id_0>, <extra_id_1> ... to stand for hidden spans, as T5's has")
        return cls(np.array(found))

    def sizes(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(hidden tokens, spans) of rows of these lengths: at least one of each, and a token between two spans."""
        hidden = np.maximum(np.rint(self.share * lengths).astype(np.int64), 1)
        spans = np.maximum(np.rint(hidden / self.mean).astype(np.int64), 1)
        return hidden, np.minimum(spans, np.minimum(len(self.sentinels) - 1, lengths - hidden + 1))

    def parted(self, ids: np.ndarray, seed: int, epoch: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(what is read, what is to be written), bare: a pure function of the ids and (seed, epoch, row)."""
        hidden, spans = (int(n[0]) for n in self.sizes(np.array([len(ids)])))
        # Raw draws (see Masking), one for each place that could part two spans or two texts between them.
        key, counter = np.array([seed, epoch], np.uint64), np.array([0, 0, row, 1], np.uint64)
        draws = np.random.Philox(key=key, counter=counter).random_raw(len(ids))
        inside = composition(draws[: hidden - 1], spans)
        between = composition(draws[hidden - 1 :], spans + 1)  # of two tokens more, since a row may begin and end with a span
        between[[0, -1]] -= 1
        read, written, at = list[np.ndarray](), list[np.ndarray](), 0
        for sentinel, shown, length in zip(self.sentinels, between, inside):
            read += [ids[at : at + shown], sentinel[None]]
            written += [sentinel[None], ids[at + shown : at + shown + length]]
            at += int(shown + length)
        return np.concatenate([*read, ids[at:]]), np.concatenate([*written, self.sentinels[spans, None]])


def composition(draws: np.ndarray, parts: int) -> np.ndarray:
    """One more than there are draws, as so many parts of at least one; each way to part it is as likely."""
    cuts = np.sort(np.argsort(draws, kind="stable")[: parts - 1]) + 1
    return np.diff(cuts, prepend=0, append=len(draws) + 1)


class SpanFeed(WindowFeed):
    """Batches of rows of at most `context` tokens, each read with an `end` and answered from `start` on; other spans in each epoch."""

    def __init__(
        self,
        documents: Documents,
        corruption: Corruption,
        context: int,
        tokens_per_batch: int,
        *,
        start: int,
        end: int,
        pad: int,
        seed: int = 0,
    ):
        self.corruption, self.pad, self.ids = corruption, pad, {"bos_id": start, "eos_id": end}
        windows = Windows.of(documents, context, 1)
        hidden, spans = corruption.sizes(windows.lengths)
        super().__init__(windows, np.stack([windows.lengths - hidden + spans + 1, hidden + spans + 2], axis=1), tokens_per_batch, seed)

    @property
    def how(self) -> tuple:
        one = self.corruption
        return one.sentinels.tolist(), one.share, one.mean, self.ids, self.pad

    def made(self, rows: np.ndarray, epoch: int) -> Batch:
        parts = [self.corruption.parted(self.windows[int(row)], self.order.seed, epoch, int(row)) for row in rows]
        sources = Flat.of([[*read, self.ids["eos_id"]] for read, _ in parts])
        return from_flat(
            sources, Flat.of([written.tolist() for _, written in parts]), np.arange(len(rows)), (self.pad, self.pad), **self.ids
        )
