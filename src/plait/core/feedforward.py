"""Feed-forward steps: plain (Vaswani et al. 2017, section 3.3) and gated (Shazeer 2020)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from plait.core.dropout import Dropout
from plait.core.linear import Linear, project
from plait.core.stream import Call

Activation = Callable[[Tensor], Tensor]


def relu(x: Tensor) -> Tensor:
    return F.relu(x)


def gelu(x: Tensor) -> Tensor:
    """x Φ(x) (Hendrycks & Gimpel 2016)."""
    return F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU (GPT-2)."""
    return F.gelu(x, approximate="tanh")


def silu(x: Tensor) -> Tensor:
    """x σ(x), also called swish."""
    return F.silu(x)


class _ReLU2(torch.autograd.Function):
    """relu(x)² that keeps one tensor and goes back in two passes, half of what square() after relu() takes."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable  # a second derivative would be wrong without a word
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        (positive,) = ctx.saved_tensors
        return (grad * positive).mul_(2)


def relu2(x: Tensor) -> Tensor:
    """relu(x)² (Primer, So et al. 2021)."""
    return _ReLU2.apply(x)  # type: ignore[return-value]


class FFN(nn.Module):
    """down(activation(up(x))); with `gated`, down(activation(gate(x)) * up(x))."""

    def __init__(
        self, d_model: int, d_ff: int, activation: Activation = relu, *, gated: bool = False, bias: bool = True, dropout: float = 0.0
    ):
        super().__init__()
        self.activation = activation
        self.up_proj = Linear(d_model, d_ff, bias)
        self.gate_proj = Linear(d_model, d_ff, bias) if gated else None
        self.down_proj = Linear(d_ff, d_model, bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "B L D"], call: Call | None = None, path: tuple = ()) -> Float[Tensor, "B L D"]:
        if self.gate_proj is None:
            hidden = self.activation(self.up_proj(x))  # [B, L, F]
        else:
            gate, up = project(x, self.gate_proj, self.up_proj)
            hidden = self.activation(gate) * up
        return self.down_proj(self.dropout(hidden))
