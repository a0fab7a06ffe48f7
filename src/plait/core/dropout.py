"""Dropout (Srivastava et al. 2014) that does not dominate a training step on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LANES = 65536  # a 64-bit draw is cut into four 16-bit lanes, so p is kept to within 1/65536


def keep_scale(like: Tensor, p: float) -> Tensor:
    """A tensor like `like` of 0 (with chance p) and 1 / (1 - p): multiplying by it is dropout.

    The generator is the cost of dropout on a CPU; one 64-bit draw decides four entries. It reads torch's default generator,
    so a restored generator state gives the same mask.
    """
    threshold = round(p * LANES)
    if threshold == LANES:
        return torch.zeros_like(like)
    draws = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    lanes = draws.view(torch.int16)[: like.numel()].view(like.shape)
    kept = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    return torch.ge(lanes, threshold - LANES // 2, out=kept).mul_(LANES / (LANES - threshold))  # no boolean in between


class _AddDropped(torch.autograd.Function):
    """x + y · scale in one pass each way; addcmul's own backward takes two."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return torch.addcmul(x, y, scale)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return grad, grad * ctx.saved_tensors[0], None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    if not training or p == 0.0:
        return x
    return x * keep_scale(x, p) if x.device.type == "cpu" else F.dropout(x, p)


def add_dropped(x: Tensor, y: Tensor, p: float, training: bool) -> Tensor:
    """x + dropout(y), in one pass over memory where that is to be had."""
    if not training or p == 0.0:
        return x + y
    return _AddDropped.apply(x, y, keep_scale(y, p)) if x.device.type == "cpu" else x + F.dropout(y, p)


class Dropout(nn.Module):
    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
