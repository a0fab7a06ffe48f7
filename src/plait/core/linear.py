"""The one weight matrix of the library: every projection of every model is a `Linear`, so that passes (LoRA, int8, sharding) meet it here."""

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
    plain = all(type(layer) is Linear and not (layer._forward_hooks or layer._forward_pre_hooks) for layer in layers)
    if not plain or len(layers) < 2 or x.numel() // x.shape[-1] < 128:
        return [layer(x) for layer in layers]
    weight = torch.cat([layer.weight for layer in layers])
    biases = [layer.bias for layer in layers]
    bias = None
    if any(b is not None for b in biases):
        bias = torch.cat([b if b is not None else x.new_zeros(layer.weight.shape[0]) for b, layer in zip(biases, layers, strict=True)])
    return F.linear(x, weight, bias).split([layer.weight.shape[0] for layer in layers], dim=-1)
