"""BART and Marian: the 2017 encoder-decoder as later checkpoints have it (Lewis et al. 2020; Junczys-Dowmunt et al. 2018)."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plait.core.attention import Attention, CrossAttention
from plait.core.blocks import body, each
from plait.core.embeddings import Dropped, Each, Embed, Tokens
from plait.core.feedforward import ACTIVATIONS, FFN
from plait.core.heads import Tied
from plait.core.masks import causal
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.positions import Learned, Sinusoid, sinusoid
from plait.core.residual import Post
from plait.core.stream import Lent
from plait.weights.rules import Entry, Keys, activation, computed, drop, fixed, group, key, prefix, row, rule, tie


@dataclass(frozen=True)
class Config:
    """`positions`: BART learns them, counted from 2, and norms the embeddings; Marian's are sinusoids, first all sines, then all cosines.

    `target_vocab` is for Marian models with an embedding a side; None: one matrix for both. `output_bias`: whether scores have one.
    """

    vocab_size: int = 50265
    target_vocab: int | None = None
    d_model: int = 768
    n_heads: int = 12
    n_decoder_heads: int | None = None
    n_layers: int = 6
    n_decoder_layers: int | None = None
    d_ff: int = 3072
    d_decoder_ff: int | None = None
    max_length: int = 1024
    positions: Literal["learned", "sinusoid"] = "learned"
    scale_embedding: bool = False
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    output_bias: bool = True

    def __post_init__(self):
        same = {"n_decoder_heads": self.n_heads, "n_decoder_layers": self.n_layers, "d_decoder_ff": self.d_ff}
        for ours, size in same.items():
            if getattr(self, ours) is None:  # as in the encoder; a config.json has to say it
                object.__setattr__(self, ours, size)


OPUS = dict(positions="sinusoid", scale_embedding=True, activation="silu", d_model=512, n_heads=8, d_ff=2048, max_length=512)
PRESETS = {
    "tiny": dict(d_model=32, n_heads=4, n_layers=2, d_ff=64, max_length=64),
    "opus-mt": dict(vocab_size=58101, **OPUS),
    "base": dict(vocab_size=50265),
    "large": dict(vocab_size=50265, d_model=1024, n_heads=16, n_layers=12, d_ff=4096),
}


def build(c: Config) -> Model:
    d, norm = c.d_model, partial(LayerNorm, c.d_model)
    scale, learned = math.sqrt(d) if c.scale_embedding else 1.0, c.positions == "learned"

    def embed(tokens: nn.Module | Lent) -> Embed:
        positions = Learned(c.max_length, d, offset=2) if learned else Sinusoid(layout="halves")
        norms = {"norm": Each(norm())} if learned else {}
        return Embed(tokens=tokens, positions=positions, **norms, dropout=Dropped(c.dropout))

    def steps(n_heads: int, d_ff: int):
        attention = dict(dropout=c.attention_dropout)
        return (
            partial(each, n_heads=n_heads, **attention),
            each(FFN, d, d_ff, ACTIVATIONS[c.activation], dropout=c.activation_dropout),
        )

    tokens = Tokens(c.vocab_size, d, scale=scale)
    target = Tokens(c.target_vocab, d, scale=scale) if c.target_vocab else Lent(tokens)
    attend, ffn = steps(c.n_heads, c.d_ff)
    encoder = body(c.n_layers, norm, lambda layer: Post(c.dropout), self_attn=attend(Attention, d), ffn=ffn)
    attend, ffn = steps(c.n_decoder_heads or c.n_heads, c.d_decoder_ff or c.d_ff)
    decoder = body(
        c.n_decoder_layers or c.n_layers,
        norm,
        lambda layer: Post(c.dropout),
        self_attn=attend(Attention, d, mask=causal),
        cross_attn=attend(CrossAttention, d),
        ffn=ffn,
    )
    return Model({"lm": Tied(target, bias=c.output_bias)}, encoder=Tower(embed(tokens), encoder), decoder=Tower(embed(target), decoder))


def fitted(c: Config, names: Collection[str]) -> Config:
    """The config that a file with these names is of: models saved without their head (BART base and large) have no bias of the scores."""
    return replace(c, output_bias="final_logits_bias" in names)


STEPS = {"encoder": {"self_attn": "self_attn"}, "decoder": {"self_attn": "self_attn", "cross_attn": "encoder_attn"}}


def layer_rules(side: str, attentions: Mapping[str, str]) -> list[Entry]:
    """Names of one side's layers, as they are in all that came of this code; `attentions` are ours and theirs."""
    here, there = f"model.{side}.layers.{{i}}", f"{side}.blocks.{{i}}"
    table: list[Entry] = []
    for ours, theirs in attentions.items():
        names = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "out_proj"}
        table += [rule(f"{here}.{theirs}.{b}.{{w}}", f"{there}.{ours}.{a}.{{w}}") for a, b in names.items()]
        table.append(rule(f"{here}.{theirs}_layer_norm.{{w}}", f"{there}.{ours}_norm.{{w}}"))
    ffn = {"fc1": "ffn.up_proj", "fc2": "ffn.down_proj", "final_layer_norm": "ffn_norm"}
    return [*table, *(rule(f"{here}.{theirs}.{{w}}", f"{there}.{ours}.{{w}}") for theirs, ours in ffn.items())]


