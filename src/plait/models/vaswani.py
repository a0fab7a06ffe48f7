"""The 2017 encoder-decoder: "Attention Is All You Need" (Vaswani et al. 2017)."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

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
from plait.weights.rules import Entry, rule, split, tie

RESIDUALS = {"post": Post, "pre": Pre, "sandwich": Sandwich}


@dataclass(frozen=True)
class Config:
    """Table 3 of the paper. `tie`: which of source embedding, target embedding and output matrix are one matrix (section 3.4).

    `positions`: the sinusoids of section 3.5, or those of OpenNMT, as below. `output_bias`: OpenNMT's scores have one.
    """

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
    positions: Literal["paper", "opennmt"] = "paper"
    output_bias: bool = False


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
    d, kind = c.d_model, RESIDUALS[c.residual]
    norm, residual = partial(LayerNorm, d), lambda layer: kind(c.dropout)
    # Post-norm ends every layer with a norm already; the other rules leave the sum unnormalised.
    last = (lambda: None) if kind is Post else norm
    heads = dict(d_head=c.d_head)
    ffn = each(FFN, d, c.d_ff)

    tokens = Tokens(c.source_vocab, d, scale=math.sqrt(d))
    source = Embed(tokens=tokens, positions=sinusoids(c), dropout=Dropped(c.dropout))
    target_tokens = Lent(tokens) if c.tie == "all" else Tokens(c.target_vocab, d, scale=math.sqrt(d))
    target = Embed(tokens=target_tokens, positions=sinusoids(c), dropout=Dropped(c.dropout))

    encoder = body(c.n_layers, norm, residual, self_attn=each(Attention, d, c.n_heads, **heads), ffn=ffn)
    decoder = body(
        c.n_decoder_layers or c.n_layers,
        norm,
        residual,
        self_attn=each(Attention, d, c.n_heads, mask=causal, **heads),
        cross_attn=each(CrossAttention, d, c.n_heads, **heads),
        ffn=ffn,
    )
    lm = Linear(d, c.target_vocab, bias=c.output_bias) if c.tie == "none" else Tied(target_tokens, bias=c.output_bias)
    return Model({"lm": lm}, encoder=Tower(source, encoder, last()), decoder=Tower(target, decoder, last()))


def sinusoids(c: Config) -> Sinusoid:
    """OpenNMT counts from 1, puts all sines before all cosines, and its slowest rate is 1/10000 itself, not the one before it."""
    if c.positions == "paper":
        return Sinusoid()
    return Sinusoid(base=10000.0 ** (c.d_model / max(c.d_model - 2, 1)), layout="halves", first=1)


# ---- CTranslate2 ----

CTRANSLATE2 = {"TransformerSpec": None, "TransformerBase": 8, "TransformerBig": 16}  # the kinds of model: heads where no setting says
# Settings without a say in the scores (where alignments are read, how the only embedding of the source would be merged with others).
UNREAD = {"encoder/embeddings_merge", "decoder/alignment_layer", "decoder/alignment_heads"}
SIDES = {  # our attention: theirs, and what lies in each of its matrices, one after another
    "encoder": {"self_attn": ("self_attention", "qkv", "o")},
    "decoder": {"self_attn": ("self_attention", "qkv", "o"), "cross_attn": ("attention", "q", "kv", "o")},
}


def ctranslate2_config(raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], aliases: Mapping[str, str]) -> Config:
    """The settings of a CTranslate2 encoder-decoder: what its scalars say, and the shapes. ValueError for what this page has not."""
    settings = {name: value for name, value in raw.items() if "/" in name or name == "multi_query_attention"}

    def said(name: str, default: Any) -> Any:
        """A setting that both sides have, and must have alike."""
        values = {settings.pop(f"{side}/{name}", default) for side in SIDES}
        if len(values) > 1:
            raise ValueError(f"{name} is {' and '.join(map(str, values))}: both sides must have the same")
        return values.pop()

    heads, pre = said("num_heads", CTRANSLATE2[raw["spec"]]), said("pre_norm", 1)
    plain = {"activation": 0, "scale_embeddings": 1, "multi_query_attention": 0}  # ReLU, times sqrt(d_model)
    odd = [f"{name}={value}" for name, value in settings.items() if name not in UNREAD and value != plain.get(name.split("/")[-1], 0)]
    source, target, up = (f"{name}/weight" for name in (_source(shapes), "decoder/embeddings", "encoder/layer_0/ffn/linear_0"))
    odd += [f"no {name}" for name in (source, target, up) if len(shapes.get(name, ())) != 2]
    if heads is None or odd:
        raise ValueError(f"it has what is not built here: {', '.join(odd) or 'no number of heads'}")
    same = {aliases.get(name, name) for name in (target, "decoder/projection/weight")}
    layers = {side: len({name.split("/")[1] for name in shapes if re.match(rf"{side}/layer_\d", name)}) for side in SIDES}
    return Config(
        source_vocab=shapes[source][0],
        target_vocab=shapes[target][0],
        d_model=shapes[source][1],
        n_heads=heads,
        n_layers=layers["encoder"],
        n_decoder_layers=layers["decoder"],
        d_ff=shapes[up][0],
        residual="pre" if pre else "post",
        tie="none" if len(same) > 1 else "all" if aliases.get(source, source) in same else "target",
        positions="opennmt",
        output_bias="decoder/projection/bias" in shapes,
    )


def _source(shapes: Mapping[str, Any]) -> str:
    """Later files number the embeddings of the source, of which there may be several."""
    return "encoder/embeddings_0" if "encoder/embeddings_0/weight" in shapes else "encoder/embeddings"


def ctranslate2_rules(c: Config, shapes: Mapping[str, Any]) -> list[Entry]:
    """The table of CTranslate2's names for a model of this config."""
    source, target, projection = f"{_source(shapes)}/weight", "decoder/embeddings/weight", "decoder/projection"
    table: list[Entry] = [rule(source, "encoder.embed.tokens.weight")]
    table.append(tie(target, source) if c.tie == "all" else rule(target, "decoder.embed.tokens.weight"))
    own = c.tie == "none"
    table.append(
        rule(f"{projection}/weight", "heads.lm.weight") if own else tie(f"{projection}/weight", source if c.tie == "all" else target)
    )
    table += [rule(f"{projection}/bias", "heads.lm.bias")] * c.output_bias

    def normed(theirs: str, ours: str) -> list[Entry]:
        return [rule(f"{theirs}/gamma", f"{ours}.weight"), rule(f"{theirs}/beta", f"{ours}.bias")]

    for side, attentions in SIDES.items():
        there, here = f"{side}/layer_{{i}}", f"{side}.blocks.{{i}}"
        for ours, (theirs, *matrices) in attentions.items():
            for k, parts in enumerate(matrices):
                names = [f"{here}.{ours}.{part}_proj.{{w}}" for part in parts]
                table.append(rule(f"{there}/{theirs}/linear_{k}/{{w}}", names, split()))
            table += normed(f"{there}/{theirs}/layer_norm", f"{here}.{ours}_norm")
        table += [rule(f"{there}/ffn/linear_{k}/{{w}}", f"{here}.ffn.{name}_proj.{{w}}") for k, name in enumerate(("up", "down"))]
        table += normed(f"{there}/ffn/layer_norm", f"{here}.ffn_norm")
        table += normed(f"{side}/layer_norm", f"{side}.norm") * (c.residual != "post")
    return table
