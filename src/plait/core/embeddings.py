"""Embeddings: an ordered list of parts, each turning a stream into a stream."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from plait.core import init
from plait.core.dropout import dropout
from plait.core.stream import Stream


class Tokens(nn.Module):
    """Token ids [B, L] -> vectors [B, L, D], times `scale` (sqrt(d_model) in Vaswani et al. 2017, section 3.4)."""

    def __init__(self, vocab_size: int, d_model: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))
        self.reset_parameters()

    @property
    def size(self) -> tuple[int, int]:
        """(vocabulary, d_model), without touching the values, which a quantised embedding would have to compute."""
        return self.weight.shape[0], self.weight.shape[1]

    def reset_parameters(self) -> None:
        init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)

    def forward(self, s: Stream) -> Stream:
        x = F.embedding(s.x, self.weight)
        return s.having(x=x if self.scale == 1.0 else x * self.scale)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} x {self.weight.shape[1]}, scale={self.scale:g}"


class Types(nn.Module):
    """Adds a learned vector for each entry's second id: the first or the second text (BERT, Devlin et al. 2019, section 3.2)."""

    def __init__(self, types: int, d_model: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(types, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.normal_(self.weight, std=0.02)

    def forward(self, s: Stream) -> Stream:
        return s.having(x=s.x + (self.weight[0] if s.types is None else F.embedding(s.types, self.weight)))


class Each(nn.Module):
    """A module on vectors (a norm, a projection) as a part of an embedding."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, s: Stream) -> Stream:
        return s.having(x=self.part(s.x))


class Dropped(nn.Module):
    """Dropout on the sum of embeddings and positions (Vaswani et al. 2017, section 5.4)."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, s: Stream) -> Stream:
        return s.having(x=dropout(s.x, self.p, self.training)) if self.p else s


class Embed(nn.Module):
    """Parts by name, in running order. A part that another tower owns comes as `Lent`, one without weights as any callable.

    `takes` is what its first part that says so is given: "ids", "pixels" [B, C, H, W] or "clips" [B, T, C, H, W].
    """

    def __init__(self, **parts: Any):
        super().__init__()
        self.parts = tuple(parts)
        self.takes: str = next((part.takes for part in parts.values() if hasattr(part, "takes")), "ids")
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, s: Stream) -> Stream:
        for name in self.parts:
            s = getattr(self, name)(s)
        return s
