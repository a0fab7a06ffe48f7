"""The one weight matrix of the library: every projection is a `Linear`, so that passes (LoRA, int8, sharding) meet it here."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Linear(nn.Module):
    """y = x Wᵀ + b with `weight` [d_out, d_in] (as `torch.nn.Linear` and released files store it)."""

    bias: nn.Parameter | None

    def __init__(self, d_in: int, d_out: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.register_parameter("bias", nn.Parameter(torch.empty(d_out)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weight (the initialisation of the 2017 reference code), zero bias; a model's page may set its own."""
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}, bias={self.bias is not None}"


def project(x: Float[Tensor, "... d_in"], *layers: nn.Module) -> Sequence[Tensor]:
    """Each layer applied to the same x; plain `Linear`s share one matrix product, whatever else stands there is called by itself.

    Joining the weights costs one copy of them, which is small beside the product from a few dozen rows on; below that
    (single-token decoding) reading the weights is the whole cost and they are left where they are.
    """
    plain = [layer for layer in layers if type(layer) is Linear and not (layer._forward_hooks or layer._forward_pre_hooks)]
    if len(plain) < len(layers) or len(layers) < 2 or x.numel() // x.shape[-1] < 128:
        return [layer(x) for layer in layers]
    widths = [layer.weight.shape[0] for layer in plain]
    bias = None
    if any(layer.bias is not None for layer in plain):
        bias = torch.cat([x.new_zeros(width) if layer.bias is None else layer.bias for layer, width in zip(plain, widths, strict=True)])
    return F.linear(x, torch.cat([layer.weight for layer in plain]), bias).split(widths, dim=-1)
