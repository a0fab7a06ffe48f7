"""A decoder for language models trained from scratch: the ingredients of `modern`, and vectors of n-grams that cost no products.

Pre-norm without biases, rotary positions, normalised queries and keys, squared ReLU, outputs that start at zero: `modern` has the papers.
What each of them brings is measured in docs/log.md.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.core import init
from plait.core.attention import Attention
from plait.core.blocks import body, each
from plait.core.embeddings import Tokens
from plait.core.feedforward import FFN, relu2
from plait.core.heads import Tied
from plait.core.linear import Linear
from plait.core.masks import Window, causal
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.residual import Pre
from plait.core.rotary import Rotary
from plait.core.stream import Stream
from plait.models.modern import embed, normed_heads, started

ODD = -7046029254386353131  # 2^64 divided by the golden ratio, as int64: the factor of Fibonacci hashing (Knuth, volume 3, section 6.4)


@dataclass(frozen=True)
class Config:
    """`ngrams`: the longest n-grams that have vectors of their own, in one table of `ngram_rows`; 1: none. They pay for characters and
    bytes, and the more so the shorter the training (docs/log.md). `tie`: embedding and output are one matrix.
    `window`: how many entries a query sees, itself counted; with the length of the training rows a text may grow past it.
    """

    vocab_size: int
    d_model: int = 256
    n_heads: int = 8
    n_layers: int = 6
    d_ff: int = 1024
    d_head: int | None = None
    dropout: float = 0.0
    tie: bool = False
    ngrams: int = 1
    ngram_rows: int = 10000
    window: int | None = None


PRESETS: dict[str, dict[str, Any]] = {
    "nano": dict(d_model=64, n_heads=2, n_layers=2, d_ff=256),
    "tiny": dict(d_model=64, n_heads=2, n_layers=1, d_ff=256, ngrams=4, ngram_rows=11000),
    "small": dict(d_model=128, n_heads=4, n_layers=4, d_ff=512, ngrams=4),
    "medium": dict(d_model=256, n_heads=8, n_layers=6, d_ff=1024),
    "base": dict(d_model=512, n_heads=16, n_layers=8, d_ff=2048),
}


class Zeros(Tokens):
    """Vectors that start at zero."""

    def reset_parameters(self) -> None:
        init.zeros_(self.weight)


class NGrams(Tokens):
    """To each token's vector are added those of the n-grams that end there, n = 2 to `longest`: a lookup, whatever their number.

    All lengths share one table, in which n-grams find their rows by a hash (fastText: Bojanowski et al. 2017, section 3.2; for what a
    Transformer reads: BLT, Pagnoni et al. 2024, section 3.2.1). Nothing stands before a text, and n-grams never reach into padding or
    another document.
    """

    def __init__(self, vocab_size: int, d_model: int, longest: int, rows: int):
        super().__init__(vocab_size, d_model)
        self.longest = longest
        self.ngrams = Zeros(rows, d_model)

    def rows(self, s: Stream) -> Tensor:
        """Ids [B, L] -> the rows [B, L, longest - 1] of the n-grams that end at each."""
        base, reach, length = self.weight.shape[0] + 1, self.longest - 1, s.length
        here = s.x + 1 if s.real is None else (s.x + 1).masked_fill(~s.real, 0)  # 0: nothing stands there
        whole = here if s.before is None else torch.cat([s.before[:, -reach:] + 1, here], 1)
        whole = F.pad(whole, (reach + length - whole.shape[1], 0))  # [B, reach + L]
        key, found = here, []
        for back in range(1, self.longest):
            earlier = whole[:, reach - back : reach - back + length]
            if s.segment is not None:
                earlier = earlier.masked_fill(F.pad(s.segment, (back, 0), value=-1)[:, :length] != s.segment, 0)
            key = key * base + earlier  # wraps around where it must: it only has to differ
            found.append(((key * self.longest + back) * ODD >> 31).remainder(len(self.ngrams.weight)))
        return torch.stack(found, -1)

    def forward(self, s: Stream) -> Stream:
        return s.having(x=super().forward(s).x + F.embedding(self.rows(s), self.ngrams.weight).sum(-2))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, longest={self.longest}"


def build(c: Config) -> Model:
    if c.ngrams < 1 or c.ngram_rows < 1:
        raise ValueError(f"ngrams={c.ngrams}, ngram_rows={c.ngram_rows}: expected whole numbers from 1 on; ngrams=1 is without n-grams")
    d, norm = c.d_model, partial(LayerNorm, c.d_model, bias=False)
    mask = causal if c.window is None else causal & Window(c.window - 1, None)
    tokens = Tokens(c.vocab_size, d) if c.ngrams == 1 else NGrams(c.vocab_size, d, c.ngrams, c.ngram_rows)
    ffn = each(FFN, d, c.d_ff, relu2, bias=False)
    blocks = body(c.n_layers, norm, lambda layer: Pre(c.dropout), self_attn=normed_heads(c, Attention, mask=mask, rotary=Rotary()), ffn=ffn)
    lm = Tied(tokens, scale=d**-0.5) if c.tie else Linear(d, c.vocab_size, bias=False)
    return Model({"lm": lm}, started, decoder=Tower(embed(c, tokens), blocks, norm()))
