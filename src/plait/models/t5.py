"""T5: every task as text to text (Raffel et al. 2020), in its first form, as v1.1 and as Flan-T5."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from plait.core.attention import Attention, CrossAttention
from plait.core.biases import RelativeBias
from plait.core.blocks import body, each
from plait.core.embeddings import Dropped, Embed, Tokens
from plait.core.feedforward import ACTIVATIONS, FFN
from plait.core.heads import Tied
from plait.core.linear import Linear
from plait.core.masks import Mask, causal
from plait.core.model import Model, Tower
from plait.core.norms import RMSNorm
from plait.core.residual import Pre
from plait.core.stream import Lent
from plait.weights.rules import ACTIVATIONS as NAMES
from plait.weights.rules import Entry, Keys, drop, fixed, group, key, rule, tie


@dataclass(frozen=True)
class Config:
    """Section 2.1; v1.1 and Flan have a `gated` feed-forward with `gelu_tanh`, and an output matrix of their own (`tie=False`)."""

    vocab_size: int = 32128
    d_model: int = 512
    d_head: int = 64
    n_heads: int = 8
    n_layers: int = 6
    n_decoder_layers: int | None = None
    d_ff: int = 2048
    buckets: int = 32
    max_distance: int = 128
    activation: str = "relu"
    gated: bool = False
    norm_eps: float = 1e-6
    dropout: float = 0.1
    tie: bool = True
    scale_output: bool = True  # hidden vectors times d_model ** -0.5 before a tied output


V1_1 = dict(vocab_size=32128, activation="gelu_tanh", gated=True, tie=False)
PRESETS = {
    "tiny": dict(d_model=32, d_head=8, n_heads=4, n_layers=2, d_ff=64),
    "small": dict(vocab_size=32128),
    "v1.1-small": dict(**V1_1, n_heads=6, n_layers=8, d_ff=1024),
    "base": dict(vocab_size=32128, d_model=768, n_heads=12, n_layers=12, d_ff=3072),
    "v1.1-base": dict(**V1_1, d_model=768, n_heads=12, n_layers=12),
    "large": dict(vocab_size=32128, d_model=1024, n_heads=16, n_layers=24, d_ff=4096),
    "v1.1-large": dict(**V1_1, d_model=1024, n_heads=16, n_layers=24, d_ff=2816),
}


def build(c: Config) -> Model:
    d, norm = c.d_model, partial(RMSNorm, c.d_model, eps=c.norm_eps)
    tokens = Tokens(c.vocab_size, d)
    how = dict(d_head=c.d_head, bias="", scale=1.0, dropout=c.dropout)
    ffn = each(FFN, d, c.d_ff, ACTIVATIONS[c.activation], gated=c.gated, bias=False, dropout=c.dropout)

    def side(n_layers: int, embed: Embed, mask: Mask | None, **cross) -> Tower:
        table = RelativeBias(c.n_heads, c.buckets, c.max_distance, causal=mask is causal)
        attention = each(Attention, d, c.n_heads, mask=mask, score_bias=Lent(table), **how)
        return Tower(
            embed, body(n_layers, norm, lambda layer: Pre(c.dropout), self_attn=attention, **cross, ffn=ffn), norm(), c.dropout, bias=table
        )

    encoder = side(c.n_layers, Embed(tokens=tokens, dropout=Dropped(c.dropout)), None)
    cross = each(CrossAttention, d, c.n_heads, **how)
    embed = Embed(tokens=Lent(tokens), dropout=Dropped(c.dropout))
    decoder = side(c.n_decoder_layers or c.n_layers, embed, causal, cross_attn=cross)
    lm = Tied(tokens, scale=d**-0.5 if c.scale_output else 1.0) if c.tie else Linear(d, c.vocab_size, bias=False)
    return Model({"lm": lm}, encoder=encoder, decoder=decoder)


def attention(side: str, theirs: str, layer: int, ours: str) -> list[Entry]:
    here, there = f"{side}.block.{{i}}.layer.{layer}", f"{side}.blocks.{{i}}"
    kinds = [rule(f"{here}.{theirs}.{x}.weight", f"{there}.{ours}.{x}_proj.weight") for x in "qkvo"]
    return [*kinds, rule(f"{here}.layer_norm.weight", f"{there}.{ours}_norm.weight")]


def ffn(side: str, layer: int, gated: bool) -> list[Entry]:
    here, there = f"{side}.block.{{i}}.layer.{layer}", f"{side}.blocks.{{i}}"
    up = {"wi_0": "gate_proj", "wi_1": "up_proj"} if gated else {"wi": "up_proj"}
    names = {**up, "wo": "down_proj"}
    kinds = [rule(f"{here}.DenseReluDense.{a}.weight", f"{there}.ffn.{b}.weight") for a, b in names.items()]
    return [*kinds, rule(f"{here}.layer_norm.weight", f"{there}.ffn_norm.weight")]


def rules(c: Config) -> list[Entry]:
    """The table of Hugging Face's names for a model of this config."""
    table = [
        rule("shared.weight", "encoder.embed.tokens.weight"),
        tie("encoder.embed_tokens.weight", "shared.weight"),
        tie("decoder.embed_tokens.weight", "shared.weight"),
        tie("lm_head.weight", "shared.weight") if c.tie else rule("lm_head.weight", "heads.lm.weight"),
        *attention("encoder", "SelfAttention", 0, "self_attn"),
        *ffn("encoder", 1, c.gated),
        *attention("decoder", "SelfAttention", 0, "self_attn"),
        *attention("decoder", "EncDecAttention", 1, "cross_attn"),
        *ffn("decoder", 2, c.gated),
        drop("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", "in the first releases; no attention reads it"),
    ]
    for side in ("encoder", "decoder"):
        table.append(rule(f"{side}.final_layer_norm.weight", f"{side}.norm.weight"))
        table.append(rule(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{side}.bias.weight"))
    return table


def _feed_forward(raw: Mapping[str, Any]) -> dict[str, Any]:
    said = raw.get("feed_forward_proj", "relu")
    gated, _, name = said.rpartition("gated-") if isinstance(said, str) else ("", "", "")
    kind = "gelu_new" if said == "gated-gelu" else name  # the reference takes the tanh formula for this one name
    if gated or kind not in NAMES:
        raise ValueError(f"feed_forward_proj={said!r} is not known here: there is {', '.join(NAMES)}, each also as gated-...")
    return {"activation": NAMES[kind], "gated": said.startswith("gated-")}


def _feed_forward_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    name = next(theirs for theirs, ours in NAMES.items() if ours == settings["activation"])
    name = "gelu" if settings["gated"] and name == "gelu_new" else name
    return {"feed_forward_proj": ("gated-" if settings["gated"] else "") + name}


def _output(raw: Mapping[str, Any]) -> dict[str, Any]:
    tied = raw.get("tie_word_embeddings", True)
    scaled = raw.get("scale_decoder_outputs", tied)
    if scaled and not tied:
        raise ValueError("scale_decoder_outputs=True with tie_word_embeddings=False is not understood: only a tied output is scaled")
    return {"tie": tied, "scale_output": bool(scaled) if tied else True}


def _output_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    said = {"tie_word_embeddings": settings["tie"]}
    return said if settings["scale_output"] else {**said, "scale_decoder_outputs": False}


KEYS = (
    Keys(
        "t5",
        [
            key("vocab_size", "vocab_size", 32128),
            key("d_model", "d_model", 512),
            key("d_kv", "d_head", 64),
            key("num_heads", "n_heads", 8),
            key("num_layers", "n_layers", 6),
            key("num_decoder_layers", "n_decoder_layers", None, kind=int),
            key("d_ff", "d_ff", 2048),
            key("relative_attention_num_buckets", "buckets", 32),
            key("relative_attention_max_distance", "max_distance", 128),
            key("layer_norm_epsilon", "norm_eps", 1e-6),
            key("dropout_rate", "dropout", 0.1),
            group(["feed_forward_proj", "dense_act_fn", "is_gated_act"], _feed_forward, _feed_forward_keys),
            group(["tie_word_embeddings", "scale_decoder_outputs"], _output, _output_keys),
            fixed("is_encoder_decoder", True),
        ],
        ignored={"initializer_factor", "classifier_dropout", "n_positions", "is_decoder"},
        extra={"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
    ),
)
