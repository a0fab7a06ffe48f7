"""The logit lens: what a model would say if it stopped after each block (nostalgebraist 2020)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plait.core.heads import Pooled
from plait.core.stream import Stream
from plait.inspect.record import recorded
from plait.inspect.taps import ready


@dataclass(frozen=True)
class Lens:
    """The likeliest of what a head chooses among, [layers, B, L, k]; of a head that reads whole rows [layers, B, k]."""

    ids: Tensor
    chances: Tensor


def layers(model: Any, head: str, tower: str | None = None, **streams: Tensor | Stream) -> Iterator[Any]:
    """What the head says of the stream behind each block, put through the tower's last norm; of the last block what it always says.

    `tower`: the one that the head reads, the last one unless given. A head that pools reads whole rows; others each entry.
    """
    net = ready(model)
    tower = tower or net.towers[-1]
    seen, finished = recorded(net, f"{tower}.blocks.*", **streams)
    part: Any = net.get_submodule(tower)
    speaker = net.heads[head]
    for found in seen.values():
        with torch.no_grad():
            x = found[:, found.shape[1] - finished[tower].length :]  # without learned entries before the input's
            s = finished[tower].having(x=x if part.norm is None else part.norm(x))
            yield speaker(speaker.pool(s) if isinstance(speaker, Pooled) else s.x)


def lens(model: Any, head: str, k: int = 5, tower: str | None = None, **streams: Tensor | Stream) -> Lens:
    """The `k` likeliest behind each block: tokens, classes, or of a detection head each query's classes. One layer's scores are held."""
    found = []
    for scores in layers(model, head, tower, **streams):
        scores = scores[0] if isinstance(scores, tuple) else scores
        found.append(scores.float().softmax(-1).topk(min(k, scores.shape[-1])))
    return Lens(torch.stack([top.indices for top in found]), torch.stack([top.values for top in found]))
