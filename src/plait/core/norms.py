"""Normalisation: LayerNorm and RMSNorm, with or without learned gain and bias."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016): y = (x - mean) / sqrt(var + eps) * weight + bias, over the last axis."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, d: int, eps: float = 1e-5, gain: bool = True, bias: bool = True):
        super().__init__()
        self.eps = eps
        self.d = d
        self.register_parameter("weight", nn.Parameter(torch.ones(d)) if gain else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(d)) if gain and bias else None)

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return F.layer_norm(x, (self.d,), self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang & Sennrich 2019): y = x / sqrt(mean(x²) + eps) * (offset + weight).

    `offset=1` is Gemma's form, whose stored gain starts at zero.
    """

    weight: nn.Parameter | None

    def __init__(self, d: int, eps: float = 1e-6, gain: bool = True, offset: float = 0.0):
        super().__init__()
        self.eps, self.offset, self.d = eps, offset, d
        self.register_parameter("weight", nn.Parameter(torch.full((d,), 1.0 - offset)) if gain else None)

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.constant_(self.weight, 1.0 - self.offset)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        weight = self.weight if self.weight is None or not self.offset else self.weight + self.offset
        return F.rms_norm(x, (self.d,), weight, self.eps)
