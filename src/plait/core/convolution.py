"""Convolutions before a Transformer: each with its norm and a ReLU, what is real told from padding."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core import init
from plait.core.norms import LayerNorm

OPS: Any = torch.ops.mkldnn
FUSES = torch.backends.mkldnn.is_available() and hasattr(OPS, "_convolution_pointwise") and hasattr(OPS, "_reorder_convolution_weight")
Levels = dict[torch.Size, Tensor]  # of each size of map (h, w): which of its places are real, [B, 1, h, w] bool


class FrozenBatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) with statistics, gain and bias that are stored and never learn: one scale, one shift."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, d: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.empty(d))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for name, start in (("weight", init.ones_), ("bias", init.zeros_), ("running_mean", init.zeros_), ("running_var", init.ones_)):
            start(getattr(self, name))

    def forward(self, x: Tensor, levels: Levels | None = None) -> Tensor:
        """[B, C, H, W]; padding is treated as pixels are, as the released models were trained."""
        scale, shift = self.affine()
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None])

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel, [C]."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class ChannelNorm(LayerNorm):
    """LayerNorm over the channels of each place: for learning from small batches, where a batch's statistics are noise.

    Padding is put back to zero, which is what convolutions see beyond a border: a padded picture gives what it gives alone.
    """

    def forward(self, x: Tensor, levels: Levels | None = None) -> Tensor:
        """[B, C, H, W]"""
        y = super().forward(x.movedim(1, -1)).movedim(-1, 1)
        return y if levels is None else y * levels[y.shape[-2:]]


class Conv(nn.Conv2d):
    """A convolution without bias that keeps the size, but for its stride; weights drawn as He et al. (2015) do."""

    def __init__(self, d_in: int, d_out: int, size: int, stride: int = 1, dilation: int = 1):
        super().__init__(d_in, d_out, size, stride, size // 2 * dilation, dilation, bias=False)

    def reset_parameters(self) -> None:
        init.normal_(self.weight, std=(2 / (self.out_channels * self.weight[0, 0].numel())) ** 0.5)


class Unit(nn.Module):
    """relu(norm(conv(x)) + beside), [B, C, H, W] -> [B, C', H / stride, W / stride]; without the ReLU where it is not `activated`."""

    folded: "Folded | None" = None

    def __init__(self, conv: Conv, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.conv, self.norm = conv, norm(conv.out_channels)

    def forward(self, x: Tensor, levels: Levels | None, beside: Tensor | None = None, activated: bool = True) -> Tensor:
        if Folded.possible(self, x):
            if self.folded is None or self.folded.of != Folded.mark(self):
                self.folded = Folded(self, x)
            return self.folded(x, beside, activated)
        y = self.norm(self.conv(x), levels)
        y = y if beside is None else y + beside
        return F.relu(y) if activated else y


class Folded:
    """A unit whose norm is frozen, as one convolution of oneDNN with what follows it, on a CPU and without gradients.

    The norm's scale is in a copy of the weights, which lies as oneDNN wants it. The numbers are the same up to rounding.
    """

    def __init__(self, unit: Unit, x: Tensor):
        self.of, conv = self.mark(unit), unit.conv
        scale, shift = unit.norm.affine()  # type: ignore[operator]
        weight, self.bias = (conv.weight * scale[:, None, None, None]).detach(), shift.detach()
        self.how = [list(conv.padding), list(conv.stride), list(conv.dilation), 1]  # type: ignore[arg-type]
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.how, list(x.shape))

    @staticmethod
    def parts(unit: Unit) -> list[Tensor]:
        return [unit.conv.weight, *unit.norm.buffers()]

    @staticmethod
    def mark(unit: Unit) -> list[tuple[int, int]]:
        return [(part.data_ptr(), part._version) for part in Folded.parts(unit)]

    @staticmethod
    def possible(unit: Unit, x: Tensor) -> bool:
        """Whether nobody learns from the unit, watches it or traces it, and its numbers are as oneDNN takes them."""
        learning = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor
        known = type(unit.norm) is FrozenBatchNorm and type(unit.conv) is Conv
        if learning or traced or not known or not FUSES or not x.numel():
            return False
        parts = Folded.parts(unit)
        watched = any(part._forward_hooks or part._forward_pre_hooks for part in (unit.conv, unit.norm))
        if watched or any(part.is_inference() for part in parts):
            return False
        return all(part.dtype == torch.float32 and part.device.type == "cpu" for part in (x, *parts))

    def __call__(self, x: Tensor, beside: Tensor | None, activated: bool) -> Tensor:
        after = "relu" if activated else "none"
        if beside is None:
            return OPS._convolution_pointwise(x, self.weight, self.bias, *self.how, after, [], "")
        relu = "relu" if activated else None
        return OPS._convolution_pointwise.binary(x, beside, self.weight, self.bias, *self.how, "add", 1.0, relu, [], "")

    def __deepcopy__(self, memo: dict) -> None:
        return None

    def __reduce__(self) -> tuple:
        return type(None), ()


def halvings(real: Tensor) -> Levels:
    """The mask [B, H, W] of a picture for its maps of every size: the place of a map is real where the pixel in its middle is."""
    found = {}
    while real.shape[1:] not in found:
        found[real.shape[1:]] = real[:, None]
        real = real[:, ::2, ::2]
    return found
