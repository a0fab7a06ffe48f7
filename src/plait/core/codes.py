"""Numbers as codes of 8 or 4 bits with a scale for each group of 32, and back. What they mean is said in `quantised.py`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

GROUP = 32  # values with a scale of their own
STEPS = 127
SHRINKS = (1.0, 0.92, 0.84)  # of a group's range, tried in 4 bits: the middle is finer for a few values that are cut off


def encoded8(w: Float[Tensor, "N G 32"]) -> tuple[Tensor, Tensor, None]:
    """Codes [N, G, 32] as uint8 and scales [N, G]: the largest value of a group becomes 127."""
    scale = (w.abs().amax(-1) / STEPS).half()
    codes = (w / _divisor(scale.float())[..., None]).round().clamp(-STEPS, STEPS)
    return codes.to(torch.int8).view(torch.uint8), scale, None


def encoded4(
    w: Float[Tensor, "N G 32"], weighing: Float[Tensor, "G 32"] | None = None, shrinks: Sequence[float] = SHRINKS
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, G, 16], scales and least values [N, G]: of some ranges the one with the least squared error.

    Each range's codes are fitted once more: the scale and the least value that are best for these codes (least squares). `weighing`
    says what a square counts, and adds up to 1 in each group.
    """
    low, high = w.amin(-1), w.amax(-1)
    best: tuple[Tensor, ...] | None = None
    for shrink in shrinks:
        scale = (high - low) * (shrink / 15)
        least = low + (high - low) * ((1 - shrink) / 2)
        for _ in range(2):
            q = _codes4(w, scale.half(), least.half())
            found = (q, scale.half(), least.half())
            error = _mean((q * found[1].float()[..., None] + found[2].float()[..., None] - w).square_(), weighing)
            if best is None:
                best = (*found, error)
            else:
                better = ~(error >= best[-1])
                best = tuple(torch.where(better[..., None] if a.ndim == 3 else better, a, b) for a, b in zip((*found, error), best))
            centred = q - _mean(q, weighing)[..., None]
            scale = _mean(centred * w, weighing) / _divisor(_mean(centred.square(), weighing))
            least = _mean(w, weighing) - scale * _mean(q, weighing)
    assert best is not None
    return halved(best[0].to(torch.uint8)), best[1], best[2]


def _mean(x: Tensor, weighing: Tensor | None) -> Tensor:
    return x.mean(-1) if weighing is None else (x * weighing).sum(-1)


def halved(codes: UInt8[Tensor, "N G 32"]) -> UInt8[Tensor, "N G 16"]:
    """Codes of 4 bits, two in a byte."""
    return codes[..., :16] | codes[..., 16:] << 4


def _codes4(w: Tensor, scale: Tensor, least: Tensor) -> Tensor:
    return ((w - least.float()[..., None]) / _divisor(scale.float())[..., None]).round_().clamp_(0, 15)


def _divisor(scale: Tensor) -> Tensor:
    """A group of equal values has no scale: whatever it is divided by."""
    return torch.where(scale == 0, 1.0, scale)


def decoded(codes: Tensor, scale: Tensor, least: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of codes [N, G, bytes of a group] with scale and least float16 [N, G] -> values [N, G * 32]."""
    d = scale.to(dtype)[..., None]
    if codes.shape[-1] == GROUP:
        return (codes.view(torch.int8).to(dtype) * d).flatten(1)
    q = torch.cat([codes & 15, codes >> 4], -1).to(dtype)
    return ((q - 8) * d if least is None else torch.addcmul(least.to(dtype)[..., None], q, d)).flatten(1)


def rounded(x: Float[Tensor, "... K"]) -> Float[Tensor, "... K"]:
    """x with each group of 32 in 127 steps either way of its largest value. A group with a NaN or an infinity is NaN."""
    groups = F.pad(x, (0, -x.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
    scale = groups.abs().amax(-1, keepdim=True) / STEPS
    return ((groups / _divisor(scale)).round() * scale).flatten(-2)[..., : x.shape[-1]]
