"""All pairs of a set as token ids in two flat arrays: four bytes a token, whatever the number of pairs."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from plait.data.pairs import Pair
from plait.data.report import Report
from plait.errors import InputError

if TYPE_CHECKING:
    from plait.data.batches import Batch
    from plait.data.feed import RowFeed

CHUNK = 8192  # texts encoded at a time: enough for all cores, little enough not to be felt in memory


class Encoder(Protocol):
    """What `Corpus.encode` needs of a tokenizer."""

    pad_id: int
    bos_id: int
    eos_id: int

    @property
    def unk_id(self) -> int | None: ...  # read only here, so that a class whose unk_id is always an int fits too

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclass(frozen=True, slots=True)
class Flat:
    """Rows of ids end to end: `ids` int32 [sum of lengths], `offsets` int64 [N + 1]; row i is ids[offsets[i]:offsets[i+1]]."""

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Flat":
        ids, lengths = array("i"), array("q")
        for row in rows:
            ids.extend(row)
            lengths.append(len(row))
        return cls._from(ids, lengths)

    @classmethod
    def _from(cls, ids: array, lengths: array) -> "Flat":
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(np.frombuffer(lengths, np.int64), out=offsets[1:])
        return cls(np.frombuffer(ids, np.int32), offsets)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Encoded pairs, row i from pair i: bare ids without bos and eos, which `batch` puts around the targets."""

    sources: Flat
    targets: Flat
    source_pad: int
    target_pad: int
    bos_id: int
    eos_id: int
    report: Report

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def lengths(self) -> np.ndarray:
        """[N, 2] int64: the widths a row takes in a batch; the target counts its eos (or, going in, its bos)."""
        return np.stack([self.sources.lengths, self.targets.lengths + 1], axis=1)

    def batch(self, indices: np.ndarray) -> "Batch":
        """The rows of these indices as padded tensors."""
        from plait.data.batches import from_flat  # brings torch: encoding a corpus does without

        return from_flat(self.sources, self.targets, indices, (self.source_pad, self.target_pad), bos_id=self.bos_id, eos_id=self.eos_id)

    def feed(self, tokens_per_batch: int, seed: int = 0, places: Sequence[str] | None = None) -> "RowFeed":
        """All pairs in batches of like length, at most `tokens_per_batch` wide in both sides together; `places` as of `RowFeed`."""
        from plait.data.batches import BatchOrder
        from plait.data.feed import RowFeed

        return RowFeed(BatchOrder(self.lengths, tokens_per_batch, seed), lambda rows, epoch: self.batch(rows), places)

    @classmethod
    def encode(
        cls,
        pairs: Sequence[Pair],
        source_tokenizer: Encoder,
        target_tokenizer: Encoder,
        max_source: int | None = None,
        max_target: int | None = None,
        *,
        source_eos: bool = False,
    ) -> "Corpus":
        """Encode every pair, in order.

        `max_source` and `max_target` bound the widths in a batch, so a target keeps max_target - 1 ids and its eos; what
        is cut is counted in `report` with its place, as are unknown symbols and sources without a token. `source_eos` ends
        every source with the source tokenizer's eos; whoever answers with the model later must do the same.
        """
        for name, limit, least in (("max_source", max_source, 1 + source_eos), ("max_target", max_target, 2)):
            if limit is not None and limit < least:
                raise InputError(f"{name}={limit} leaves no room for a token: give at least {least}")
        report = Report("encoded", kept=len(pairs))
        end = [source_tokenizer.eos_id] if source_eos else []
        source_room = None if max_source is None else max_source - len(end)
        target_room = None if max_target is None else max_target - 1
        sources = _side("source", [p.source for p in pairs], pairs, source_tokenizer, source_room, end, report)
        targets = _side("target", [p.target for p in pairs], pairs, target_tokenizer, target_room, [], report)
        ids = (source_tokenizer.pad_id, target_tokenizer.pad_id, target_tokenizer.bos_id, target_tokenizer.eos_id)
        return cls(sources, targets, *ids, report)


def _chunks(texts: Sequence[str], tokenizer: Encoder) -> Iterator[list[int]]:
    for start in range(0, len(texts), CHUNK):
        yield from tokenizer.encode_batch(texts[start : start + CHUNK])


def _side(
    name: str, texts: Sequence[str], pairs: Sequence[Pair], tokenizer: Encoder, room: int | None, end: list[int], report: Report
) -> Flat:
    ids, lengths = array("i"), array("q")
    unk = tokenizer.unk_id
    for pair, row in zip(pairs, _chunks(texts, tokenizer), strict=True):
        if room is not None and len(row) > room:
            report.note(f"{name} cut to {room} tokens", pair.where)
            row = row[:room]
        if not row:
            report.note(f"{name} without a token", pair.where)
        elif unk is not None and unk in row:
            report.note(f"{name} with symbols that the tokenizer does not know", pair.where)
        ids.fromlist(row + end if end else row)
        lengths.append(len(row) + len(end))
    return Flat._from(ids, lengths)
