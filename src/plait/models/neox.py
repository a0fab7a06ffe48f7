"""GPT-NeoX: attention and feed-forward read the same stream (Black et al. 2022), with the Pythia suite (Biderman et al. 2023)."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from plait.core import init
from plait.core.attention import Attention
from plait.core.blocks import body, each
from plait.core.embeddings import Dropped, Embed, Tokens
from plait.core.feedforward import ACTIVATIONS, FFN
from plait.core.heads import Tied
from plait.core.linear import Linear
from plait.core.masks import causal
from plait.core.model import Model, Tower, matching
from plait.core.norms import LayerNorm
from plait.core.residual import Parallel, Pre
from plait.core.rotary import stretched
from plait.weights.rules import Entry, Keys, activation, drop, key, prefix, regroup, ropes, rule, split, tie


@dataclass(frozen=True)
class Config:
    """The 20B model of section 2.1. `turned` is the share of a head's channels that rotary positions turn (section 2.1.1).

    `residual`: whether both steps of a block read the same stream (section 2.1.2), or the second what the first made of it.
    `stretch` is how rotary positions reach further, as on Llama's page; `bias` names the projections "qkvo" that have one.
    """

    vocab_size: int = 50432
    d_model: int = 6144
    n_heads: int = 64
    n_layers: int = 44
    d_ff: int = 24576
    max_length: int = 2048
    activation: str = "gelu"
    norm_eps: float = 1e-5
    residual: Literal["parallel", "pre"] = "parallel"
    turned: float = 0.25
    rope_base: float = 10000.0
    stretch: dict[str, Any] | None = None
    bias: str = "qkvo"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    tie: bool = False


def _size(n_layers: int, d_model: int, n_heads: int, vocab_size: int = 50304) -> dict[str, Any]:
    return dict(vocab_size=vocab_size, d_model=d_model, n_heads=n_heads, n_layers=n_layers, d_ff=4 * d_model)


PRESETS = {
    "tiny": dict(_size(2, 32, 4, 128), max_length=64),
    "pythia-14m": _size(6, 128, 4),
    "pythia-70m": _size(6, 512, 8),
    "pythia-160m": _size(12, 768, 12),
    "pythia-410m": _size(24, 1024, 16),
    "pythia-1b": _size(16, 2048, 8),
    "pythia-1.4b": _size(24, 2048, 16),
    "pythia-2.8b": _size(32, 2560, 32),
    "pythia-6.9b": _size(32, 4096, 32, 50432),
    "pythia-12b": _size(36, 5120, 40, 50688),
    "20b": _size(44, 6144, 64, 50432),
}
RESIDUALS = {"parallel": Parallel, "pre": Pre}


def build(c: Config) -> Model:
    d, width = c.d_model, int(c.d_model // c.n_heads * c.turned)
    if not 0 <= c.turned <= 1:
        raise ValueError(f"turned={c.turned} is no share of a head's channels: give a number from 0 to 1")
    turning = stretched(c.rope_base, c.stretch, width) if width else None
    tokens, norm, residual = Tokens(c.vocab_size, d), partial(LayerNorm, d, c.norm_eps), RESIDUALS[c.residual]
    attention = each(Attention, d, c.n_heads, bias=c.bias, mask=causal, rotary=turning, dropout=c.attention_dropout)
    ffn = each(FFN, d, c.d_ff, ACTIVATIONS[c.activation])
    blocks = body(c.n_layers, norm, lambda layer: residual(c.dropout), self_attn=attention, ffn=ffn)
    lm = Tied(tokens) if c.tie else Linear(d, c.vocab_size, bias=False)
    return Model({"lm": lm}, started, decoder=Tower(Embed(tokens=tokens, dropout=Dropped(c.dropout)), blocks, norm()))


def started(net: Model) -> None:
    """Normal of deviation sqrt(2 / 5d), what ends a step 2 / (n_layers sqrt(d)) (section 2.1.3)."""
    d, ends = net.decoder.embed.tokens.weight.shape[1], ("o_proj.weight", "down_proj.weight")  # type: ignore[union-attr]
    for name, p in matching(net, "tokens.weight", "_proj.weight", *(["lm.weight"] if isinstance(net.heads["lm"], Linear) else [])):
        init.normal_(p, std=2 / len(net.decoder.blocks) / d**0.5 if name.endswith(ends) else (2 / (5 * d)) ** 0.5)  # type: ignore[arg-type]


LAYER, BLOCK = "gpt_neox.layers.{i}.", "decoder.blocks.{i}."


def rules(c: Config) -> list[Entry]:
    """Names of Hugging Face; rows of q, k and v lie together head by head."""
    together = regroup((-1, 3, c.d_model // c.n_heads), (1, 0, 2))
    return [
        prefix("gpt_neox."),
        rule("gpt_neox.embed_in.weight", "decoder.embed.tokens.weight"),
        rule(LAYER + "input_layernorm.{w}", BLOCK + "self_attn_norm.{w}"),
        rule(LAYER + "attention.query_key_value.{w}", [f"{BLOCK}self_attn.{name}_proj.{{w}}" for name in "qkv"], together, split()),
        rule(LAYER + "attention.dense.{w}", BLOCK + "self_attn.o_proj.{w}"),
        rule(LAYER + "post_attention_layernorm.{w}", BLOCK + "ffn_norm.{w}"),
        rule(LAYER + "mlp.dense_h_to_4h.{w}", BLOCK + "ffn.up_proj.{w}"),
        rule(LAYER + "mlp.dense_4h_to_h.{w}", BLOCK + "ffn.down_proj.{w}"),
        rule("gpt_neox.final_layer_norm.{w}", "decoder.norm.{w}"),
        rule("embed_out.weight", "heads.lm.weight"),
        tie("embed_out.weight", "gpt_neox.embed_in.weight"),
        drop(LAYER + "attention.{table:bias|masked_bias}", "the causal mask as a table, and what hides a score; masks are computed here"),
        drop(LAYER + "attention.rotary_emb.inv_freq", "the rates of rotary positions; they are computed here, in float64"),
    ]


KEYS = (
    Keys(
        "gpt_neox",
        (
            key("vocab_size", "vocab_size", 50432),
            key("hidden_size", "d_model", 6144),
            key("num_attention_heads", "n_heads", 64),
            key("num_hidden_layers", "n_layers", 44),
            key("intermediate_size", "d_ff", 24576),
            key("max_position_embeddings", "max_length", 2048),
            activation("hidden_act", "gelu"),
            key("layer_norm_eps", "norm_eps", 1e-5),
            key("use_parallel_residual", "residual", True, values={True: "parallel", False: "pre"}),
            ropes("rotary_emb_base", "rotary_pct", 0.25),
            key("attention_bias", "bias", True, values={True: "qkvo", False: ""}),
            key("hidden_dropout", "dropout", 0.0),
            key("attention_dropout", "attention_dropout", 0.0),
            key("tie_word_embeddings", "tie", False),
        ),
        # Older names of the dropouts, which the reference does not read; classifier_dropout is of another head.
        ignored=("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout"),
        extra={"architectures": ["GPTNeoXForCausalLM"]},
    ),
)
