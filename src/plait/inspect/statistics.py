"""What neurons and heads do over a data set, in memory that does not grow with it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plait.core.attention import CrossAttention
from plait.core.stream import Stream
from plait.inspect.record import recorded
from plait.inspect.taps import attentions, chosen, ready

Batches = Iterable[Mapping[str, Tensor | Stream]]  # streams by tower


@dataclass
class Neurons:
    """Of each unit of a place: mean, largest value and how often it is above 0, [F] each, and where it was largest.

    `top` [k, F] are its largest values, the first one the largest, `rows` and `positions` [k, F] the data set's row and the entry.
    """

    entries: int
    mean: Tensor
    active: Tensor
    top: Tensor
    rows: Tensor
    positions: Tensor

    @property
    def most(self) -> Tensor:
        return self.top[0]


@dataclass
class Heads:
    """Of each head [H], the mean over queries: entropy of its weights in nats, how far away it looks in entries, and the share of its
    weight on the first entry and on the one before. Over another tower's entries the last three mean nothing and are NaN."""

    queries: int
    entropy: Tensor
    distance: Tensor
    first: Tensor
    previous: Tensor


def prompt_of(s: Stream) -> int:
    """How many learned entries stand before a finished stream's own."""
    return 0 if s.prompt is None else s.prompt.shape[1]


def real_of(s: Stream, rows: int, length: int) -> Tensor:
    """[rows, length] which of the entries count, which a prompt does not; where a step cuts its stream into other rows all do."""
    found, before = torch.ones(rows, length, dtype=torch.bool, device=s.x.device), prompt_of(s)
    if (rows, length - before) == s.x.shape[:2]:
        found[:, :before] = False
        found[:, before:] &= True if s.real is None else s.real
    return found


def neurons(model: Any, batches: Batches, pattern: str = "**.ffn.hidden", k: int = 5) -> dict[str, Neurons]:
    """Name -> `Neurons` of every place [B, L, F] that matches, each row of the batches counted on from 0."""
    net, found, start = ready(model), dict[str, Neurons](), 0
    chosen(net, [pattern])
    for streams in batches:
        seen, finished = recorded(net, pattern, **streams)
        for name, x in seen.items():
            rows, length, width = x.shape
            s = finished[name.partition(".")[0]]
            real = real_of(s, rows, length).flatten()
            x, at = x.flatten(0, 1)[real], torch.arange(rows * length, device=x.device)[real]
            was = found.get(name) or Neurons(0, x.new_zeros(width).double(), x.new_zeros(width).double(), *(x[:0] for _ in range(3)))
            n = was.entries + len(x)
            mean = (was.mean * was.entries + x.double().sum(0)) / n
            active = (was.active * was.entries + (x > 0).double().sum(0)) / n
            places = [part[:, None].expand_as(x) for part in (start + at // length, at % length - prompt_of(s))]
            top, order = torch.cat([was.top, x]).topk(min(k, len(was.top) + len(x)), 0)
            both = [torch.cat([old.long(), new]).gather(0, order) for old, new in zip((was.rows, was.positions), places, strict=True)]
            found[name] = Neurons(n, mean, active, top, *both)
        start += len(next(iter(finished.values())).x)
    return found


def heads(model: Any, batches: Batches, pattern: str = "**.pattern") -> dict[str, Heads]:
    """Attention's name -> `Heads` of every one whose weights match."""
    net, found = ready(model), dict[str, Heads]()
    chosen(net, [pattern])
    parts = attentions(net)
    for streams in batches:
        seen, finished = recorded(net, pattern, **streams)
        for name, weights in seen.items():
            step, (rows, _, length, slots) = name.removesuffix(".pattern"), weights.shape
            real = real_of(finished[name.partition(".")[0]], rows, length)
            weights = weights.transpose(1, 2)[real].double()  # [N, H, S]
            measured = [torch.special.entr(weights).sum(-1)]
            if isinstance(parts[step], CrossAttention):
                measured += [torch.full_like(measured[0], torch.nan)] * 3
            else:
                before = slots - length  # learned keys stand before the entries
                query = torch.arange(length, device=weights.device).expand(rows, -1)[real]  # [N]
                away = (query[:, None] + before - torch.arange(slots, device=weights.device)).abs().to(weights)
                last = (query + before - 1).clamp_min(0)[:, None, None].expand(-1, weights.shape[1], 1)
                previous = weights.gather(-1, last)[..., 0] * (query > 0)[:, None]
                measured += [torch.einsum("nhs,ns->nh", weights, away), weights[..., before], previous]
            was = found.get(step) or Heads(
                0, *(torch.zeros(weights.shape[1], dtype=torch.float64, device=weights.device) for _ in range(4))
            )
            n = was.queries + len(weights)
            old = (was.entropy, was.distance, was.first, was.previous)
            found[step] = Heads(n, *((a * was.queries + b.sum(0)) / n for a, b in zip(old, measured, strict=True)))
    return found
