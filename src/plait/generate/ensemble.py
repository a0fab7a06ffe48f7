"""Several models with the same vocabulary as one, whose log-probabilities are the mean of theirs, normalised."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from plait.core.attention import Attention
from plait.core.embeddings import Tokens
from plait.core.model import Model
from plait.core.stream import Call, Stream
from plait.errors import InputError


class SideBySide(nn.Module):
    """A tower of several: all read the same entries, and their vectors [B, L, D_i] lie side by side in one stream [B, L, ΣD].

    Each keeps its own part of the cache, since its name is part of the path.
    """

    def __init__(self, towers: Sequence[nn.Module]):
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.widths = [width(tower) for tower in towers]
        self.sources: dict[str, list[int]] = {}  # the widths of the other towers, by name

    @property
    def embed(self) -> nn.Module:
        """The first one's: all know the same ids."""
        return self.towers[0].embed  # type: ignore[return-value]

    def forward(self, s: Stream, call: Callable[[Stream], Call], name: str) -> Stream:
        found: list[Stream] = []
        for i, tower in enumerate(self.towers):
            found.append(tower(s, lambda embedded, i=i: self.own(call(embedded), i), f"{name}.{i}"))
        return found[0].having(x=torch.cat([one.x for one in found], -1))

    def own(self, call: Call, i: int) -> Call:
        """The call as member i sees it: of each memory its own part."""
        memories = {name: memory.having(x=memory.x.split(self.sources[name], -1)[i]) for name, memory in call.memories.items()}
        return replace(call, memories=memories)


class MeanScores(nn.Module):
    """Scores [..., V] of vectors that lie side by side: the mean of the members' scores.

    It differs from the mean of their log-probabilities by the same number for all ids, which the softmax takes away again.
    """

    def __init__(self, heads: Sequence[nn.Module], widths: Sequence[int]):
        super().__init__()
        self.heads, self.widths = nn.ModuleList(heads), list(widths)

    def forward(self, hidden: Tensor) -> Tensor:
        parts = zip(self.heads, hidden.split(self.widths, -1), strict=True)
        return torch.stack([head(part) for head, part in parts]).mean(0)


def ensemble(nets: Sequence[Model], decoder: str = "decoder", head: str = "lm") -> Model:
    """One model of several, to be run, searched and continued as any other; it shares their weights, and their caches lie in one.

    Its probabilities are the geometric mean of theirs, made to sum to one. The members may differ in size, not in vocabulary.
    InputError where members have other towers, another number of ids, another dtype or device than the first, all faults at once.
    """
    if not nets:
        raise InputError("an ensemble needs at least one model")
    first = facts(nets[0], head)
    faults = [f"model {i} has {a}, the first {b}" for i, net in enumerate(nets[1:], 2) for a, b in zip(facts(net, head), first) if a != b]
    if faults:
        raise InputError("these models cannot answer together: expected the same towers and vocabulary in all", faults)
    towers = {name: SideBySide([net.get_submodule(name) for net in nets]) for name in nets[0].towers}
    for name, tower in towers.items():
        tower.sources = {other: side.widths for other, side in towers.items() if other != name}
    model = Model({head: MeanScores([net.heads[head] for net in nets], towers[decoder].widths)}, **towers)
    model.kernel, model.exact = nets[0].kernel, all(net.exact for net in nets)
    return model.train(nets[0].training)


def width(tower: nn.Module) -> int:
    """D of the vectors that a tower gives."""
    return [part for part in tower.modules() if isinstance(part, Attention)][-1].o_proj.weight.shape[0]


def facts(net: Model, head: str) -> list[str]:
    """What the members of an ensemble must have in common, in words."""
    parameter = next(net.parameters())
    sizes = {name: [part.weight.shape[0] for part in net.get_submodule(name).modules() if isinstance(part, Tokens)] for name in net.towers}
    scores: Any = getattr(net.heads[head], "weight", parameter) if head in net.heads else None
    return [
        "the towers " + ", ".join(f"{name} (of {size[0]} ids)" if size else name for name, size in sizes.items()),
        f"no head {head!r}" if scores is None else f"a head {head!r} of {scores.shape[0]} ids",
        f"weights of {parameter.dtype} on {parameter.device}".replace("torch.", ""),
    ]
