"""Normalisation: LayerNorm and RMSNorm, with or without learned gain and bias."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from plait.core import init


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
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return F.layer_norm(x, (self.d,), self.weight, self.bias, self.eps)


class _RootMeanSquare(torch.autograd.Function):
    """x / sqrt(mean(x²) + eps), with a backward in three passes: torch's own takes some ten on a CPU, 7x the time (docs/log.md)."""

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> Tensor:
        rate = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y = x * rate
        ctx.save_for_backward(y, rate)
        return y

    @staticmethod
    @once_differentiable  # a second derivative would be wrong without a word
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        y, rate = ctx.saved_tensors
        along = torch.linalg.vecdot(grad, y).unsqueeze(-1).div_(-y.shape[-1])
        return torch.addcmul(grad, y, along).mul_(rate), None


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
            init.constant_(self.weight, 1.0 - self.offset)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        weight = self.weight if self.weight is None or not self.offset else self.weight + self.offset
        if x.device.type == "cpu" and x.requires_grad and torch.is_grad_enabled():
            y = _RootMeanSquare.apply(x, self.eps)
            return y if weight is None else y * weight  # type: ignore[operator]
        return F.rms_norm(x, (self.d,), weight, self.eps)
