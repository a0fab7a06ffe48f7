"""OPT: open pre-trained causal models of many sizes (Zhang et al. 2022)."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from plait.core import init
from plait.core.attention import Attention
from plait.core.blocks import body, each
from plait.core.embeddings import Dropped, Each, Embed, Tokens
from plait.core.feedforward import ACTIVATIONS, FFN
from plait.core.heads import Tied, Transformed
from plait.core.linear import Linear
from plait.core.masks import causal
from plait.core.model import Model, Tower, matching
from plait.core.norms import LayerNorm
from plait.core.positions import Learned
from plait.core.residual import Post, Pre
from plait.weights.rules import Entry, Keys, activation, drop, fixed, group, key, prefix, rule, tie


@dataclass(frozen=True)
class Config:
    """Table 1 of the paper. `d_embed` is the width of the embeddings where it is not d_model (350m), as is `residual` "post" there.

    `affine`: whether norms have weights and biases; `final_norm`: whether one follows the last block, of "pre" only.
    """

    vocab_size: int = 50272
    d_model: int = 768
    n_heads: int = 12
    n_layers: int = 12
    d_ff: int = 3072
    d_embed: int | None = None
    max_length: int = 2048
    activation: str = "relu"
    residual: Literal["pre", "post"] = "pre"
    final_norm: bool = True
    affine: bool = True
    bias: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.0
    tie: bool = True


def _size(n_layers: int, d_model: int, n_heads: int, **more: Any) -> dict[str, Any]:
    return dict(vocab_size=50272, n_layers=n_layers, d_model=d_model, n_heads=n_heads, d_ff=4 * d_model, **more)


PRESETS = {
    "tiny": dict(vocab_size=128, d_model=32, n_heads=4, n_layers=2, d_ff=64, max_length=64),
    "125m": _size(12, 768, 12),
    "350m": _size(24, 1024, 16, d_embed=512, residual="post"),
    "1.3b": _size(24, 2048, 32),
    "2.7b": _size(32, 2560, 32),
    "6.7b": _size(32, 4096, 32),
    "13b": _size(40, 5120, 40),
    "30b": _size(48, 7168, 56),
    "66b": _size(64, 9216, 72),
}
RESIDUALS = {"pre": Pre, "post": Post}


def build(c: Config) -> Model:
    d, width = c.d_model, c.d_embed or c.d_model
    norm, residual = partial(LayerNorm, d, gain=c.affine, bias=c.affine), RESIDUALS[c.residual]
    tokens = Tokens(c.vocab_size, width)
    wider = {} if c.d_embed is None else {"project": Each(Linear(width, d, bias=False))}
    embed = Embed(tokens=tokens, **wider, positions=Learned(c.max_length, d, offset=2), dropout=Dropped(c.dropout))
    attention = each(Attention, d, c.n_heads, bias="qkvo" if c.bias else "", mask=causal, dropout=c.attention_dropout)
    ffn = each(FFN, d, c.d_ff, ACTIVATIONS[c.activation], bias=c.bias)
    blocks = body(c.n_layers, norm, lambda layer: residual(c.dropout), self_attn=attention, ffn=ffn)
    lm = Tied(tokens) if c.tie else Linear(width, c.vocab_size, bias=False)
    if wider:
        lm = Transformed(Linear(d, width, bias=False), nn.Identity(), nn.Identity(), lm)
    return Model({"lm": lm}, started, decoder=Tower(embed, blocks, norm() if _final(c) else None))


def _final(c: Config) -> bool:
    return c.residual == "pre" and c.final_norm


def started(net: Model) -> None:
    """Normal of deviation 0.006, what ends a step smaller by sqrt(2 n_layers) (section 2.2)."""
    ends = list(matching(net, "o_proj.weight", "down_proj.weight"))
    for _, p in matching(net, "q_proj.weight", "k_proj.weight", "v_proj.weight", "up_proj.weight", "tokens.weight", "positions.weight"):
        init.normal_(p, std=0.006)
    for _, p in ends:
        init.normal_(p, std=0.006 / len(ends) ** 0.5)


LAYER, BLOCK = "model.decoder.layers.{i}.", "decoder.blocks.{i}."


def rules(c: Config) -> list[Entry]:
    """Names of Hugging Face."""
    head = "heads.lm" if c.d_embed is None else "heads.lm.scores"
    wider: list[Entry] = [
        rule("model.decoder.project_in.weight", "decoder.embed.project.part.weight"),
        rule("model.decoder.project_out.weight", "heads.lm.dense.weight"),
    ]
    return [
        prefix("model."),
        rule("model.decoder.embed_tokens.weight", "decoder.embed.tokens.weight"),
        rule("model.decoder.embed_positions.weight", "decoder.embed.positions.weight"),
        *(wider if head != "heads.lm" else []),
        rule(LAYER + "self_attn_layer_norm.{w}", BLOCK + "self_attn_norm.{w}"),
        rule(LAYER + "self_attn.{part:q_proj|k_proj|v_proj}.{w}", BLOCK + "self_attn.{part:q_proj|k_proj|v_proj}.{w}"),
        rule(LAYER + "self_attn.out_proj.{w}", BLOCK + "self_attn.o_proj.{w}"),
        rule(LAYER + "final_layer_norm.{w}", BLOCK + "ffn_norm.{w}"),
        rule(LAYER + "fc1.{w}", BLOCK + "ffn.up_proj.{w}"),
        rule(LAYER + "fc2.{w}", BLOCK + "ffn.down_proj.{w}"),
        rule("model.decoder.final_layer_norm.{w}", "decoder.norm.{w}"),
        tie("lm_head.weight", "model.decoder.embed_tokens.weight") if c.tie else rule("lm_head.weight", f"{head}.weight"),
        drop("model.decoder.version", "the number of a format"),
    ]


def _width(raw) -> dict:
    width = raw.get("word_embed_proj_dim")
    if width is not None and (type(width) is not int or width < 1):
        raise ValueError(f"word_embed_proj_dim={width!r} must be a whole number from 1")
    return {"d_embed": None if width == raw.get("hidden_size", 768) else width}


KEYS = (
    Keys(
        "opt",
        (
            key("vocab_size", "vocab_size", 50272),
            key("hidden_size", "d_model", 768),
            key("num_attention_heads", "n_heads", 12),
            key("num_hidden_layers", "n_layers", 12),
            key("ffn_dim", "d_ff", 3072),
            group(("word_embed_proj_dim",), _width, lambda c: {"word_embed_proj_dim": c["d_embed"] or c["d_model"]}),
            key("max_position_embeddings", "max_length", 2048),
            activation("activation_function", "relu"),
            key("do_layer_norm_before", "residual", True, values={True: "pre", False: "post"}),
            key("_remove_final_layer_norm", "final_norm", False, values={False: True, True: False}),
            key("layer_norm_elementwise_affine", "affine", True),
            key("enable_bias", "bias", True),
            key("dropout", "dropout", 0.1),
            key("attention_dropout", "attention_dropout", 0.0),
            key("tie_word_embeddings", "tie", True),
            fixed("layerdrop", 0.0, "layers that are left out while training"),
        ),
        ignored=("init_std", "activation_dropout"),
        extra={"architectures": ["OPTForCausalLM"]},
    ),
)
