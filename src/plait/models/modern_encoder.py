"""An encoder of BERT's use with what small budgets gained since: what encoder tasks of `plait train` begin from.

The blocks are those of the page `modern`: pre-norm without biases, rotary positions, normalised queries and keys, squared ReLU, and
output projections that start at zero. The heads have the names and the places of BERT's (Devlin et al. 2019, section 3).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from plait.core import init
from plait.core.attention import Attention
from plait.core.blocks import body, each
from plait.core.embeddings import Dropped, Each, Embed, Tokens
from plait.core.feedforward import FFN, relu2
from plait.core.heads import Transformed
from plait.core.linear import Linear
from plait.core.model import Model, Tower, matching
from plait.core.norms import LayerNorm
from plait.core.residual import Pre
from plait.core.rotary import Rotary


@dataclass(frozen=True)
class Config:
    """`head`: "mlm" fills masks, "classify" reads the first entry, "tag" scores each entry, "answer" gives start and end scores of a
    span, "none" is the bare encoder. `labels` is the number of classes or tags."""

    vocab_size: int
    d_model: int = 256
    n_heads: int = 4
    n_layers: int = 4
    d_ff: int = 1024
    d_head: int | None = None
    dropout: float = 0.1
    head: Literal["mlm", "classify", "tag", "answer", "none"] = "mlm"
    labels: int = 2


PRESETS = {
    "tiny": dict(d_model=64, n_heads=2, n_layers=2, d_ff=256),
    "small": dict(d_model=128, n_heads=4, n_layers=4, d_ff=512),
    "medium": dict(d_model=256, n_heads=4, n_layers=6, d_ff=1024),
    "base": dict(d_model=512, n_heads=8, n_layers=8, d_ff=2048),
}


def build(c: Config) -> Model:
    d, norm = c.d_model, partial(LayerNorm, c.d_model, bias=False)
    d_head = c.d_head or d // c.n_heads
    rotary, per_head = Rotary(), partial(LayerNorm, d_head, gain=False)
    embed = Embed(tokens=Tokens(c.vocab_size, d), norm=Each(LayerNorm(d, gain=False)), dropout=Dropped(c.dropout))
    blocks = body(
        c.n_layers,
        norm,
        lambda layer: Pre(c.dropout),
        self_attn=lambda layer: Attention(d, c.n_heads, d_head=d_head, bias="", q_norm=per_head(), k_norm=per_head(), rotary=rotary),
        ffn=each(FFN, d, c.d_ff, relu2, bias=False),
    )
    return Model(head(c), started, encoder=Tower(embed, blocks, norm()))


def head(c: Config) -> dict[str, nn.Module]:
    d = c.d_model
    if c.head == "mlm":  # untied, as in `modern`: the embeddings start too large to be scored against
        return {"mlm": Transformed(Linear(d, d), relu2, LayerNorm(d, bias=False), Linear(d, c.vocab_size))}
    if c.head == "classify":
        return {"classify": Transformed(Linear(d, d), torch.tanh, nn.Identity(), Linear(d, c.labels))}
    return {} if c.head == "none" else {c.head: Linear(d, c.labels)}


def started(net: Model) -> None:
    """Weights of variance 1 / d_in inside, zero where a block ends, small at the output; embeddings (normed at once) of variance 1."""
    for _, p in matching(net, "q_proj.weight", "k_proj.weight", "v_proj.weight", "up_proj.weight"):
        init.normal_(p, std=1 / math.sqrt(p.shape[1]))
    for _, p in matching(net, "embed.tokens.weight"):
        init.normal_(p)
    for _, p in matching(net, "o_proj.weight", "down_proj.weight"):
        init.zeros_(p)
    for name, p in net.heads.named_parameters():
        if name.endswith("dense.weight"):
            init.normal_(p, std=1 / math.sqrt(p.shape[1]))
        elif p.dim() == 2:
            init.normal_(p, std=0.02)
