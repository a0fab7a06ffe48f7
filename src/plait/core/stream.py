"""What flows through a Transformer: a stream of vectors that knows where its entries stand, and the object of one forward pass."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from plait.core.cache import Cache
    from plait.core.kernels import Kernel


class cached_property:
    """As functools has it, without the lock that it still takes in Python 3.11 and that `torch.compile` cannot trace."""

    def __init__(self, make: Callable[[Any], Any]):
        self.make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, held: Any, owner: type | None = None) -> Any:
        found = held.__dict__[self.name] = self.make(held)
        return found


EVERYONE = -1  # the segment of what all documents of a row see


def ahead(values: Tensor | None, n: int, value: Any) -> Tensor | None:
    """values [B, L, ...] with n times `value` before them."""
    if values is None:
        return None
    return torch.cat([values.new_full((len(values), n, *values.shape[2:]), value), values], 1)


@dataclass(frozen=True, eq=False)
class Places:
    """Where L entries stand: their slots (absolute places in their sequence), which are real, and which document each belongs to.

    Masks and relative biases read slots, never offsets into a tensor, so they stay right with a cache and with several new tokens.
    """

    length: int
    start: int = 0  # slot of the first entry; the others follow it
    real: Tensor | None = None  # [B, L] bool; None: all entries are real
    segment: Tensor | None = None  # [B, L] int; None: one document
    device: torch.device | None = None

    @property
    def stop(self) -> int:
        """The slot behind the last entry."""
        return self.start + self.length

    @cached_property
    def slots(self) -> Tensor:  # [L]
        return torch.arange(self.start, self.start + self.length, device=self.device)


@dataclass(frozen=True, eq=False)
class Scattered(Places):
    """Entries whose slots do not follow each other; `start` is the least of them, `behind` one more than the largest."""

    at: Tensor = field(kw_only=True)  # [L]
    behind: int = field(kw_only=True)

    @property
    def stop(self) -> int:
        return self.behind

    @cached_property
    def slots(self) -> Tensor:
        return self.at


@dataclass(frozen=True, eq=False)
class Stream:
    """Content [B, L, D] (ids [B, L] or pixels before the embedding) and what is known of each entry."""

    x: Tensor
    start: int = 0
    real: Tensor | None = None
    segment: Tensor | None = None
    positions: Tensor | None = None  # [L], [B, L] or [B, L, R]: what position encodings see; None: counted from the real entries
    types: Tensor | None = None  # [B, L] a second id of each entry (BERT's first or second text); None: all 0
    pos: Tensor | None = None  # [B, L, D] position vectors that attention adds to queries and keys (DETR), never to values
    grid: tuple[int, ...] | None = None  # (T, H, W) or (H, W) where the entries form one
    before: Tensor | None = None  # [B, start] the ids in the slots before these, -1 for padding: for embeddings that look back
    prompt: Tensor | None = None  # [B, n, D] of a finished stream: entries before its own that only other towers read

    @property
    def length(self) -> int:
        return self.x.shape[1]

    @cached_property
    def places(self) -> Places:
        return Places(self.length, self.start, self.real, self.segment, self.x.device)

    def at_positions(self) -> Tensor:
        """Positions [L] or [B, L(, R)]: as given, else the number of real entries before each one (padding on the left does not count)."""
        if self.positions is not None:
            return self.positions
        if self.real is not None and self.start == 0:
            return (self.real.cumsum(1) - 1).clamp_min_(0)
        return self.places.slots

    @cached_property
    def whole(self) -> "Stream":
        """With the entries of a prompt, as other towers read it."""
        return self if self.prompt is None else self.behind(self.prompt).having(prompt=None)

    def behind(self, x: Tensor) -> "Stream":
        """With entries x [B, n, D] before its own, in slots and at positions -n .. -1, which all documents see."""
        n, positions = x.shape[1], self.at_positions().double()
        first = torch.arange(-n, 0, device=x.device, dtype=positions.dtype)
        first = first.view(-1, *[1] * max(0, positions.dim() - 2)).expand(*positions.shape[: positions.dim() > 1], n, *positions.shape[2:])
        return self.having(
            x=torch.cat([x, self.x], 1),
            start=-n,
            real=ahead(self.real, n, True),
            segment=ahead(self.segment, n, EVERYONE),
            positions=torch.cat([first, positions], min(1, positions.dim() - 1)),
            pos=ahead(self.pos, n, 0),
        )

    def having(self, **changes: Any) -> "Stream":
        return replace(self, **changes)


def stream(x: Tensor | Stream, real: Tensor | None = None) -> Stream:
    """A tensor of ids [B, L] (or content [B, L, D]) as a stream; `real` is dropped when it says that everything is real."""
    if isinstance(x, Stream):
        return x
    return Stream(x, real=real)


@dataclass(eq=False)
class Call:
    """One forward pass through one tower: handed down to every step, it holds what steps share and what must not live in modules.

    `memories` are the finished streams of other towers, by name. `memo` is for things made once a forward (masks, rotary tables).
    `watch` is shown what it asks for by path; that never changes the kernel.
    """

    stream: Stream  # the tower's own entries (its content is the embedding's output, not the running value)
    kernel: "Kernel"
    memories: dict[str, Stream] = field(default_factory=dict)
    cache: "Cache | None" = None
    watch: "Watcher | None" = None
    memo: dict[Hashable, Any] = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)  # auxiliary losses of steps (experts)
    exact: bool = False  # as `Model.exact`

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]


class Watcher:
    """Sees what a forward pass computes, gradients and all; what learns from every layer derives from it.

    A path (tower, depth) is that of the content [B, L, D] that leaves a block, (tower, depth, step) that of the weights [B, H, L, S] of
    an attention. A block that is computed again on the way back shows its inside again, where a hook would be gone: so distillation
    needs this, and whoever only looks takes `plait.inspect`.
    """

    def wants(self, path: tuple) -> bool:
        raise NotImplementedError

    def see(self, path: tuple, found: Tensor) -> None:
        raise NotImplementedError


class Lent:
    """A part that another module owns: used like the part itself, but not registered, so it is stored, counted and moved once."""

    def __init__(self, part: Any):
        self.part = part

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.part(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "part":  # not there yet while copying or unpickling
            raise AttributeError(name)
        return getattr(self.part, name)
