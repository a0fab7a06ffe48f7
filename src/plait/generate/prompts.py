"""Prompts that were read: what a later prompt has in common with one, it takes from there."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

from plait.core.cache import WORTH
from plait.core.trunks import Chain, length_of, nbytes_of

LEAST = 32  # ids that two prompts begin with alike, for their common beginning to be looked for


class Prompts:
    """Chains of prompts that were read with one model and one kind of cache, up to `most` bytes; the least recently used go first.

    A model with another small part chosen (`Model.tuning`) has prompts of its own; after a change of its weights it wants a new object.
    """

    def __init__(self, most: int):
        self.most = most
        self.known: OrderedDict[tuple[Hashable, tuple[int, ...]], Chain] = OrderedDict()

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.known.values())

    def keep(self, ids: Sequence[int], chain: Chain, tuning: Hashable = None) -> None:
        self.known[tuning, tuple(ids)] = chain
        self.known.move_to_end((tuning, tuple(ids)))
        while self.nbytes > self.most:
            self.known.popitem(last=False)

    def used(self, ids: Sequence[int], tuning: Hashable = None) -> None:
        """The prompts that begin as `ids` do are the last to go."""
        for known in [(of, own) for of, own in self.known if of is tuning and list(own[:LEAST]) == list(ids[:LEAST])]:
            self.known.move_to_end(known)

    def read(self, tuning: Hashable = None) -> list[tuple[tuple[int, ...], Chain]]:
        """The prompts that were read with this part chosen."""
        return [(ids, chain) for (of, ids), chain in self.known.items() if of is tuning]


def longest(ids: Sequence[int], known: Iterable[tuple[Sequence[int], Chain]]) -> Chain:
    """The longest chain for the beginning of `ids` that these prompts give, less than all: the last id has still to be read."""
    best: Chain = ()
    for prompt, chain in known:
        same = min(alike(ids, prompt), len(ids) - 1)
        if same > max(LEAST, length_of(best)) and length_of(found := first(chain, same)) > length_of(best):
            best = found
    return best


def first(chain: Chain, length: int) -> Chain:
    """As much of a chain's first `length` entries as can be had."""
    found: list = []
    for trunk in chain:
        part = trunk.first(min(trunk.length, length - trunk.offset)) if trunk.offset < length else None
        if part is None:
            break
        found.append(part)
    return tuple(found)


def beginnings(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The beginnings that several of the prompts have in common, where reading them once pays."""
    groups: dict[tuple[int, ...], list[list[int]]] = {}
    for prompt in prompts:
        groups.setdefault(tuple(prompt[:LEAST]), []).append(list(prompt))
    found = []
    for some in groups.values():  # what the first and the last in order have in common, all have
        length = min(alike(min(some), max(some)), min(map(len, some)) - 1)
        if (len(some) - 1) * length >= WORTH:
            found.append(some[0][:length])
    return found


def alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
