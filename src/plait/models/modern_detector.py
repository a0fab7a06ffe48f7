"""A detector that learns from scratch on small sets: a set of objects as DETR has it, with what later papers found it to lack.

Each query stands at a place of its own, which its box is told from (Wang et al. 2022, "Anchor DETR"), and whose sines are those of the
picture's places: since queries and keys of cross-attention start with the same projection, a query begins by reading what is around it
(the slow part of learning DETR, Meng et al. 2021, "Conditional DETR"). The stem is the page `modern_vision`'s, the blocks are those of
`modern`.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core import init
from plait.core.attention import Attention, CrossAttention
from plait.core.blocks import body, each
from plait.core.embeddings import Dropped, Each, Embed
from plait.core.feedforward import FFN, relu2
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.positions import Sine2D
from plait.core.residual import Pre
from plait.core.stream import Lent, Stream
from plait.models.detr import Detect
from plait.models.modern import normed_heads, started
from plait.models.modern_vision import Stem

SIZE = 0.15  # of the picture's sides: the box that a query answers before it has learned anything


@dataclass(frozen=True)
class Config:
    """The encoder reads pixels of any size, an entry for each `patch` of them, the decoder the numbers of queries, 0 to n_queries - 1.

    Of the sines of places, the quickest goes round `turns` times over the picture, the slowest `base` times slower; content has a
    standard deviation of 1, so `amplitude` says how much places weigh beside it.
    """

    n_queries: int = 100
    labels: int = 2
    patch: int = 16
    channels: int = 3
    d_model: int = 128
    n_heads: int = 4
    n_layers: int = 3
    n_decoder_layers: int = 3
    d_ff: int = 512
    d_head: int | None = None
    d_stem: int = 32
    turns: float = 4.0
    base: float = 20.0
    amplitude: float = 2.0
    dropout: float = 0.0
    head: Literal["detect", "none"] = "detect"


PRESETS = {  # all without dropout, which tells queries apart by its noise (docs/log.md)
    "tiny": dict(patch=8, d_model=32, n_heads=2, n_layers=2, n_decoder_layers=2, d_ff=64, d_stem=8, dropout=0.0),
    "small": dict(dropout=0.0),
    "base": dict(dropout=0.0, n_queries=300, d_model=256, n_heads=8, n_layers=6, n_decoder_layers=6, d_ff=1024),
}


class Anchors(nn.Module):
    """Numbers of queries [B, N] -> what each is told [B, N, D], at the sines of its place; places begin as an even grid and are learned."""

    def __init__(self, n: int, d_model: int, sines: Sine2D):
        super().__init__()
        self.sines = sines
        self.weight = nn.Parameter(torch.empty(n, d_model))
        self.place = nn.Parameter(torch.empty(n, 2))  # y, x: logits of shares of the picture
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.normal_(self.weight)
        if not self.place.is_meta:
            columns = math.isqrt(len(self.place) - 1) + 1
            number = torch.arange(len(self.place))
            at = torch.stack([(number // columns + 0.5) / math.ceil(len(self.place) / columns), (number % columns + 0.5) / columns], -1)
            with torch.no_grad():
                self.place.copy_(at.logit())

    def forward(self, s: Stream) -> Stream:
        place = F.embedding(s.x, self.place).sigmoid()
        return s.having(x=F.embedding(s.x, self.weight), pos=self.sines.vectors(place, self.weight.shape[1]).to(self.weight.dtype))


class Anchored(Detect):
    """`Detect` whose boxes are told from the queries' places. Hidden vectors [..., N, D] are those of the first N queries, in order."""

    def __init__(self, d_model: int, labels: int, anchors: Anchors):
        super().__init__(d_model, labels)
        self.anchors = Lent(anchors)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.scores(hidden), (self.offsets(hidden) + self.start(hidden.shape[-2])).sigmoid()

    def start(self, n: int) -> Tensor:
        """[N, 4]: cx cy w h as logits."""
        place = self.anchors.place[:n].flip(-1)
        return torch.cat([place, torch.full_like(place, math.log(SIZE / (1 - SIZE)))], -1)


def build(c: Config) -> Model:
    d, norm, normed = c.d_model, partial(LayerNorm, c.d_model, bias=False), partial(normed_heads, c)
    sines = Sine2D(c.base, turns=c.turns, amplitude=c.amplitude)
    ffn, residual = each(FFN, d, c.d_ff, relu2, bias=False), lambda layer: Pre(c.dropout)
    encoder = Tower(
        Embed(
            stem=Stem(c.patch, c.channels, c.d_stem, d), positions=sines, norm=Each(LayerNorm(d, gain=False)), dropout=Dropped(c.dropout)
        ),
        body(c.n_layers, norm, residual, self_attn=normed(Attention, add_pos=True), ffn=ffn),
        norm(),
    )
    anchors = Anchors(c.n_queries, d, sines)
    attn, cross_attn = normed(Attention, add_pos=True), normed(CrossAttention, add_pos=True)
    decoder = Tower(
        Embed(queries=anchors, dropout=Dropped(c.dropout)),
        body(c.n_decoder_layers, norm, residual, self_attn=attn, cross_attn=cross_attn, ffn=ffn),
        norm(),
    )
    heads: dict[str, nn.Module] = {"detect": Anchored(d, c.labels, anchors)} if c.head == "detect" else {}
    return Model(heads, near, encoder=encoder, decoder=decoder)


def near(net: Model) -> None:
    """As `modern` starts; what a query asks and what a place answers are alike, and a box starts as its query's place."""
    started(net)
    blocks: Any = net.get_submodule("decoder").blocks
    for block in blocks:
        if not block.cross_attn.q_proj.weight.is_meta:
            with torch.no_grad():
                block.cross_attn.k_proj.weight.copy_(block.cross_attn.q_proj.weight)
    if "detect" in net.heads:
        boxes: Any = net.heads["detect"].boxes
        for part in boxes[:-1]:
            init.normal_(part.weight, std=1 / math.sqrt(part.weight.shape[1]))
        init.zeros_(boxes[-1].weight)
        init.zeros_(boxes[-1].bias)
