"""The cache of a generating model: keys and values already computed, addressed by path (tower, depth, step)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from plait.core.stream import Call, Places, Stream


class Cache:
    """Static key-value buffers of `max_length` slots, filled from slot 0. Depth is part of the path, so shared layers do not collide.

    One forward: `stream` places the new ids behind what is there, every attention calls `extend`, and the model calls `advance`.
    """

    def __init__(self, max_length: int):
        self.max_length, self.length = max_length, 0
        self.real: Tensor | None = None  # [B, max_length] bool, once padding has been seen
        self.buffers: dict[tuple, tuple[Tensor, Tensor]] = {}
        self.kept: dict[tuple, Any] = {}

    def stream(self, x: Tensor, real: Tensor | None = None) -> Stream:
        """New entries [B, L] behind the cached ones; positions count real entries only."""
        rows, new = x.shape[:2]
        stop = self.length + new
        if stop > self.max_length:
            raise ValueError(
                f"the cache holds {self.max_length} entries, {self.length} are taken and {new} more were given: make it longer"
            )
        if real is None and self.real is None:
            return Stream(x, start=self.length)
        if self.real is None:
            self.real = torch.ones(rows, self.max_length, dtype=torch.bool, device=x.device)
        self.real[:, self.length : stop] = True if real is None else real
        positions = (self.real[:, :stop].cumsum(1) - 1).clamp_min(0)[:, self.length :]
        return Stream(x, self.length, self.real[:, self.length : stop], positions=positions)

    def extend(self, path: tuple, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, Tensor, Places]:
        """Append [B, G, L, K] keys and values; returns all so far (views of the buffers) and where they stand."""
        if path not in self.buffers:
            shape = (*k.shape[:2], self.max_length, k.shape[3])
            self.buffers[path] = (k.new_empty(shape), v.new_empty(shape))
        stop = self.length + k.shape[2]
        keys, values = self.buffers[path]
        keys[:, :, self.length : stop], values[:, :, self.length : stop] = k, v
        places = call.once("cached places", lambda: self.places(stop, k.device))
        return keys[:, :, :stop], values[:, :, :stop], places

    def places(self, stop: int, device: torch.device) -> Places:
        return Places(stop, 0, None if self.real is None else self.real[:, :stop], None, device)

    def once(self, path: tuple, make: Callable[[], Any]) -> Any:
        """What is computed once a source: the keys and values of cross-attention."""
        if path not in self.kept:
            self.kept[path] = make()
        return self.kept[path]

    def advance(self, entries: int) -> None:
        self.length += entries

    def rewind(self, length: int) -> None:
        """Only the first `length` entries of every row count; what came after them is written over. Sources stay."""
        assert 0 <= length <= self.length
        self.length = length

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes the former row rows[i] (beams); the number of rows may change. What is kept once a source stays as it is."""
        for path, (keys, values) in self.buffers.items():
            self.buffers[path] = (self.picked(keys, rows), self.picked(values, rows))
        if self.real is not None:
            self.real = self.real[rows]

    def picked(self, buffer: Tensor, rows: Tensor) -> Tensor:
        out = buffer.new_empty(len(rows), *buffer.shape[1:])
        torch.index_select(buffer[:, :, : self.length], 0, rows, out=out[:, :, : self.length])
        return out

    def keep_sources(self, rows: Tensor) -> None:
        """Only these sources go on: the kept keys and values of the others are dropped."""
        for path, value in self.kept.items():
            self.kept[path] = tuple(part[rows] for part in value)

    def padding(self) -> int:
        """The number of slots at the beginning that are padding in every row."""
        if self.real is None or not self.length:
            return 0
        return int(self.real[:, : self.length].any(0).int().argmax())


def joined(caches: Sequence[Cache], max_length: int) -> Cache:
    """One cache with the rows of all of these, in their order, in new buffers of `max_length` slots.

    Their entries end at the same slot: what a shorter one lacks on the left is padding, and so is on the right what its sources lack.
    Slots that are padding in all rows are dropped, so the longest row begins at slot 0. All caches are of one model, with a forward done.
    """
    spans = [slice(cache.padding(), cache.length) for cache in caches]
    out = Cache(max_length)
    out.length = max(span.stop - span.start for span in spans)
    real = []
    for path, (first, _) in caches[0].buffers.items():
        sides = []
        for side in (0, 1):
            parts = [cache.buffers[path][side][:, :, span] for cache, span in zip(caches, spans, strict=True)]
            buffer = first.new_empty(sum(map(len, parts)), first.shape[1], max_length, parts[0].shape[3])
            row = 0
            for part in parts:
                rows, begin = slice(row, row + len(part)), out.length - part.shape[2]
                buffer[rows, :, :begin] = 0  # masked, but a weight of 0 times what lay in memory may be NaN
                buffer[rows, :, begin : out.length] = part
                row += len(part)
            sides.append(buffer)
        out.buffers[path] = (sides[0], sides[1])
    for cache, span in zip(caches, spans, strict=True):
        keys = next(iter(cache.buffers.values()))[0]
        row = torch.ones(len(keys), max_length, dtype=torch.bool, device=keys.device)
        row[:, : out.length - (span.stop - span.start)] = False
        if cache.real is not None:
            row[:, out.length - (span.stop - span.start) : out.length] = cache.real[:, span]
        real.append(row)
    if not bool((together := torch.cat(real))[:, : out.length].all()):
        out.real = together
    for path in caches[0].kept:
        out.kept[path] = tuple(padded_rows(parts, 2) for parts in zip(*(cache.kept[path] for cache in caches), strict=True))
    return out


def padded_rows(parts: Sequence[Tensor], dim: int) -> Tensor:
    """The rows of all tensors, behind each other; along `dim` the shorter ones end in zeros."""
    longest = max(part.shape[dim] for part in parts)
    if all(part.shape[dim] == longest for part in parts):
        return torch.cat(list(parts))
    out = parts[0].new_zeros(sum(map(len, parts)), *(longest if d == dim else size for d, size in enumerate(parts[0].shape) if d))
    for part, rows in zip(parts, out.split([len(part) for part in parts]), strict=True):
        rows.narrow(dim, 0, part.shape[dim]).copy_(part)
    return out
