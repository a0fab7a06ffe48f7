"""GPT-2: "Language Models are Unsupervised Multitask Learners" (Radford et al. 2019)."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

from plait.core import init
from plait.core.attention import Attention
from plait.core.blocks import PerLayer, body, each
from plait.core.embeddings import Dropped, Embed, Tokens
from plait.core.feedforward import ACTIVATIONS, FFN
from plait.core.heads import Tied
from plait.core.linear import Linear
from plait.core.masks import causal
from plait.core.model import Model, Tower, matching
from plait.core.norms import LayerNorm
from plait.core.positions import Learned
from plait.core.residual import Pre
from plait.weights.rules import Keys, activation, drop, group, key, prefix, rule, split, tie, transpose


@dataclass(frozen=True)
class Config:
    """Table 2 of the paper. `d_ff` is 4 d_model and the two finer dropouts are `dropout` unless given.

    `scores`: what attention scores are divided by: sqrt(d_head) ("width"), the layer's number ("depth"), "both" or "neither".
    """

    vocab_size: int = 50257
    max_length: int = 1024
    d_model: int = 768
    n_heads: int = 12
    n_layers: int = 12
    d_ff: int | None = None
    activation: str = "gelu_tanh"
    norm_eps: float = 1e-5
    scores: Literal["width", "depth", "both", "neither"] = "width"
    dropout: float = 0.1
    embed_dropout: float | None = None
    attention_dropout: float | None = None
    tie: bool = True


PRESETS = {
    "tiny": dict(vocab_size=128, max_length=64, d_model=32, n_heads=4, n_layers=2),
    "distil": dict(n_layers=6),
    "124m": dict(),
    "medium": dict(d_model=1024, n_heads=16, n_layers=24),
    "large": dict(d_model=1280, n_heads=20, n_layers=36),
    "xl": dict(d_model=1600, n_heads=25, n_layers=48),
}


def build(c: Config) -> Model:
    d, norm = c.d_model, partial(LayerNorm, c.d_model, c.norm_eps)
    attention_dropout = c.dropout if c.attention_dropout is None else c.attention_dropout

    def scale(layer: int) -> float:
        width = (d // c.n_heads) ** -0.5 if c.scores in ("width", "both") else 1.0
        return width / (layer + 1) if c.scores in ("depth", "both") else width

    tokens = Tokens(c.vocab_size, d)
    embed = Embed(
        tokens=tokens, positions=Learned(c.max_length, d), dropout=Dropped(c.dropout if c.embed_dropout is None else c.embed_dropout)
    )
    blocks = body(
        c.n_layers,
        norm,
        lambda layer: Pre(c.dropout),
        self_attn=each(Attention, d, c.n_heads, mask=causal, scale=PerLayer(scale), dropout=attention_dropout),
        ffn=each(FFN, d, c.d_ff or 4 * d, ACTIVATIONS[c.activation]),
    )
    lm = Tied(tokens) if c.tie else Linear(d, c.vocab_size, bias=False)
    return Model({"lm": lm}, started, decoder=Tower(embed, blocks, norm()))


def started(net: Model) -> None:
    """Normal of deviation 0.02, what ends a block smaller by sqrt(number of residual steps) (section 2.3)."""
    ends = list(matching(net, "o_proj.weight", "down_proj.weight"))
    for _, p in matching(net, "q_proj.weight", "k_proj.weight", "v_proj.weight", "up_proj.weight", "tokens.weight", "positions.weight"):
        init.normal_(p, std=0.02)
    for _, p in ends:
        init.normal_(p, std=0.02 / math.sqrt(len(ends)))
    if isinstance(head := net.heads["lm"], Linear):
        init.normal_(head.weight, std=0.02)


BLOCK = "decoder.blocks.{i}."
QKV = [f"{BLOCK}self_attn.{name}_proj.{{w}}" for name in "qkv"]

# Names of Hugging Face; its Conv1D stores matrices as [d_in, d_out].
RULES = (
    prefix("transformer."),
    rule("transformer.wte.weight", "decoder.embed.tokens.weight"),
    rule("transformer.wpe.weight", "decoder.embed.positions.weight"),
    rule("transformer.h.{i}.ln_1.{w}", BLOCK + "self_attn_norm.{w}"),
    rule("transformer.h.{i}.attn.c_attn.{w}", QKV, transpose, split()),
    rule("transformer.h.{i}.attn.c_proj.{w}", BLOCK + "self_attn.o_proj.{w}", transpose),
    rule("transformer.h.{i}.ln_2.{w}", BLOCK + "ffn_norm.{w}"),
    rule("transformer.h.{i}.mlp.c_fc.{w}", BLOCK + "ffn.up_proj.{w}", transpose),
    rule("transformer.h.{i}.mlp.c_proj.{w}", BLOCK + "ffn.down_proj.{w}", transpose),
    rule("transformer.ln_f.{w}", "decoder.norm.{w}"),
    rule("lm_head.weight", "heads.lm.weight"),
    tie("lm_head.weight", "transformer.wte.weight"),
    drop("transformer.h.{i}.attn.bias", "the causal mask as a table; masks are computed here"),
    drop("transformer.h.{i}.attn.masked_bias", "the number that hides a score; masks are computed here"),
)

SCORES = {(True, False): "width", (False, True): "depth", (True, True): "both", (False, False): "neither"}
SCORE_KEYS = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx")


def _scores(raw) -> dict:
    given = raw.get(SCORE_KEYS[0], True), raw.get(SCORE_KEYS[1], False)
    if given not in SCORES:
        raise ValueError(f"{', '.join(SCORE_KEYS)} = {given} must be true or false")
    return {"scores": SCORES[given]}


def _score_keys(settings) -> dict:
    return next(dict(zip(SCORE_KEYS, flags, strict=True)) for flags, name in SCORES.items() if name == settings["scores"])


def _dropouts(raw) -> dict:
    dropout, embed, attn = (raw.get(name, 0.1) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"))
    return {
        "dropout": dropout,
        "embed_dropout": None if embed == dropout else embed,
        "attention_dropout": None if attn == dropout else attn,
    }


def _dropout_keys(settings) -> dict:
    names = {"embed_dropout": "embd_pdrop", "attention_dropout": "attn_pdrop"}
    finer = {theirs: settings["dropout"] if settings[ours] is None else settings[ours] for ours, theirs in names.items()}
    return {"resid_pdrop": settings["dropout"], **finer}


KEYS = (
    Keys(
        "gpt2",
        (
            key("vocab_size", "vocab_size", 50257),
            key("n_positions", "max_length", 1024, also=["max_position_embeddings"]),
            key("n_embd", "d_model", 768, also=["hidden_size"]),
            key("n_layer", "n_layers", 12, also=["num_hidden_layers"]),
            key("n_head", "n_heads", 12, also=["num_attention_heads"]),
            key("n_inner", "d_ff", None, kind=int),
            activation("activation_function", "gelu_new"),
            key("layer_norm_epsilon", "norm_eps", 1e-5),
            key("tie_word_embeddings", "tie", True),
            group(SCORE_KEYS, _scores, _score_keys),
            group(("resid_pdrop", "embd_pdrop", "attn_pdrop"), _dropouts, _dropout_keys),
        ),
        # n_ctx repeats n_positions. Upcasting scores is a matter of precision, not of what is computed; summary_* are other heads.
        ignored=(
            "n_ctx reorder_and_upcast_attn summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj"
        ).split(),
        extra={"architectures": ["GPT2LMHeadModel"]},
    ),
)
