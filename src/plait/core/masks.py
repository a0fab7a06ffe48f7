"""Masks as values: who may see whom, as predicates over slots, documents and what is real, joined with `&` and `|`.

They speak of places, never of tensor offsets; `kernels` lowers them to what a kernel wants, in one place.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from plait.core.stream import EVERYONE, Places


class Mask:
    """May a query see a key? Masks are values: equal ones are interchangeable, so a lowered mask can be kept for a whole forward."""

    @property
    def reach(self) -> int | None:
        """How many slots before its own a query sees at most; None: there is no such number."""
        return None

    def allows(self, q: Places, k: Places) -> Tensor:
        """bool, broadcastable to [B, 1, L, S]; True where the query may see the key."""
        raise NotImplementedError

    def within(self, q: Places, k: Places) -> "Mask | None":
        """What is left of the mask among these: a window that is wider than all of them hides nothing. None: nothing is left."""
        return self

    def __and__(self, other: "Mask") -> "Mask":
        return Both(self, other)

    def __or__(self, other: "Mask") -> "Mask":
        return Either(self, other)


@dataclass(frozen=True)
class Both(Mask):
    a: Mask
    b: Mask

    @property
    def reach(self) -> int | None:
        return min((reach for reach in (self.a.reach, self.b.reach) if reach is not None), default=None)

    def allows(self, q: Places, k: Places) -> Tensor:
        return self.a.allows(q, k) & self.b.allows(q, k)

    def within(self, q: Places, k: Places) -> Mask | None:
        a, b = self.a.within(q, k), self.b.within(q, k)
        if a is None or b is None:
            return b if a is None else a
        return self if a is self.a and b is self.b else Both(a, b)


@dataclass(frozen=True)
class Either(Mask):
    a: Mask
    b: Mask

    def allows(self, q: Places, k: Places) -> Tensor:
        return self.a.allows(q, k) | self.b.allows(q, k)


@dataclass(frozen=True)
class Causal(Mask):
    """A query sees itself and what came before."""

    def allows(self, q: Places, k: Places) -> Tensor:
        return k.slots[None, :] <= q.slots[:, None]


@dataclass(frozen=True)
class Window(Mask):
    """A query sees keys at most `before` slots back and `after` ahead, None: any (Mistral's window of W: causal & Window(W - 1, None))."""

    before: int
    after: int | None = 0

    @property
    def reach(self) -> int | None:
        return self.before

    def allows(self, q: Places, k: Places) -> Tensor:
        distance = q.slots[:, None] - k.slots[None, :]
        near = distance <= self.before
        return near if self.after is None else near & (distance >= -self.after)

    def within(self, q: Places, k: Places) -> Mask | None:
        all_before = self.before >= q.stop - 1 - k.start
        return None if all_before and (self.after is None or self.after >= k.stop - 1 - q.start) else self


@dataclass(frozen=True)
class Prefix(Mask):
    """Every query sees the first `length` slots (prefix language models: `causal | prefix(n)`)."""

    length: int

    def allows(self, q: Places, k: Places) -> Tensor:
        return (k.slots < self.length)[None, :].expand(q.length, -1)


@dataclass(frozen=True)
class Real(Mask):
    """Padding is never seen. Attention joins this to every mask by itself where a stream says that it has padding."""

    def allows(self, q: Places, k: Places) -> Tensor:
        if k.real is None:
            return torch.ones(1, k.length, dtype=torch.bool, device=k.device)
        return k.real[:, None, None, :]


@dataclass(frozen=True)
class SameDocument(Mask):
    """Packed documents do not see each other, but what is `EVERYONE`'s. Joined by itself where a stream has segments."""

    def allows(self, q: Places, k: Places) -> Tensor:
        if q.segment is None or k.segment is None:
            return torch.ones(1, k.length, dtype=torch.bool, device=k.device)
        same = q.segment[:, :, None] == k.segment[:, None, :]
        return (same | (k.segment == EVERYONE)[:, None, :])[:, None]


@dataclass(frozen=True)
class Blocks(Mask):
    """Block-sparse: slots are cut into blocks of `size`; `table[i][j]` says whether query block i sees key block j."""

    size: int
    table: tuple[tuple[bool, ...], ...]

    def allows(self, q: Places, k: Places) -> Tensor:
        if min(q.start, k.start) < 0:
            raise ValueError("block-sparse masks have no block for learned memory, whose slots lie before 0: use one or the other")
        table = torch.tensor(self.table, dtype=torch.bool, device=q.device)
        return table[(q.slots // self.size)[:, None], (k.slots // self.size)[None, :]]


causal = Causal()
real = Real()
same_document = SameDocument()
