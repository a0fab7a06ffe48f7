"""Heads: from hidden vectors to scores, applied to the rows that are asked for."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from plait.core import init
from plait.core.linear import Multiplied
from plait.core.stream import Lent, Stream

FEW = 128  # rows


class Tied(nn.Module):
    """Scores against the rows of an embedding (Press & Wolf 2017): h Eᵀ · scale (+ bias). The embedding stays with its owner."""

    bias: nn.Parameter | None
    packed: Multiplied | None = None

    def __init__(self, tokens: Any, scale: float = 1.0, bias: bool = False):
        super().__init__()
        self.tokens, self.scale = Lent(tokens), scale
        self.register_parameter("bias", nn.Parameter(torch.zeros(tokens.weight.shape[0])) if bias else None)

    @property
    def weight(self) -> Tensor:  # [V, D]
        return self.tokens.weight

    def reset_parameters(self) -> None:
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        hidden = hidden if self.scale == 1.0 else hidden * self.scale
        if self.packed is not None and self.packed.serves(hidden, self.weight):
            return self.packed(hidden, self.bias)
        few = hidden.ndim == 2 and len(hidden) <= FEW and hidden.device.type == "cpu" and not torch.is_grad_enabled()
        if not few:
            return F.linear(hidden, self.weight, self.bias)
        # Decoding: with few rows the other order of the same product is quicker on a CPU (docs/log.md); scores then lie by columns.
        scores = torch.mm(self.weight, hidden.t()).t()
        return scores if self.bias is None else scores.add_(self.bias)


class Transformed(nn.Module):
    """Scores of a vector that is first projected, activated and normed: BERT's masked language model (Devlin et al. 2019, section 3.1)."""

    def __init__(self, dense: nn.Module, activation: Callable[[Tensor], Tensor], norm: nn.Module, scores: nn.Module):
        super().__init__()
        self.dense, self.activation, self.norm, self.scores = dense, activation, norm, scores

    def forward(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return self.scores(self.norm(self.activation(self.dense(hidden))))


class Pooled(nn.Module):
    """Scores of one vector [B, W] a row, which `pool` makes of a finished stream."""

    def __init__(self, pool: Callable[[Stream], Tensor], scores: nn.Module):
        super().__init__()
        self.pool, self.scores = pool, scores

    def forward(self, vectors: Float[Tensor, "... W"]) -> Float[Tensor, "... V"]:
        return self.scores(vectors)


def first(s: Stream) -> Tensor:
    """The first entry's vector [B, D]: what a class token is for."""
    return s.x[:, 0]


def grid_mean(s: Stream) -> Tensor:
    """The mean vector [B, D] of the entries of the grid (which stand last), of the real ones."""
    n = math.prod(s.grid or (s.length,))
    x = s.x[:, -n:]
    if s.real is None:
        return x.mean(1)
    real = s.real[:, -n:, None].to(x.dtype)
    return (x * real).sum(1) / real.sum(1).clamp_min(1)


def pooled(head: nn.Module, s: Stream) -> Tensor:
    """What a head that scores whole rows reads of a finished stream: what its `pool` makes of it, else the first entry's vector."""
    return getattr(head, "pool", first)(s)
