"""How much of a score each entry of each tower's input makes: gradient x input and integrated gradients.

What is divided among entries is the content [B, L, D] that a tower's embedding puts out, of words, patches, frames and queries alike.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from plait.core.heads import pooled
from plait.core.model import Model
from plait.core.stream import Stream
from plait.inspect.taps import evaluating, ready, tapped

Score = Callable[[dict[str, Stream]], Tensor]  # finished streams -> [B], or several of them [B, T]
Streams = Mapping[str, Tensor | Stream]


def entry_score(net: Model, head: str, position: int, which: int, tower: str | None = None) -> Score:
    """The head's score `which` of one entry: of a token behind `position`, of a tag, of an object query's class."""

    def score(streams: dict[str, Stream]) -> Tensor:
        found = net.heads[head](streams[tower or net.towers[-1]].x[:, position])
        return (found[0] if isinstance(found, tuple) else found)[..., which]

    return score


def whole_score(net: Model, head: str, which: int, tower: str | None = None) -> Score:
    """The head's score `which` of a whole row, such as a class of a text or of a picture."""
    return lambda streams: net.heads[head](pooled(net.heads[head], streams[tower or net.towers[-1]]))[..., which]


@contextmanager
def embedded(net: Model, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the towers read these contents instead of what their embeddings put out."""
    with tapped(net, {f"{tower}.embed": lambda _, value=value: value for tower, value in values.items()}):
        yield


def contents(net: Model, streams: Streams) -> dict[str, Tensor]:
    """What each tower's embedding puts out [B, L, D]."""
    found: dict[str, Tensor] = {}
    with torch.no_grad(), tapped(net, {f"{tower}.embed": lambda x, tower=tower: found.__setitem__(tower, x) for tower in streams}):
        net(**streams)
    return found


def gradients(net: Model, score: Score, streams: Streams, at: Mapping[str, Tensor]) -> tuple[list[dict[str, Tensor]], Tensor]:
    """(of each score the gradients [B, L, D] by tower, the scores [B, T]) where the embeddings put out `at`."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {tower: x.clone().requires_grad_() for tower, x in at.items()}
        with embedded(net, leaves):
            scores = score(net(**streams))
        scores = scores[:, None] if scores.ndim == 1 else scores
        found = []
        for number, one in enumerate(scores.unbind(1)):
            again = number + 1 < scores.shape[1]
            slopes = torch.autograd.grad(one.sum(), list(leaves.values()), retain_graph=again, allow_unused=True)
            pairs = zip(leaves.items(), slopes, strict=True)
            found.append({tower: torch.zeros_like(x) if slope is None else slope for (tower, x), slope in pairs})
    return found, scores.detach()


def gradient(model: Any, score: Score, **streams: Tensor | Stream) -> dict[str, Tensor]:
    """Gradient x input (Shrikumar et al. 2016): by tower [B, L], of several scores [B, T, L]. Their sum is the first-order share."""
    net = ready(model)
    with evaluating(net):
        at = contents(net, streams)
        found, _ = gradients(net, score, streams, at)
    return {tower: squeezed([(slopes[tower] * x).sum(-1) for slopes in found]) for tower, x in at.items()}


def integrated(
    model: Any, score: Score, steps: int = 32, baseline: Mapping[str, Tensor] | None = None, **streams: Tensor | Stream
) -> tuple[dict[str, Tensor], Tensor]:
    """Integrated gradients (Sundararajan et al. 2017, section 3): (by tower [B, L] or [B, T, L], what is left unexplained [B] or [B, T]).

    The way leads from the `baseline` (by tower, broadcastable to [B, L, D]; else the mean of each row's entries, which says what an
    entry usually is and nothing of this one) straight to the content, in `steps` of Gauss and Legendre. Along it the entries' shares add
    up to score(content) - score(baseline); what is left unexplained is by how much they miss that, and says whether `steps` suffice.
    """
    net = ready(model)
    nodes, weights = legendre(steps)
    with evaluating(net):
        ends = contents(net, streams)
        starts = {tower: (baseline or {}).get(tower, x.mean(1, keepdim=True)).to(x).expand_as(x) for tower, x in ends.items()}
        sums: list[dict[str, Tensor]] = []
        for node, weight in zip(nodes, weights, strict=True):
            found, _ = gradients(net, score, streams, {tower: starts[tower].lerp(x, node) for tower, x in ends.items()})
            sums = [{tower: was[tower] + weight * now[tower] for tower in now} for was, now in zip(sums, found)] or [
                {tower: weight * slope for tower, slope in now.items()} for now in found
            ]
        (_, last), (_, first) = (gradients(net, score, streams, at) for at in (ends, starts))
    shares = {tower: [(total[tower] * (x - starts[tower])).sum(-1) for total in sums] for tower, x in ends.items()}
    explained = sum(torch.stack([one.sum(-1) for one in some], 1) for some in shares.values())  # [B, T]
    gap = last - first - explained
    return {tower: squeezed(some) for tower, some in shares.items()}, gap[:, 0] if gap.shape[1] == 1 else gap


def squeezed(some: list[Tensor]) -> Tensor:
    return some[0] if len(some) == 1 else torch.stack(some, 1)


def legendre(n: int) -> tuple[list[float], list[float]]:
    """Nodes in 0 to 1 and weights of Gauss and Legendre: exact for polynomials up to degree 2n - 1."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(n)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()
