"""Several models with the same vocabulary as one, whose log-probabilities are the mean of theirs."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from plait.core.attention import Attention
from plait.core.model import Model, Tower
from plait.core.stream import Call, Stream
from plait.errors import InputError


class SideBySide(nn.Module):
    """A tower of several: all read the same entries, and their vectors [B, L, D_i] lie side by side in one stream [B, L, ΣD].

    Each keeps its own part of the cache, since its name is part of the path.
    """

    def __init__(self, towers: Sequence[Tower]):
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.widths = [width(tower) for tower in towers]
        self.sources: dict[str, list[int]] = {}  # the widths of the other towers, by name

    def forward(self, s: Stream, call: Callable[[Stream], Call], name: str) -> Stream:
        found: list[Stream] = []
        for i, tower in enumerate(self.towers):
            found.append(tower(s, lambda embedded, i=i: self.own(call(embedded), i), f"{name}.{i}"))
        return found[0].having(x=torch.cat([one.x for one in found], -1))

    def own(self, call: Call, i: int) -> Call:
        """The call as member i sees it: of each memory its own part."""
        memories = {name: memory.having(x=memory.x.split(self.sources[name], -1)[i]) for name, memory in call.memories.items()}
        return replace(call, memories=memories)


class MeanLogProbability(nn.Module):
    """Scores [..., V] of vectors that lie side by side: the mean of the members' log-probabilities (a geometric mean, not normalised)."""

    def __init__(self, heads: Sequence[nn.Module], widths: Sequence[int]):
        super().__init__()
        self.heads, self.widths = nn.ModuleList(heads), list(widths)

    def forward(self, hidden: Tensor) -> Tensor:
        parts = zip(self.heads, hidden.split(self.widths, -1), strict=True)
        return torch.stack([head(part).log_softmax(-1) for head, part in parts]).mean(0)


def ensemble(nets: Sequence[Model], decoder: str = "decoder", head: str = "lm") -> Model:
    """One model of several, to be run, searched and continued as any other; it shares their weights, and their caches lie in one.

    The members may differ in size, not in vocabulary. Search makes the averaged log-probabilities sum to one again. InputError where
    members have other towers, another number of ids, another dtype or device than the first, all faults at once.
    """
    if not nets:
        raise InputError("an ensemble needs at least one model")
    faults = [f"model {i} has {theirs}, the first {ours}" for i, net in enumerate(nets[1:], 2) for theirs, ours in unlike(net, nets[0], head)]
    if faults:
        raise InputError("these models cannot answer together: expected the same towers and vocabulary in all", faults)
    towers = {name: SideBySide([net.get_submodule(name) for net in nets]) for name in nets[0].towers}  # type: ignore[misc]
    for name, tower in towers.items():
        tower.sources = {other: side.widths for other, side in towers.items() if other != name}
    model = Model({head: MeanLogProbability([net.heads[head] for net in nets], towers[decoder].widths)}, **towers)  # type: ignore[arg-type]
    model.kernel = nets[0].kernel
    return model.train(nets[0].training)


def width(tower: Tower) -> int:
    """D of the vectors that a tower gives."""
    return [part for part in tower.modules() if isinstance(part, Attention)][-1].o_proj.weight.shape[0]


def unlike(net: Model, first: Model, head: str) -> list[tuple[str, str]]:
    """(its own, the first's) of what differs and must not."""

    def facts(model: Model) -> list[str]:
        parameter = next(model.parameters())
        scores = getattr(model.heads[head], "weight", None) if head in model.heads else None
        return [
            f"the towers {', '.join(model.towers)}",
            f"no head {head!r}" if head not in model.heads else f"{'?' if scores is None else scores.shape[0]} ids",
            f"weights of {parameter.dtype}".replace("torch.", ""),
            f"weights on {parameter.device}",
        ]

    return [(theirs, ours) for theirs, ours in zip(facts(net), facts(first), strict=True) if theirs != ours]
