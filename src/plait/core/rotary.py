"""Rotary positions (RoFormer, Su et al. 2021) and the ways to stretch them to longer contexts."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from plait.core.stream import Call, Stream

Scaling = Callable[[Tensor], Tensor]  # the rates (radians a position, [K/2], float64) -> the rates to use


class _Turn(torch.autograd.Function):
    """Halves (a, b) -> (a cos - b sin, b cos + a sin). Going back is turning the other way, so nothing but the tables is kept."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable  # a second derivative would be wrong without a word
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, -1.0), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    out = torch.empty_like(x)
    torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=out[..., half:]).addcmul_(a, sin, value=sign)
    return out


class Rotary:
    """Turns each pair of a head's channels by position · base^(-2i/d).

    Pairs are channel i with i + d/2 (`interleaved=False`: NeoX, Llama's released files) or 2i with 2i + 1 (RoFormer's own order).
    With `d_rotary` below the head's width only its first channels turn. `magnitude` scales the turned channels (YaRN).
    """

    def __init__(
        self,
        d_rotary: int | None = None,
        base: float = 10000.0,
        scaling: Scaling | None = None,
        interleaved: bool = False,
        magnitude: float = 1.0,
    ):
        if d_rotary is not None and d_rotary % 2:
            raise ValueError(f"d_rotary={d_rotary} is odd: rotary positions turn pairs of channels")
        self.d_rotary, self.base, self.scaling, self.interleaved, self.magnitude = d_rotary, base, scaling, interleaved, magnitude
        self.known: dict = {}  # tables of positions 0..n-1, by device, dtype and width

    def rates(self, d: int, device: torch.device) -> Float[Tensor, "half"]:
        rates = self.base ** (-torch.arange(0, d, 2, dtype=torch.float64, device=device) / d)
        return rates if self.scaling is None else self.scaling(rates)

    def table(self, s: Stream, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [L, d/2] or [B, 1, L, d/2]. A position's are the same numbers whatever stands beside it."""
        positions = s.at_positions()  # [L] or [B, L]
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or positions.device.type == "meta"
        if traced or positions.is_floating_point() or (s.positions is not None and positions.device.type != "cpu"):
            cos, sin = self.computed(positions, d, dtype)
        elif s.positions is None and s.real is None:
            cos, sin = (t[s.start : s.start + s.length] for t in self.rows(s.start + s.length, d, dtype, positions.device))
        else:
            most = s.start + s.length if s.positions is None else 1 + int(positions.max()) if positions.numel() else 1
            cos, sin = (t[positions] for t in self.rows(most, d, dtype, positions.device))
        return (cos[:, None], sin[:, None]) if cos.dim() == 3 else (cos, sin)

    def computed(self, positions: Tensor, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angle = positions[..., None].double() * self.rates(d, positions.device)  # [.., L, d/2]
        return (angle.cos() * self.magnitude).to(dtype), (angle.sin() * self.magnitude).to(dtype)

    def rows(self, n: int, d: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """The tables [>= n, d/2] of positions from 0 on."""
        found = self.known.get((device, dtype, d))
        if found is None or len(found[0]) < n:
            length = max(128, 1 << max(n - 1, 1).bit_length())
            with torch.inference_mode(False):  # kept for passes with gradients too
                found = self.known[device, dtype, d] = self.computed(torch.arange(length, device=device), d, dtype)
        return found

    def __call__(self, x: Float[Tensor, "B H L K"], s: Stream, call: Call) -> Float[Tensor, "B H L K"]:
        d = self.d_rotary or x.shape[-1]
        cos, sin = call.once((id(self), id(s), d), lambda: self.table(s, d, x.dtype))
        turned, rest = (x, None) if d == x.shape[-1] else (x[..., :d], x[..., d:])
        if self.interleaved:
            a, b = turned.unflatten(-1, (-1, 2)).unbind(-1)
            turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        else:
            # Without a gradient straight: the way through autograd takes as long as turning a few rows.
            turned = _Turn.apply(turned, cos, sin) if turned.requires_grad else _turned(turned, cos, sin, 1.0)
        return turned if rest is None else torch.cat([turned, rest], -1)


def linear(factor: float) -> Scaling:
    """Positions are divided by `factor` (position interpolation, Chen et al. 2023)."""
    return lambda rates: rates / factor


def ntk(factor: float, base: float = 10000.0) -> Scaling:
    """The base grows to base · factor^(d/(d-2)): high frequencies stay, the lowest is stretched by `factor` (NTK-aware scaling)."""

    def scale(rates: Tensor) -> Tensor:
        d = 2 * len(rates)
        return (base * factor ** (d / (d - 2))) ** (-torch.arange(0, d, 2, dtype=rates.dtype, device=rates.device) / d)

    return scale


def llama3(factor: float, low: float, high: float, original_length: int) -> Scaling:
    """Llama 3.1: wavelengths above original_length / low are stretched by `factor`, below original_length / high kept, between: blended."""

    def scale(rates: Tensor) -> Tensor:
        turns = original_length * rates / (2 * math.pi)  # full turns within the original context
        blend = ((turns - low) / (high - low)).clamp(0.0, 1.0)
        return rates / factor * (1 - blend) + rates * blend

    return scale


def yarn(factor: float, original_length: int, base: float = 10000.0, fast: float = 32.0, slow: float = 1.0) -> Scaling:
    """YaRN (Peng et al. 2023, section 3.2): channels that turn more than `fast` times in the original context are kept, those that turn
    less than `slow` times are interpolated, with a linear ramp over channels between. Use with `magnitude=0.1 * ln(factor) + 1`.
    """

    def scale(rates: Tensor) -> Tensor:
        d = 2 * len(rates)

        def channel(turns: float) -> float:
            return d * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

        start, stop = max(math.floor(channel(fast)), 0), min(math.ceil(channel(slow)), d - 1)
        ramp = (torch.arange(len(rates), dtype=rates.dtype, device=rates.device) - start) / max(stop - start, 1e-3)
        interpolated = ramp.clamp(0.0, 1.0)
        return rates / factor * interpolated + rates * (1 - interpolated)

    return scale


STRETCHES: dict[str, Callable[..., Scaling]] = {"linear": linear, "llama3": llama3, "yarn": yarn}


def stretched(base: float, stretch: Mapping[str, Any] | None = None, d_rotary: int | None = None) -> Rotary:
    """Rotary positions as a config tells them: `stretch` is {"kind": one of STRETCHES, its arguments ...}, with `magnitude` for yarn."""
    if stretch is None:
        return Rotary(d_rotary, base)
    how = dict(stretch)
    kind, magnitude = how.pop("kind"), how.pop("magnitude", 1.0)
    if kind not in STRETCHES:
        raise ValueError(f"stretch={stretch}: the kind is one of {', '.join(STRETCHES)}")
    if kind == "yarn":
        how["base"] = base
    return Rotary(d_rotary, base, STRETCHES[kind](**how), magnitude=magnitude)
