"""Positions as a bias on the attention scores: T5's buckets, ALiBi's slopes, Shaw's relative positions.

A bias is called as bias(q [B, H, L, K] or None, places of queries, places of keys) -> broadcastable to [B, H, L, S].
`fixed` ones do not look at q: they are made once a forward and merged with the mask.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plait.core import init
from plait.core.stream import Places


def distance(q: Places, k: Places) -> Tensor:
    """Slot of the key minus slot of the query, [L, S]."""
    return k.slots[None, :] - q.slots[:, None]


class RelativeBias(nn.Module):
    """T5's relative positions: one learned number a head for each bucket of distances (Raffel et al. 2020, section 2.1).

    Half of the buckets are for exact distances, the others grow logarithmically up to `max_distance`; what lies beyond shares the
    last. Without `causal` the buckets are split between the past and the future. One table serves a whole side: lend it to the layers.
    """

    fixed = True

    def __init__(self, n_heads: int, buckets: int = 32, max_distance: int = 128, causal: bool = False):
        super().__init__()
        self.buckets, self.max_distance, self.causal = buckets, max_distance, causal
        self.weight = nn.Parameter(torch.empty(buckets, n_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.normal_(self.weight, std=0.02)

    def bucket(self, distance: Tensor) -> Tensor:
        buckets, start = self.buckets, 0
        if self.causal:
            back = (-distance).clamp_min(0)
        else:
            buckets //= 2
            start = (distance > 0).long() * buckets
            back = distance.abs()
        exact = buckets // 2
        far = torch.log(back.clamp_min(1).float() / exact) / math.log(self.max_distance / exact) * (buckets - exact)
        return start + torch.where(back < exact, back, (exact + far.long()).clamp_max(buckets - 1))

    def forward(self, q: Tensor | None, q_places: Places, k_places: Places) -> Float[Tensor, "1 H L S"]:
        return self.weight[self.bucket(distance(q_places, k_places))].permute(2, 0, 1)[None]


class ALiBi:
    """A penalty that grows linearly with distance, with a slope of its own for each head (Press et al. 2022, section 3).

    Slopes are 2^(-8i/n) for n heads, a power of two; other counts take every second slope of the next power.
    """

    fixed = True

    def __init__(self, n_heads: int):
        whole = 2 ** math.floor(math.log2(n_heads))
        slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
        slopes += [2 ** (-4 * (2 * i + 1) / whole) for i in range(n_heads - whole)]
        self.slopes = slopes

    def __call__(self, q: Tensor | None, q_places: Places, k_places: Places) -> Float[Tensor, "1 H L S"]:
        slopes = torch.tensor(self.slopes, device=q_places.device)[:, None, None]
        return (-slopes * distance(q_places, k_places).abs())[None]


class Shaw(nn.Module):
    """Relative positions of Shaw et al. 2018 (equation 4): the score gains q · a[distance] * scale, distances clipped to `max_distance`.

    The table is shared by the heads and belongs to its layer. The paper's second table, added to the values (equation 3), is left
    out: its own ablation (table 3) finds no gain from it.
    """

    fixed = False

    def __init__(self, d_head: int, max_distance: int = 16, scale: float | None = None):
        super().__init__()
        self.max_distance, self.scale = max_distance, d_head**-0.5 if scale is None else scale
        self.weight = nn.Parameter(torch.empty(2 * max_distance + 1, d_head))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.xavier_uniform_(self.weight)

    def forward(self, q: Tensor, q_places: Places, k_places: Places) -> Float[Tensor, "B H L S"]:
        clipped = distance(q_places, k_places).clamp(-self.max_distance, self.max_distance) + self.max_distance
        scores = q @ self.weight.T * self.scale  # [B, H, L, 2m + 1]
        return scores.gather(-1, clipped.expand(*scores.shape[:-1], -1))


class SomeHeads(nn.Module):
    """A `fixed` bias for some of the heads it was made for, [1, H, L, S] of them: of a lent table each layer may have kept others."""

    fixed = True

    def __init__(self, bias: Any, heads: Sequence[int]):
        super().__init__()
        self.bias, self.heads = bias, list(heads)

    def forward(self, q: Tensor | None, q_places: Places, k_places: Places) -> Float[Tensor, "1 H L S"]:
        return self.bias(q, q_places, k_places)[:, self.heads]
