"""A layer with a small part on it: what tuning puts in the place of a `Linear` or a `QuantisedLinear` (`plait.tune`)."""

from jaxtyping import Float
from torch import Tensor, nn

from plait.core.stream import Lent


class Adapted(nn.Module):
    """part(layer, x) in place of layer(x). The part is lent: whoever tunes the model owns it, and may take it out again."""

    def __init__(self, layer: nn.Module, part: nn.Module):
        super().__init__()
        self.layer, self.part = layer, Lent(part)

    @property
    def weight(self) -> Tensor:
        """The layer's own, which tells its shape; what the part adds is not in it."""
        return self.layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias  # type: ignore[return-value]

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        return self.part(self.layer, x)
