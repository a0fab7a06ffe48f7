"""An encoder of BERT's use with what small budgets gained since: what encoder tasks of `plait train` begin from.

The blocks are those of the page `modern`: pre-norm without biases, rotary positions, normalised queries and keys, squared ReLU, and
output projections that start at zero. The heads have the names and the places of BERT's (Devlin et al. 2019, section 3).
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from plait.core.attention import Attention
from plait.core.blocks import body, each
from plait.core.embeddings import Tokens
from plait.core.feedforward import FFN, relu2
from plait.core.heads import Transformed
from plait.core.linear import Linear
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.residual import Pre
from plait.core.rotary import Rotary
from plait.models.modern import embed, normed_heads, started


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
    blocks = body(
        c.n_layers,
        norm,
        lambda layer: Pre(c.dropout),
        self_attn=normed_heads(c, Attention, rotary=Rotary()),
        ffn=each(FFN, d, c.d_ff, relu2, bias=False),
    )
    return Model(head(c), started, encoder=Tower(embed(c, Tokens(c.vocab_size, d)), blocks, norm()))


def head(c: Config) -> dict[str, nn.Module]:
    d = c.d_model
    if c.head == "mlm":  # untied, as in `modern`: the embeddings start too large to be scored against
        return {"mlm": Transformed(Linear(d, d), relu2, LayerNorm(d, bias=False), Linear(d, c.vocab_size))}
    if c.head == "classify":
        return {"classify": Transformed(Linear(d, d), torch.tanh, nn.Identity(), Linear(d, c.labels))}
    return {} if c.head == "none" else {c.head: Linear(d, c.labels)}