def rules(c: Config) -> list[Entry]:
    """The table of Hugging Face's names for a model of this config."""

    def sinusoids() -> Tensor:
        return sinusoid(torch.arange(c.max_length), c.d_model, layout="halves")

    table: list[Entry] = [prefix("model."), drop("model.{side:encoder|decoder}.version", "the number of a format")]
    if c.output_bias:
        table.append(rule("final_logits_bias", "heads.lm.bias", row))
    if c.target_vocab is None:
        table.append(rule("model.shared.weight", "encoder.embed.tokens.weight"))
        table += [tie(f"model.{side}.embed_tokens.weight", "model.shared.weight") for side in STEPS]
        table.append(tie("lm_head.weight", "model.shared.weight"))
    else:
        table += [rule(f"model.{side}.embed_tokens.weight", f"{side}.embed.tokens.weight") for side in STEPS]
        table.append(tie("lm_head.weight", "model.decoder.embed_tokens.weight"))
    for side, attentions in STEPS.items():
        table += layer_rules(side, attentions)
        if c.positions == "learned":
            table.append(rule(f"model.{side}.embed_positions.weight", f"{side}.embed.positions.weight"))
            table.append(rule(f"model.{side}.layernorm_embedding.{{w}}", f"{side}.embed.norm.part.{{w}}"))
        else:
            table.append(computed(f"model.{side}.embed_positions.weight", sinusoids, "the sinusoids of all positions"))
    return table


ENTRIES = [
    key("d_model", "d_model", 1024),
    key("encoder_attention_heads", "n_heads", 16),
    key("decoder_attention_heads", "n_decoder_heads", 16),
    key("encoder_layers", "n_layers", 12),
    key("decoder_layers", "n_decoder_layers", 12),
    key("encoder_ffn_dim", "d_ff", 4096),
    key("decoder_ffn_dim", "d_decoder_ff", 4096),
    key("max_position_embeddings", "max_length", 1024),
    key("scale_embedding", "scale_embedding", False),
    activation("activation_function", "gelu"),
    key("dropout", "dropout", 0.1),
    key("attention_dropout", "attention_dropout", 0.0),
    key("activation_dropout", "activation_dropout", 0.0),
    fixed("is_encoder_decoder", True),
    fixed("tie_word_embeddings", True),
    fixed("encoder_layerdrop", 0.0),
    fixed("decoder_layerdrop", 0.0),
    # Keys of the first releases, which later code does not read.
    fixed("normalize_before", False),
    fixed("add_final_layer_norm", False),
    fixed("static_position_embeddings", False),
    fixed("extra_pos_embeddings", 2),
]
UNREAD = "init_std classifier_dropout classif_dropout normalize_embedding num_hidden_layers add_bias_logits".split()
UNREAD += ["force_bos_token_to_be_generated"]


def _vocabularies(raw: Mapping[str, Any]) -> dict[str, Any]:
    source = raw.get("vocab_size", 58101)
    target = raw.get("decoder_vocab_size") or source
    if raw.get("share_encoder_decoder_embeddings", True):
        if target != source:
            raise ValueError(f"decoder_vocab_size={target} is not vocab_size={source}, although both sides share their embeddings")
        return {"vocab_size": source, "target_vocab": None}
    return {"vocab_size": source, "target_vocab": target}


def _vocabulary_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    source, target = settings["vocab_size"], settings["target_vocab"]
    return {"vocab_size": source, "decoder_vocab_size": target or source, "share_encoder_decoder_embeddings": target is None}


def _positions(kind: str):
    """The kind of positions is the model type's, no key's."""

    def write(settings: Mapping[str, Any]) -> dict[str, Any]:
        if settings["positions"] != kind:
            raise ValueError(f"its positions are {kind}, not {settings['positions']}")
        return {}

    return group([], lambda raw: {"positions": kind}, write)


KEYS = (
    Keys(
        "bart",
        [
            key("vocab_size", "vocab_size", 50265),
            group((), lambda raw: {"target_vocab": None}, lambda c: {}),
            _positions("learned"),
            *ENTRIES,
        ],
        ignored=UNREAD,
        extra={"architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True},
    ),
    Keys(
        "marian",
        [
            group(["vocab_size", "decoder_vocab_size", "share_encoder_decoder_embeddings"], _vocabularies, _vocabulary_keys),
            _positions("sinusoid"),
            *[entry for entry in ENTRIES if not {"static_position_embeddings", "extra_pos_embeddings"} & set(entry.names)],
        ],
        ignored=[*UNREAD, "static_position_embeddings", "extra_pos_embeddings"],
        extra={"architectures": ["MarianMTModel"], "is_encoder_decoder": True},
    ),
)
