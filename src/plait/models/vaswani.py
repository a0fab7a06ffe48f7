"""The 2017 encoder-decoder: "Attention Is All You Need" (Vaswani et al. 2017)."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

from plait.core.attention import Attention, CrossAttention
from plait.core.blocks import body, each
from plait.core.embeddings import Dropped, Embed, Tokens
from plait.core.feedforward import FFN
from plait.core.heads import Tied
from plait.core.linear import Linear
from plait.core.masks import causal
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.positions import Sinusoid
from plait.core.residual import Post, Pre, Sandwich
from plait.core.stream import Lent

RULES = {"post": Post, "pre": Pre, "sandwich": Sandwich}


@dataclass(frozen=True)
class Config:
    """Table 3 of the paper. `tie`: which of source embedding, target embedding and output matrix are one matrix (section 3.4)."""

    source_vocab: int
    target_vocab: int
    d_model: int = 512
    n_heads: int = 8
    n_layers: int = 6
    n_decoder_layers: int | None = None
    d_ff: int = 2048
    d_head: int | None = None
    dropout: float = 0.1
    residual: Literal["post", "pre", "sandwich"] = "post"
    tie: Literal["all", "target", "none"] = "all"


PRESETS = {
    "tiny": dict(d_model=64, n_heads=4, n_layers=2, d_ff=256),
    "small": dict(d_model=128, n_heads=4, n_layers=3, d_ff=512),
    "medium": dict(d_model=256, n_heads=4, n_layers=4, d_ff=1024),
    "base": dict(d_model=512, n_heads=8, n_layers=6, d_ff=2048),
    "big": dict(d_model=1024, n_heads=16, n_layers=6, d_ff=4096, dropout=0.3),
}


def build(c: Config) -> Model:
    if c.tie == "all" and c.source_vocab != c.target_vocab:
        raise ValueError(
            f"tie='all' needs one vocabulary, got {c.source_vocab} and {c.target_vocab} tokens: train a joint tokenizer or tie='target'"
        )
    d, rule = c.d_model, RULES[c.residual]
    norm, residual = partial(LayerNorm, d), lambda layer: rule(c.dropout)
    # Post-norm ends every layer with a norm already; the other rules leave the sum unnormalised.
    last = (lambda: None) if rule is Post else norm
    heads = dict(d_head=c.d_head)
    ffn = each(FFN, d, c.d_ff)

    tokens = Tokens(c.source_vocab, d, scale=math.sqrt(d))
    source = Embed(tokens=tokens, positions=Sinusoid(), dropout=Dropped(c.dropout))
    target_tokens = Lent(tokens) if c.tie == "all" else Tokens(c.target_vocab, d, scale=math.sqrt(d))
    target = Embed(tokens=target_tokens, positions=Sinusoid(), dropout=Dropped(c.dropout))

    encoder = body(c.n_layers, norm, residual, self_attn=each(Attention, d, c.n_heads, **heads), ffn=ffn)
    decoder = body(
        c.n_decoder_layers or c.n_layers,
        norm,
        residual,
        self_attn=each(Attention, d, c.n_heads, mask=causal, **heads),
        cross_attn=each(CrossAttention, d, c.n_heads, **heads),
        ffn=ffn,
    )
    lm = Linear(d, c.target_vocab, bias=False) if c.tie == "none" else Tied(target_tokens)
    return Model({"lm": lm}, encoder=Tower(source, encoder, last()), decoder=Tower(target, decoder, last()))
