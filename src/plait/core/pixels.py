"""From pixels to entries: patches, entries of their own before them, positions on a grid."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core import init
from plait.core.linear import Linear
from plait.core.stream import Stream


class Patches(nn.Module):
    """Pixels [B, C, H, W], or frames of them [B, T, C, H, W] -> an entry for each square patch (Dosovitskiy et al. 2021, section 3.1).

    Row by row, frame by frame; `grid` is (H / patch, W / patch) or (T, H / patch, W / patch). `real` [B, H, W] (with frames
    [B, T, H, W]) tells pixels from padding: a patch is real where one of its pixels is. ValueError where patches do not fit.
    """

    takes = "pixels"

    def __init__(self, patch: int, d_model: int, channels: int = 3, bias: bool = True):
        super().__init__()
        self.patch, self.channels = patch, channels
        self.proj = Linear(channels * patch * patch, d_model, bias=bias)

    def forward(self, s: Stream) -> Stream:
        channels, height, width = s.x.shape[-3:]
        if channels != self.channels or height % self.patch or width % self.patch or not s.x.numel():
            wanted = f"{self.channels} channels, and heights and widths that are multiples of {self.patch}"
            raise ValueError(f"pixels {list(s.x.shape)}: this model takes {wanted}")
        x = squares(s.x, self.patch).movedim(-5, -3).flatten(-3)  # [B, (T,) H', W', C * patch²]
        real = None if s.real is None else squares(s.real, self.patch).flatten(-2).any(-1).flatten(1)
        return s.having(x=self.proj(x).flatten(1, -2), real=real, grid=tuple(x.shape[1:-1]))


def squares(x: Tensor, patch: int) -> Tensor:
    """[..., H, W] -> [..., H', W', patch, patch]"""
    return x.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch)).transpose(-3, -2)


class Before(nn.Module):
    """`n` learned entries before the stream's own, not on its grid: class token, distillation token, registers (Darcet et al. 2024).

    They stand behind the first `behind` entries, which came before the grid already.
    """

    def __init__(self, n: int, d_model: int, behind: int = 0):
        super().__init__()
        self.behind = behind
        self.weight = nn.Parameter(torch.empty(n, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.normal_(self.weight, std=0.02)

    def forward(self, s: Stream) -> Stream:
        (rows, *_), n, at = s.x.shape, len(self.weight), self.behind
        real = None if s.real is None else torch.cat([s.real[:, :at], s.real.new_ones(rows, n), s.real[:, at:]], 1)
        return s.having(x=torch.cat([s.x[:, :at], self.weight.expand(rows, -1, -1), s.x[:, at:]], 1), real=real)


class GridPositions(nn.Module):
    """Adds a learned vector for each place of a grid (height, width), and for each of `before` entries that stand before it.

    Another grid's vectors are interpolated (bicubic) from these (Dosovitskiy et al. 2021, section 3.2), with `antialias` smoothed first
    where that grid is coarser. All frames of a clip have the same.
    """

    def __init__(self, grid: tuple[int, int], d_model: int, before: int = 1, antialias: bool = False):
        super().__init__()
        self.grid, self.before, self.antialias = grid, before, antialias
        self.weight = nn.Parameter(torch.empty(before + math.prod(grid), d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.normal_(self.weight, std=0.02)

    def forward(self, s: Stream) -> Stream:
        if s.grid is None or s.length != self.before + math.prod(s.grid):
            raise ValueError(f"{s.length} entries with the grid {s.grid}: positions are for {self.before} entries and a grid after them")
        *frames, height, width = s.grid
        table = self.weight if (height, width) == self.grid else self.resized(height, width)
        if frames:
            table = torch.cat([table[: self.before], table[self.before :].repeat(frames[0], 1)])
        return s.having(x=s.x + table)

    def resized(self, height: int, width: int) -> Tensor:
        """[before + height * width, D]"""
        wide = torch.promote_types(self.weight.dtype, torch.float32)  # in half precision places would shift
        grid = self.weight[self.before :].to(wide).unflatten(0, self.grid).movedim(-1, 0)[None]  # [1, D, H, W]
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False, antialias=self.antialias)
        return torch.cat([self.weight[: self.before], grid[0].flatten(1).T.to(self.weight.dtype)])

    def extra_repr(self) -> str:
        return f"grid={self.grid}, before={self.before}"


class Times(nn.Module):
    """Adds a learned vector for each frame to all its places; another number of frames takes the nearest frames' vectors."""

    def __init__(self, frames: int, d_model: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(frames, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # As large as what they are added to: without them no frame is before another, and small ones take long to grow.
        init.normal_(self.weight, std=0.5)

    def forward(self, s: Stream) -> Stream:
        if s.grid is None or len(s.grid) != 3:
            raise ValueError(f"{s.length} entries with the grid {s.grid}: expected one of frames, rows and columns")
        n, *places = s.grid
        table = self.weight if n == len(self.weight) else F.interpolate(self.weight.T[None], size=n, mode="nearest")[0].T
        before = s.length - math.prod(s.grid)
        return s.having(x=s.x + F.pad(table.repeat_interleave(math.prod(places), 0), (0, 0, before, 0)))
