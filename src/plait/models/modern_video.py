"""An encoder of short clips that sees motion from its first layer: what clips in `plait train` begin from.

A few frames at a time go through the stem of the page `modern_vision` as one picture of so many more channels (the tubelets of Arnab et
al. 2021, "ViViT", section 3.2), so that a convolution compares a place with what was there a frame ago. Then the blocks of that page,
with attention over all entries of all frames at once. TimeSformer, which reads each frame by itself, needs far more clips and time to
find out what moves: the figures are in docs/log.md.
"""

from dataclasses import dataclass
from typing import Literal

from plait.core.model import Model
from plait.core.pixels import Times
from plait.core.stream import Stream
from plait.models.modern_vision import Stem, encoder


@dataclass(frozen=True)
class Config:
    """Clips of `frames` pictures of `image_size` x `image_size` pixels; for others positions are interpolated.

    Each entry is a square of `patch` pixels, a power of two, in `tube` frames that follow each other. The stem begins with `d_stem`
    channels. `drop_path` and `head` as on the page `modern_vision`.
    """

    image_size: int = 32
    patch: int = 8
    channels: int = 3
    frames: int = 8
    tube: int = 2
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
    "tiny": dict(image_size=16, frames=4, d_model=32, n_heads=2, n_layers=2, d_ff=64, d_stem=8),
    "small": dict(),
    "base": dict(image_size=112, patch=16, frames=16, d_model=384, n_heads=6, n_layers=12, d_ff=1536),
}


class Tubes(Stem):
    """Pixels [B, T, C, H, W] -> an entry for each square of `patch` pixels in `tube` frames; the grid is (T / tube, H / patch, W / patch).

    `real` [B, T, H, W] tells pixels from padding: a place is real where it is in one of its frames.
    """

    takes = "clips"

    def __init__(self, tube: int, patch: int, channels: int, d_stem: int, d_model: int):
        if tube < 1:
            raise ValueError(f"tube={tube}: expected at least one frame")
        super().__init__(patch, tube * channels, d_stem, d_model)
        self.tube = tube

    def forward(self, s: Stream) -> Stream:
        each, tube = self.channels // self.tube, self.tube
        if s.x.ndim != 5 or s.x.shape[2] != each or not s.x.numel() or s.x.shape[1] % tube:
            wanted = f"[B, T, {each}, H, W] with frames in groups of {tube}"
            raise ValueError(f"pixels {list(s.x.shape)}: this model takes clips of {each} channels, {wanted}")
        rows, n = len(s.x), s.x.shape[1] // tube
        real = None if s.real is None else s.real.unflatten(1, (n, tube)).any(2).flatten(0, 1)
        seen = super().forward(Stream(s.x.reshape(rows * n, self.channels, *s.x.shape[-2:]), real=real))
        assert seen.grid is not None
        real = None if seen.real is None else seen.real.view(rows, -1)
        return s.having(x=seen.x.reshape(rows, -1, seen.x.shape[-1]), real=real, grid=(n, *seen.grid))


def build(c: Config) -> Model:
    stem = Tubes(c.tube, c.patch, c.channels, c.d_stem, c.d_model)
    if c.frames % c.tube:
        raise ValueError(f"frames={c.frames} are not whole groups of tube={c.tube}")
    return encoder(c, stem, times=Times(c.frames // c.tube, c.d_model))
