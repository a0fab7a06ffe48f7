"""Positions that are added to the content (or handed to attention): sinusoids, learned vectors, two-dimensional sines."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plait.core import init
from plait.core.stream import Stream


def sinusoid(positions: Tensor, d: int, base: float = 10000.0, layout: Literal["pairs", "halves"] = "pairs") -> Float[Tensor, "*L d"]:
    """PE(pos, 2i) = sin(pos / base^(2i/d)), PE(pos, 2i+1) = cos(...) (Vaswani et al. 2017, section 3.5).

    layout "pairs" is the paper's; "halves" puts all sines before all cosines (the authors' code, Marian). Computed in float64.
    """
    if d % 2:
        raise ValueError(f"d_model={d} is odd: sinusoids come in pairs of a sine and a cosine, choose an even d_model")
    rate = base ** (-torch.arange(0, d, 2, dtype=torch.float64, device=positions.device) / d)
    angle = positions[..., None].double() * rate
    pair = torch.stack([angle.sin(), angle.cos()], -1 if layout == "pairs" else -2)
    return pair.flatten(-2)


class Sinusoid(nn.Module):
    """Adds the sinusoids of the paper. Nothing is stored: no maximal length, and nothing to lose on `meta`.

    `first` is the number of the first position (some trained models count from 1).
    """

    def __init__(self, base: float = 10000.0, layout: Literal["pairs", "halves"] = "pairs", first: int = 0):
        super().__init__()
        self.base, self.first = base, first
        self.layout: Literal["pairs", "halves"] = layout
        self.known: dict = {}  # the tables of positions 0..n-1, by device, dtype and width

    def forward(self, s: Stream) -> Stream:
        positions = s.at_positions()
        if positions.dim() == 1 and s.positions is None:
            return s.having(x=s.x + self.rows(s.x, s.start, s.start + s.length))
        highest = 1 + int(positions.max()) if positions.numel() else 0
        return s.having(x=s.x + self.rows(s.x, 0, highest)[positions])

    def rows(self, x: Tensor, start: int, stop: int) -> Tensor:
        if x.device.type == "meta":
            return x.new_empty(stop - start, x.shape[-1])
        key = (x.device, x.dtype, x.shape[-1])
        table = self.known.get(key)
        if table is None or len(table) < stop:
            length = max(128, 1 << max(stop - 1, 1).bit_length())
            places = torch.arange(self.first, self.first + length, device=x.device)
            table = self.known[key] = sinusoid(places, x.shape[-1], self.base, self.layout).to(x.dtype)
        return table[start:stop]


class Learned(nn.Module):
    """Adds a learned vector for each position below `max_length`. `offset` is added to every position (BART counts from 2)."""

    def __init__(self, max_length: int, d_model: int, offset: int = 0):
        super().__init__()
        self.max_length, self.offset = max_length, offset
        self.weight = nn.Parameter(torch.empty(max_length + offset, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.normal_(self.weight, std=0.02)

    def forward(self, s: Stream) -> Stream:
        if s.start + s.length > self.max_length and s.positions is None:
            raise ValueError(f"{s.start + s.length} positions are needed, but this model has {self.max_length}: shorten the input")
        return s.having(x=s.x + self.weight[s.at_positions() + self.offset])


class Sine2D(nn.Module):
    """Sines of row and column, half of the channels each, as the stream's own position vectors (DETR, Carion et al. 2020, appendix A.4).

    Rows and columns count from 1 and are scaled to 2π · `turns` over the real part of the grid; sines and cosines alternate, from
    -`amplitude` to `amplitude`.
    """

    def __init__(self, base: float = 10000.0, eps: float = 1e-6, turns: float = 1.0, amplitude: float = 1.0):
        super().__init__()
        self.base, self.eps, self.turns, self.amplitude = base, eps, turns, amplitude

    def forward(self, s: Stream) -> Stream:
        if s.grid is None or len(s.grid) != 2:
            raise ValueError(f"two-dimensional sines need a stream with a grid (H, W), this one has {s.grid}")
        height, width = s.grid
        real = torch.ones(s.x.shape[0], s.length, device=s.x.device) if s.real is None else s.real
        real = real.unflatten(1, (height, width)).double()  # [B, H, W]
        places = []
        for axis in (1, 2):
            place = real.cumsum(axis)
            places.append(place / (place.amax(axis, keepdim=True) + self.eps))
        return s.having(pos=self.vectors(torch.stack(places, -1), s.x.shape[-1]).flatten(1, 2).to(s.x.dtype))

    def vectors(self, places: Tensor, d_model: int) -> Tensor:
        """Of places [..., 2], row and column as shares of the picture: [..., D] float64."""
        angles = places.double() * (2 * math.pi * self.turns)
        return torch.cat([sinusoid(angle, d_model // 2, self.base) for angle in angles.unbind(-1)], -1) * self.amplitude
