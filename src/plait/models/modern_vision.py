"""An encoder of small pictures with what small budgets gained since ViT: what tasks of pictures in `plait train` begin from.

A few convolutions in place of large patches (Xiao et al. 2021, "Early convolutions help Transformers see better"), then the blocks of
the page `modern`: pre-norm without biases, normalised queries and keys, squared ReLU, and output projections that start at zero. What is
scored is the mean of the grid, so there is no class token.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from plait.core.attention import Attention
from plait.core.blocks import body, each
from plait.core.convolution import ChannelNorm, Conv, Unit, halvings
from plait.core.embeddings import Dropped, Each, Embed
from plait.core.feedforward import FFN, relu2
from plait.core.heads import Pooled, grid_mean
from plait.core.linear import Linear
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.pixels import GridPositions
from plait.core.residual import Pre
from plait.core.stream import Stream
from plait.models.modern import normed_heads, started


@dataclass(frozen=True)
class Config:
    """Pictures are squares of `image_size` pixels; for others positions are interpolated.

    Each entry is a square of `patch` pixels, a power of two, since each convolution of the stem halves the picture; the first has `d_stem`
    channels, each further one twice as many. `drop_path` is the last layer's chance to be left out in training, the first one's is 0
    (Huang et al. 2016, section 3). `head`: "classify", or "none" for the bare encoder.
    """

    image_size: int = 32
    patch: int = 4
    channels: int = 3
    d_model: int = 128
    n_heads: int = 4
    n_layers: int = 4
    d_ff: int = 512
    d_head: int | None = None
    d_stem: int = 32
    dropout: float = 0.0
    drop_path: float = 0.0
    head: Literal["classify", "none"] = "classify"
    labels: int = 2


PRESETS = {
    "tiny": dict(image_size=16, d_model=32, n_heads=2, n_layers=2, d_ff=64, d_stem=8),
    "nano": dict(image_size=28, d_model=64, n_heads=2, n_layers=4, d_ff=256, d_stem=16),
    "small": dict(image_size=64, patch=8, d_model=192, n_heads=6, n_layers=6, d_ff=768, d_stem=32),
    "base": dict(image_size=224, patch=16, d_model=384, n_heads=6, n_layers=12, d_ff=1536, d_stem=32),
}


class Stem(nn.Module):
    """Pixels [B, C, H, W] -> an entry for each square of `patch` pixels: convolutions that halve, each normed, and a projection.

    Squares at the right and lower border may be cut: the grid is (H / patch, W / patch), rounded up. `real` [B, H, W] tells pixels
    from padding.
    """

    takes = "pixels"

    def __init__(self, patch: int, channels: int, d_stem: int, d_model: int):
        super().__init__()
        if patch < 2 or patch & (patch - 1):
            raise ValueError(f"patch={patch} is not reached by halving: choose 2, 4, 8, 16 ...")
        self.channels = channels
        widths = [d_stem << i for i in range(patch.bit_length() - 1)]
        self.units = nn.ModuleList(Unit(Conv(a, b, 3, 2), ChannelNorm) for a, b in zip([channels, *widths], widths, strict=False))
        self.proj = Linear(widths[-1], d_model)

    def forward(self, s: Stream) -> Stream:
        if s.x.ndim != 4 or s.x.shape[1] != self.channels or not s.x.numel():
            raise ValueError(f"pixels {list(s.x.shape)}: this model takes pictures of {self.channels} channels, [B, {self.channels}, H, W]")
        x, levels = s.x, None if s.real is None else halvings(s.real)
        for unit in self.units:
            x = unit(x, levels)
        real = None if levels is None else levels[x.shape[-2:]].flatten(1)
        return s.having(x=self.proj(x.flatten(2).mT), real=real, grid=tuple(x.shape[-2:]))


def build(c: Config) -> Model:
    return encoder(c, Stem(c.patch, c.channels, c.d_stem, c.d_model))


def encoder(c: Any, stem: Stem, **more: nn.Module) -> Model:
    """Over a stem: positions on its grid, what `more` there is, the norm, the blocks and the head, for a config with these names."""
    d, norm, side = c.d_model, partial(LayerNorm, c.d_model, bias=False), c.image_size // c.patch
    embed = Embed(
        stem=stem,
        positions=GridPositions((side, side), d, before=0),
        **more,
        norm=Each(LayerNorm(d, gain=False)),
        dropout=Dropped(c.dropout),
    )
    blocks = body(
        c.n_layers,
        norm,
        lambda layer: Pre(c.dropout, c.drop_path * layer / max(c.n_layers - 1, 1)),
        self_attn=normed_heads(c, Attention),
        ffn=each(FFN, d, c.d_ff, relu2, bias=False),
    )
    heads: dict[str, nn.Module] = {"classify": Pooled(grid_mean, Linear(d, c.labels))} if c.head == "classify" else {}
    return Model(heads, started, encoder=Tower(embed, blocks, norm()))
