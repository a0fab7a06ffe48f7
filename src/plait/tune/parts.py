"""The small parts that stand on a frozen layer (`core.adapted.Adapted`): low-rank products, scales, bottlenecks.

A part is called as part(layer, x [..., d_in]) -> [..., d_out]. Those that are a change of the layer's own weights give them:
`merged(weight, bias)`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core import init
from plait.core.dropout import Dropout
from plait.core.feedforward import Activation
from plait.core.linear import Linear


class LowRank(nn.Module):
    """LoRA (Hu et al. 2021, section 4.1): W x + b + scale * B A x."""

    def __init__(self, d_in: int, d_out: int, rank: int, scale: float, dropout: float = 0.0):
        super().__init__()
        self.scale = scale
        self.a = nn.Parameter(torch.empty(rank, d_in))
        self.b = nn.Parameter(torch.zeros(d_out, rank))
        self.dropout = Dropout(dropout)
        init.uniform_(self.a, -(d_in**-0.5), d_in**-0.5)

    def added(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(self.dropout(x), self.a.to(x.dtype)).mul_(self.scale), self.b.to(x.dtype))

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x).add_(self.added(x))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.scale * (self.b.to(weight.dtype) @ self.a.to(weight.dtype)), bias


class Directed(LowRank):
    """DoRA (Liu et al. 2024, section 4.1): each row of W + scale * B A has the length `m`, at first that of W.

    The way back goes through the direction as if its length were given (section 4.3).
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, dropout: float = 0.0):
        d_out, d_in = weight.shape
        super().__init__(d_in, d_out, rank, scale, dropout)
        self.m = nn.Parameter(self.lengths(weight.detach()))

    def lengths(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            return LowRank.merged(self, weight, None)[0].norm(dim=1)

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        y, bias = layer(x), layer.bias
        rate = (self.m / self.lengths(layer.weight)).to(x.dtype)  # type: ignore[arg-type]
        bare = y if bias is None else y - bias
        return y + (rate - 1) * bare + rate * self.added(x)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        whole = super().merged(weight, bias)[0]
        return (self.m.to(weight.dtype) / whole.norm(dim=1))[:, None] * whole, bias


class Scaled(nn.Module):
    """(IA)3 (Liu et al. 2022, section 3.3): a factor for each channel of what the layer gives, or of what it is given."""

    def __init__(self, d: int, inputs: bool):
        super().__init__()
        self.inputs = inputs
        self.factor = nn.Parameter(torch.ones(d))

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        factor = self.factor.to(x.dtype)
        return layer(x * factor) if self.inputs else layer(x) * factor

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        factor = self.factor.to(weight.dtype)
        if self.inputs:
            return weight * factor, bias
        return weight * factor[:, None], None if bias is None else bias * factor


class Bottleneck(nn.Module):
    """An adapter (Houlsby et al. 2019, section 2.1): y + up(activation(down(y))) on what the layer gives."""

    def __init__(self, d: int, width: int, activation: Activation):
        super().__init__()
        self.down, self.up, self.activation = Linear(d, width), Linear(width, d), activation
        init.zeros_(self.up.weight)

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        y = layer(x)
        return y + self.up(self.activation(self.down(y)))
