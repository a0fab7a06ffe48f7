"""The cache of a generating model: keys and values already computed, addressed by path (tower, depth, step)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from plait.core.stream import Call, Places, Stream, ahead
from plait.core.trunks import Chain, Group, Trunk, grouped, ids_of, length_of

WORTH = 4096  # entries, copies of which are spared, from which on sharing is faster than copying (docs/log.md)
BACK = 64  # slots that a window's buffer keeps beyond its reach: so far a text can be taken back


class Cache:
    """Key-value buffers, filled slot by slot up to `max_length`. Depth is part of the path, so shared layers do not collide.

    One forward: `stream` places the new ids behind what is there, every attention calls `extend`, and the model calls `advance`.
    A layer whose mask reaches back a limited way keeps so much, and a little more, however long the text. `share` hands what is there
    over to `chains`: of each row the trunks that come before its own entries, which any number of rows may have in common.
    """

    def __init__(self, max_length: int):
        self.max_length, self.length = max_length, 0
        self.ids: Tensor | None = None  # [B, max_length] what was given, -1 for padding; None where it was vectors
        self.real: Tensor | None = None  # [B, max_length] bool, once padding has been seen
        self.buffers: dict[tuple, tuple[Tensor, ...]] = {}  # what `pack` makes of keys and values: [B, G, slots, any]
        self.begins: dict[tuple, int] = {}  # the slot of each buffer's first entry
        self.reaches: dict[tuple, int | None] = {}  # how many slots back each is read
        self.chains: list[Chain] = []  # of each row; empty where nothing is shared
        self.own: list[int] = []  # the slot of each row behind its chain
        self.kept: dict[tuple, Any] = {}
        self.programs: dict[str, Any] = {}  # of each tower, the native one that runs its steps (core/program.py)
        self.written = False  # by such a program

    @classmethod
    def behind(cls, chain: Chain, rows: int, max_length: int) -> "Cache":
        """A cache of rows that all begin with this chain."""
        cache = cls(max_length)
        cache.length = length_of(chain)
        if chain:
            cache.chains, cache.own = [chain] * rows, [cache.length] * rows
            if (ids := ids_of(chain)) is not None:
                cache.ids = ids.new_full((rows, max_length), -1)
                cache.ids[:, : cache.length] = ids
        return cache

    @property
    def plain(self) -> bool:
        """Whether `buffers` are keys and values [B, G, max_length, K] as they are, slot by slot, and all there is."""
        return not self.chains and all(len(parts) == 2 and parts[0].shape[2] == self.max_length for parts in self.buffers.values())

    @property
    def rows(self) -> int:
        """B, once there was a forward (as for `device`)."""
        return len(self.chains) or len(next(iter(self.buffers.values()))[0])

    @property
    def device(self) -> torch.device:
        return next(iter((self.buffers or self.chains[0][0].parts).values()))[0].device

    def pack(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Keys and values as they are kept: tensors of the same first three axes."""
        return k, v

    def unpack(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        k, v = parts
        return k, v

    def stream(self, x: Tensor, real: Tensor | None = None) -> Stream:
        """New entries [B, L] behind the cached ones; positions count real entries only."""
        rows, new = x.shape[:2]
        stop = self.length + new
        if stop > self.max_length:
            raise ValueError(
                f"the cache holds {self.max_length} entries, {self.length} are taken and {new} more were given: make it longer"
            )
        before = None
        if x.ndim == 2:
            if self.ids is None:
                self.ids = x.new_full((rows, self.max_length), -1)
            self.ids[:, self.length : stop] = x if real is None else x.masked_fill(~real, -1)
            before = self.ids[:, : self.length]
        if real is None and self.real is None:
            return Stream(x, start=self.length, before=before)
        if self.real is None:
            self.real = torch.ones(rows, self.max_length, dtype=torch.bool, device=x.device)
        self.real[:, self.length : stop] = True if real is None else real
        positions = (self.real[:, :stop].cumsum(1) - 1).clamp_min(0)[:, self.length :]
        return Stream(x, self.length, self.real[:, self.length : stop], positions=positions, before=before)

    def extend(self, path: tuple, k: Tensor, v: Tensor, call: Call, reach: int | None = None) -> tuple[Tensor, Tensor, Places]:
        """Append [B, G, L, K] keys and values; returns the rows' own that the new entries may see, and where they stand.

        `reach`: how many slots back an entry sees; None: all.
        """
        first = call.stream.start  # `length`, but where a prompt's entries come before slot 0
        parts, stop = self.pack(k, v), first + k.shape[2]
        if path not in self.buffers:
            self.reaches[path], self.begins[path] = reach, first
            self.buffers[path] = tuple(self.empty(part, len(part), path) for part in parts)
        buffers, begin = self.buffers[path], self.begins[path]
        if stop - begin <= buffers[0].shape[2]:
            for buffer, part in zip(buffers, parts, strict=True):
                buffer[:, :, first - begin : stop - begin] = part
            held = buffers
        else:
            held, begin = self.moved(path, parts, first)
        start = begin if reach is None else max(begin, first - reach)
        keys, values = self.unpack([part[:, :, start - begin : stop - begin] for part in held])
        return keys, values, call.once(("cached places", start), lambda: self.places(stop, k.device, start))

    def room(self, path: tuple, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """The buffers of a `plain` cache [B, G, max_length, K] for whoever writes to them at `length` himself; shape: (B, G, K)."""
        assert self.plain
        self.written = True
        if path not in self.buffers:
            rows, heads, width = shape
            self.reaches[path], self.begins[path] = None, 0
            self.buffers[path] = tuple(torch.empty(rows, heads, self.max_length, width, dtype=dtype, device=device) for _ in "kv")
        k, v = self.buffers[path]
        return k, v

    def empty(self, like: Tensor, rows: int, path: tuple) -> Tensor:
        """A buffer for the rows of such a part [B, G, *, any]; of a window a quarter longer than it reaches, so that few steps move it."""
        slots, reach = self.max_length - self.begins[path], self.reaches[path]
        return like.new_empty(rows, like.shape[1], slots if reach is None else min(slots, reach + reach // 4 + 2 * BACK), like.shape[3])

    def moved(self, path: tuple, parts: Sequence[Tensor], first: int) -> tuple[list[Tensor], int]:
        """Makes room in a window's buffer and appends from slot `first` on.

        Returns what new entries may see and more, and the slot where that begins.
        """
        buffers, reach = self.buffers[path], self.reaches[path]
        assert reach is not None  # other buffers have room for all slots
        stop, held = first + parts[0].shape[2], first - self.begins[path]
        before = slice(max(0, held - reach - BACK), held)
        whole = [torch.cat([buffer[:, :, before], part], 2) for buffer, part in zip(buffers, parts, strict=True)]
        size = whole[0].shape[2]
        left = size if size <= buffers[0].shape[2] else min(size, reach + BACK)
        for buffer, part in zip(buffers, whole, strict=True):
            buffer[:, :, :left] = part[:, :, size - left :]
        self.begins[path] = stop - left
        return whole, stop - size

    def places(self, stop: int, device: torch.device, start: int = 0) -> Places:
        real = None if self.real is None else ahead(self.real[:, max(0, start) : stop], max(0, -start), True)
        if any(own > start for own in self.own):  # a row's slots before its own are its trunks'
            behind = torch.arange(start, stop, device=device) >= torch.tensor(self.own, device=device)[:, None]
            real = behind if real is None else real & behind
        return Places(stop - start, start, real, None, device)

    def groups(self, call: Call) -> list[Group]:
        """The trunks of all rows, each with the rows that have it."""
        return call.once("trunks", lambda: grouped(self.chains, self.own, call.stream)) if self.chains else []

    def trunk(self, trunk: Trunk, path: tuple) -> tuple[Tensor, Tensor]:
        """A trunk's keys and values of a path [1, G, S, K]."""
        return self.unpack(trunk.parts[path])

    def share(self) -> None:
        """What the rows hold becomes trunks, one a row, so that `reorder` copies none of it; no row may have padding."""
        assert self.real is None
        if not self.buffers:
            return
        chains = self.chains or [()] * self.rows
        self.chains = [(*chain, self.cut(row, length_of(chain))) for row, chain in enumerate(chains)]
        self.own, self.buffers, self.begins = [self.length] * len(chains), {}, {}

    def cut(self, row: int, offset: int) -> Trunk:
        def alone(buffer: Tensor, held: int) -> Tensor:  # a view would keep the memory of all rows
            part = buffer[row : row + 1, :, :held]
            return part if part.shape == buffer.shape else part.clone()

        held = {path: self.length - begin for path, begin in self.begins.items()}
        parts = {path: tuple(alone(buffer, held[path]) for buffer in buffers) for path, buffers in self.buffers.items()}
        return Trunk(offset, self.length - offset, parts, None if self.ids is None else self.ids[row, offset : self.length].clone())

    def once(self, path: tuple, make: Callable[[], Any]) -> Any:
        """What is computed once a source: the keys and values of cross-attention."""
        if path not in self.kept:
            self.kept[path] = make()
        return self.kept[path]

    def advance(self, entries: int) -> None:
        self.length += entries

    def rewind(self, length: int) -> None:
        """Only the first `length` entries of every row count; what came after them is written over. Sources stay.

        ValueError where that is not `rewindable`.
        """
        if not self.rewindable(length):
            raise ValueError(f"the cache is at {self.length} entries and cannot go back to {length}: begin the text anew")
        self.length = length
        if not length:
            self.buffers, self.begins = {}, {}

    def rewindable(self, length: int) -> bool:
        """Whether all is there that an entry at `length` sees. Windows keep `BACK` slots more than they reach; trunks stay whole."""
        first = max(self.own, default=0)
        return first <= length <= self.length and (
            not length or all(reach is None or self.begins[path] <= max(first, length - reach) for path, reach in self.reaches.items())
        )

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes the former row rows[i] (beams); the number of rows may change. What is kept once a source stays as it is.

        Where rows become several, what is there is shared if that pays, and if no native program has written it, which reads buffers.
        """
        own = self.length - max(self.own, default=0)
        if self.buffers and (len(rows) - self.rows) * own >= WORTH and self.real is None and not self.written:
            self.share()
        for path, buffers in self.buffers.items():
            self.buffers[path] = tuple(self.picked(buffer, rows, self.length - self.begins[path]) for buffer in buffers)
        if self.ids is not None:
            self.ids = self.ids[rows]
        if self.real is not None:
            self.real = self.real[rows]
        if self.chains:
            index = rows.tolist()
            self.chains, self.own = [self.chains[row] for row in index], [self.own[row] for row in index]

    def picked(self, buffer: Tensor, rows: Tensor, held: int) -> Tensor:
        out = buffer.new_empty(len(rows), *buffer.shape[1:])
        torch.index_select(buffer[:, :, :held], 0, rows, out=out[:, :, :held])
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


class Int8Cache(Cache):
    """Keys and values in 8 bits, with a scale for each entry of each head: a quarter of float32, and their rounding."""

    def pack(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return *rounded(k), *rounded(v)

    def unpack(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        k, k_scale, v, v_scale = parts
        return k * k_scale, v * v_scale


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., K] = int8 [..., K] times scale [..., 1], up to half a scale."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale.clamp_min(torch.finfo(x.dtype).tiny)).round_().to(torch.int8), scale
