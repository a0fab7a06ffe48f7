"""Trunks: keys and values of a text's beginning, kept once for all rows that begin with it.

Attention reads a trunk once for all of them: their queries become further queries of one row, and what each finds is merged with what
it finds among its own keys by the logarithms of the two sums (Juravsky et al. 2024, Hydragen; Ye et al. 2024, ChunkAttention).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plait.core.kernels import merged
from plait.core.stream import Places, Scattered, Stream


@dataclass(eq=False)
class Trunk:
    """Entries `offset` to `offset + length` of a text: of each path the parts that its cache made of them, [1, G, S, any].

    S is the trunk's length, or less where the layer's mask reaches less far: then the last S are there.
    """

    offset: int
    length: int
    parts: dict[tuple, tuple[Tensor, ...]]
    ids: Tensor | None = None  # [length]
    shorter: dict[int, "Trunk"] = field(default_factory=dict)

    def first(self, length: int) -> "Trunk | None":
        """The first `length` entries, which stay where they are, always the same object; None where a window has dropped them."""
        if length == self.length:
            return self
        if any(parts[0].shape[2] < self.length for parts in self.parts.values()):
            return None
        if length not in self.shorter:
            cut = self.length - length  # from the end: a prompt's entries may stand before the trunk's own
            parts = {path: tuple(part[:, :, : part.shape[2] - cut] for part in parts) for path, parts in self.parts.items()}
            self.shorter[length] = Trunk(self.offset, length, parts, None if self.ids is None else self.ids[:length])
        return self.shorter[length]


Chain = tuple[Trunk, ...]  # trunks that follow each other, from where a text begins


def length_of(chain: Chain) -> int:
    return sum(trunk.length for trunk in chain)


def ids_of(chain: Chain) -> Tensor | None:
    """The ids of all its entries; None where one of its trunks does not know them."""
    ids = [trunk.ids for trunk in chain if trunk.ids is not None]
    return torch.cat(ids) if ids and len(ids) == len(chain) else None


def nbytes_of(chains: Iterable[Chain]) -> int:
    """The memory that these hold, whether whole or the first entries of something longer."""
    parts = (part for chain in chains for trunk in chain for packed in trunk.parts.values() for part in packed)
    return sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}.values())


@dataclass(eq=False)
class Group:
    """A trunk, and the rows [n] of the batch that have it; None: all of them, in order. `queries`: where their new entries stand.

    Queries [n * L] and keys are counted from where the text begins, so that rows whose texts begin at different slots fit together.
    """

    trunk: Trunk
    rows: Tensor | None
    queries: Places

    def places(self, size: int, device: torch.device) -> Places:
        """Of the trunk's last `size` keys."""
        return Places(size, self.trunk.offset + self.trunk.length - size, None, None, device)

    def folded(self, q: Tensor) -> Tensor:
        """[B, H, L, K] -> [1, H, n * L, K]."""
        return (q if self.rows is None else q[self.rows]).transpose(0, 1).flatten(1, 2)[None]

    def merged(self, found: tuple[Tensor, Tensor], more: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What all rows have found so far (`kernels.partial`: [B, H, L, any]), with what these rows found in the trunk, folded."""
        length = found[0].shape[2]
        out, log = (part[0].unflatten(1, (-1, length)).transpose(0, 1) for part in more)
        if self.rows is None:
            return merged(found, (out, log))
        some = merged((found[0][self.rows], found[1][self.rows]), (out, log))
        return found[0].index_copy(0, self.rows, some[0]), found[1].index_copy(0, self.rows, some[1])


def grouped(chains: Sequence[Chain], own: Sequence[int], new: Stream) -> list[Group]:
    """Each trunk of the rows' chains, with its rows. `own`: the slot of each row behind its chain; `new`: the new entries."""
    rows: dict[Trunk, list[int]] = {}
    for row, chain in enumerate(chains):
        for trunk in chain:
            rows.setdefault(trunk, []).append(row)
    begins = [slot - length_of(chain) for slot, chain in zip(own, chains, strict=True)]
    device, groups = new.x.device, []
    for trunk, some in rows.items():
        shift = torch.tensor([begins[row] for row in some], device=device)
        slots = (new.places.slots - shift[:, None]).flatten()  # [n * L]
        start, stop = (place - least(begins[row] for row in some) for place, least in ((new.start, max), (new.places.stop, min)))
        everyone = some == list(range(len(chains)))
        queries = Scattered(len(slots), start, None, None, device, at=slots, behind=stop)
        groups.append(Group(trunk, None if everyone else torch.tensor(some, device=device), queries))
    return groups
