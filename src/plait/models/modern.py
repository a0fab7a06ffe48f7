"""An encoder-decoder of 2017's shape with what small budgets gained since: the default of `plait train`.

Pre-norm (Xiong et al. 2020) without biases, rotary positions (Su et al. 2021), normalised queries and keys (Henry et al. 2020),
squared ReLU (So et al. 2021), and output projections that start at zero, so that every block starts as the identity
(Zhang et al. 2019). What each of them brings is measured in docs/log.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from plait.core import init
from plait.core.attention import Attention, CrossAttention
from plait.core.blocks import Maker, body, each
from plait.core.embeddings import Dropped, Each, Embed, Tokens
from plait.core.feedforward import FFN, relu2
from plait.core.heads import Tied
from plait.core.linear import Linear
from plait.core.masks import causal
from plait.core.model import Model, Tower, matching
from plait.core.norms import LayerNorm
from plait.core.residual import Pre
from plait.core.rotary import Rotary
from plait.core.stream import Lent


@dataclass(frozen=True)
class Config:
    """`tie`: which of source embedding, target embedding and output matrix are one matrix. Heads are 32 wide unless `d_head` says so."""

    source_vocab: int
    target_vocab: int
    d_model: int = 256
    n_heads: int = 4
    n_layers: int = 4
    n_decoder_layers: int | None = None
    d_ff: int = 1024
    d_head: int | None = None
    dropout: float = 0.1
    tie: Literal["all", "target", "none"] = "none"


PRESETS = {
    "tiny": dict(d_model=64, n_heads=2, n_layers=2, n_decoder_layers=1, d_ff=256),
    "small": dict(d_model=128, n_heads=4, n_layers=3, n_decoder_layers=1, d_ff=512),
    "medium": dict(d_model=256, n_heads=4, n_layers=4, n_decoder_layers=2, d_ff=1024),
    "base": dict(d_model=512, n_heads=8, n_layers=6, n_decoder_layers=3, d_ff=2048),
}


def build(c: Config) -> Model:
    if c.tie == "all" and c.source_vocab != c.target_vocab:
        raise ValueError(
            f"tie='all' needs one vocabulary, got {c.source_vocab} and {c.target_vocab} tokens: train a joint tokenizer or tie='target'"
        )
    d, norm, rotary, normed = c.d_model, partial(LayerNorm, c.d_model, bias=False), Rotary(), partial(normed_heads, c)
    tokens = Tokens(c.source_vocab, d)
    target_tokens = Lent(tokens) if c.tie == "all" else Tokens(c.target_vocab, d)
    ffn = each(FFN, d, c.d_ff, relu2, bias=False)
    residual = lambda layer: Pre(c.dropout)  # noqa: E731
    encoder = body(c.n_layers, norm, residual, self_attn=normed(Attention, rotary=rotary), ffn=ffn)
    decoder = body(
        c.n_decoder_layers or c.n_layers,
        norm,
        residual,
        self_attn=normed(Attention, rotary=rotary, mask=causal),
        cross_attn=normed(CrossAttention),
        ffn=ffn,
    )
    # Blocks start as the identity, so a tied output starts by scoring its own input highest: untied is the better start (docs/log.md).
    lm = Linear(d, c.target_vocab, bias=False) if c.tie == "none" else Tied(target_tokens, scale=d**-0.5)
    return Model(
        {"lm": lm}, started, encoder=Tower(embed(c, tokens), encoder, norm()), decoder=Tower(embed(c, target_tokens), decoder, norm())
    )


def normed_heads(c: Any, make: Callable[..., nn.Module], **slots: Any) -> Maker:
    """Attention without biases whose queries and keys are normalised in each head, for a config with these pages' names."""
    d_head = c.d_head or c.d_model // c.n_heads
    per_head = partial(LayerNorm, d_head, gain=False)
    return lambda layer: make(c.d_model, c.n_heads, d_head=d_head, bias="", q_norm=per_head(), k_norm=per_head(), **slots)


def embed(c: Any, tokens: Any) -> Embed:
    return Embed(tokens=tokens, norm=Each(LayerNorm(c.d_model, gain=False)), dropout=Dropped(c.dropout))


def started(net: Model) -> None:
    """Weights of variance 1 / d_in inside, zero where a block ends, small at the output; embeddings (normed at once) of variance 1."""
    for _, p in matching(net, "q_proj.weight", "k_proj.weight", "v_proj.weight", "up_proj.weight"):
        init.normal_(p, std=1 / math.sqrt(p.shape[1]))
    for name, p in net.named_parameters():
        if name.endswith("embed.tokens.weight"):  # a model of pictures has none
            init.normal_(p)
    for _, p in matching(net, "o_proj.weight", "down_proj.weight"):
        init.zeros_(p)
    for name, p in net.heads.named_parameters():
        if p.ndim == 2:
            init.normal_(p, std=1 / math.sqrt(p.shape[1]) if name.endswith("dense.weight") else 0.02)
