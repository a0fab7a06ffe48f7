"""Feed-forward steps: plain (Vaswani et al. 2017, section 3.3) and gated (Shazeer 2020)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from plait.core import fused
from plait.core.dropout import Dropout
from plait.core.linear import Linear, affine, plain, project
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


def quick_gelu(x: Tensor) -> Tensor:
    """x σ(1.702 x), the other approximation of GELU (Hendrycks & Gimpel 2016, section 2)."""
    return x * torch.sigmoid(1.702 * x)


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


# A config, which must be able to stand in a file, names its activation; a block takes the function.
ACTIVATIONS: dict[str, Activation] = {f.__name__: f for f in (relu, relu2, gelu, gelu_tanh, quick_gelu, silu)}


# Those that fused.c knows, by its numbers; ReLU needs no help.
FUSED: dict[Activation, int] = {relu2: 2, gelu: 3, gelu_tanh: 4, silu: 5, quick_gelu: 6}


class _FusedFFN(torch.autograd.Function):
    """f(x Uᵀ + a) Dᵀ + b for rows x [N, D], with few passes over the widest tensors of a model.

    ReLU works in place both ways. Of the others (`FUSED`) the derivative takes the place of x Uᵀ, so that going back is one product.
    """

    @staticmethod
    def forward(ctx, x: Tensor, up: Tensor, a: Tensor | None, down: Tensor, b: Tensor | None, kind: int | None) -> Tensor:
        if kind is None:
            slope, hidden = None, affine(x, up, a).relu_()
        else:
            slope = torch.mm(x, up.t())
            hidden = fused.activated(kind, slope, a)
        wanted = ctx.needs_input_grad  # beside frozen weights their inputs are not needed
        ctx.save_for_backward(x if wanted[1] else None, hidden if wanted[3] or slope is None else None, slope, up, down)
        return affine(hidden, down, b)

    @staticmethod
    @once_differentiable  # a second derivative would be wrong without a word
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, hidden, slope, up, down = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        grad_down = grad.T @ hidden if wanted[3] else None
        inner = grad @ down
        if slope is None:
            torch.ops.aten.threshold_backward.grad_input(inner, hidden, 0, grad_input=inner)
            sums = inner.sum(0) if wanted[2] else None
        else:
            sums = fused.scaled(inner, slope)
        return (
            inner @ up if wanted[0] else None,
            inner.T @ x if wanted[1] else None,
            sums if wanted[2] else None,
            grad_down,
            grad.sum(0) if wanted[4] else None,
            None,
        )


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
        if self.in_place(x):
            up, down = self.up_proj, self.down_proj
            y = _FusedFFN.apply(x.flatten(0, -2), up.weight, up.bias, down.weight, down.bias, FUSED.get(self.activation))
            return y.view(*x.shape[:-1], -1)  # type: ignore[union-attr]
        if self.gate_proj is None:
            hidden = self.activation(self.up_proj(x))  # [B, L, F]
        else:
            gate, up = project(x, self.gate_proj, self.up_proj)
            hidden = self.activation(gate) * up
        return self.down_proj(self.dropout(hidden))

    def in_place(self, x: Tensor) -> bool:
        """Whether the hidden vectors are nobody else's business: plain weights, no hook on them, no dropout between."""
        if self.gate_proj is not None or (self.training and self.dropout.p) or not (plain(self.up_proj) and plain(self.down_proj)):
            return False
        if self.activation is relu:
            return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        return self.activation in FUSED and fused.serves(x, self.up_proj.weight, self.down_proj.weight)
