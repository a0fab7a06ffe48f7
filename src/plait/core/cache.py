"""The cache of a generating model: keys and values already computed, addressed by path (tower, depth, step)."""

from collections.abc import Callable
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
