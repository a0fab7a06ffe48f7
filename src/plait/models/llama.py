"""Llama (Touvron et al. 2023; Llama 3: Dubey et al. 2024) and what shares its page: SmolLM2, Mistral (Jiang et al. 2023), Qwen2 (2024)."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from plait.core import init
from plait.core.attention import Attention
from plait.core.blocks import PerLayer, body, each
from plait.core.embeddings import Embed, Tokens
from plait.core.feedforward import ACTIVATIONS, FFN
from plait.core.heads import Tied
from plait.core.linear import Linear
from plait.core.masks import Mask, Window, causal
from plait.core.model import Model, Tower, matching
from plait.core.norms import RMSNorm
from plait.core.residual import Pre
from plait.core.rotary import stretched
from plait.models import llama_gguf
from plait.weights.rules import Entry, Keys, activation, computed, drop, fixed, group, halves, key, prefix, rope, rule, tie


@dataclass(frozen=True)
class Config:
    """Rotary positions, RMS norms, gated feed-forward, fewer key heads than query heads; no biases unless named.

    `window`: how many tokens back attention sees, itself included: one number, or one for each layer (None: all).
    `stretch`: how rotary positions reach beyond the first training's length, {"kind": "linear" | "llama3" | "yarn", ...} with the
    arguments of that function of `core.rotary` (and `magnitude` for yarn). `bias` names the projections "qkvo" that have one.
    """

    vocab_size: int = 32000
    d_model: int = 4096
    n_heads: int = 32
    n_layers: int = 32
    d_ff: int = 11008
    n_kv_heads: int | None = None
    d_head: int | None = None
    max_length: int = 2048
    norm_eps: float = 1e-6
    rope_base: float = 10000.0
    stretch: dict[str, Any] | None = None
    window: int | list[int | None] | None = None
    activation: str = "silu"
    bias: str = ""
    ffn_bias: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    tie: bool = False


LLAMA32 = dict(
    vocab_size=128256,
    n_kv_heads=8,
    d_ff=8192,
    max_length=131072,
    norm_eps=1e-5,
    rope_base=500000.0,
    stretch=dict(kind="llama3", factor=32.0, low=1.0, high=4.0, original_length=8192),
    tie=True,
)
SMOLLM2 = dict(vocab_size=49152, max_length=8192, norm_eps=1e-5, rope_base=100000.0, tie=True)
QWEN2 = dict(vocab_size=151936, max_length=131072, rope_base=1000000.0, bias="qkv")
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(vocab_size=128, d_model=32, n_heads=4, n_layers=2, d_ff=64, n_kv_heads=2, max_length=128),
    "smollm2-135m": dict(SMOLLM2, d_model=576, n_heads=9, n_layers=30, d_ff=1536, n_kv_heads=3),
    "smollm2-360m": dict(SMOLLM2, d_model=960, n_heads=15, n_layers=32, d_ff=2560, n_kv_heads=5),
    "qwen2-0.5b": dict(QWEN2, d_model=896, n_heads=14, n_layers=24, d_ff=4864, n_kv_heads=2, tie=True),
    "tinyllama-1.1b": dict(d_model=2048, n_heads=32, n_layers=22, d_ff=5632, n_kv_heads=4, norm_eps=1e-5),
    "llama-3.2-1b": dict(LLAMA32, d_model=2048, n_heads=32, n_layers=16),
    "smollm2-1.7b": dict(SMOLLM2, d_model=2048, n_heads=32, n_layers=24, d_ff=8192, rope_base=130000.0),
    "llama-3.2-3b": dict(LLAMA32, d_model=3072, n_heads=24, n_layers=28),
    "llama-2-7b": dict(max_length=4096, norm_eps=1e-5),
    "qwen2-7b": dict(QWEN2, vocab_size=152064, d_model=3584, n_heads=28, n_layers=28, d_ff=18944, n_kv_heads=4),
    "llama-3-8b": dict(vocab_size=128256, d_ff=14336, n_kv_heads=8, max_length=8192, norm_eps=1e-5, rope_base=500000.0),
    "llama-2-13b": dict(d_model=5120, n_heads=40, n_layers=40, d_ff=13824, max_length=4096, norm_eps=1e-5),
}


def build(c: Config) -> Model:
    d, norm, windows = c.d_model, partial(RMSNorm, c.d_model, c.norm_eps), c.window
    if isinstance(windows, list) and len(windows) != c.n_layers:
        raise ValueError(f"window has {len(windows)} entries for {c.n_layers} layers: give one number, or one for each layer")
    if any(width is not None and width < 1 for width in (windows if isinstance(windows, list) else [windows])):
        raise ValueError(f"window={windows}: an entry sees itself at least, so a window is a number from 1, or None")
    turning = stretched(c.rope_base, c.stretch)

    def mask(layer: int) -> Mask:
        window = windows[layer] if isinstance(windows, list) else windows
        return causal if window is None else causal & Window(window - 1, None)

    tokens = Tokens(c.vocab_size, d)
    blocks = body(
        c.n_layers,
        norm,
        lambda layer: Pre(c.dropout),
        self_attn=each(
            Attention,
            d,
            c.n_heads,
            n_kv_heads=c.n_kv_heads,
            d_head=c.d_head,
            bias=c.bias,
            mask=PerLayer(mask),
            rotary=turning,
            dropout=c.attention_dropout,
        ),
        ffn=each(FFN, d, c.d_ff, ACTIVATIONS[c.activation], gated=True, bias=c.ffn_bias),
    )
    lm = Tied(tokens) if c.tie else Linear(d, c.vocab_size, bias=False)
    return Model({"lm": lm}, started, decoder=Tower(Embed(tokens=tokens), blocks, norm()))


def started(net: Model) -> None:
    """Normal of deviation 0.02, what ends a block smaller by sqrt(number of residual steps), as GPT-2's page."""
    ends = list(matching(net, "o_proj.weight", "down_proj.weight"))
    inner = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight", "tokens.weight")
    for _, p in matching(net, *inner):
        init.normal_(p, std=0.02)
    for _, p in ends:
        init.normal_(p, std=0.02 / math.sqrt(len(ends)))
    if isinstance(head := net.heads["lm"], Linear):
        init.normal_(head.weight, std=0.02)


LAYER, BLOCK = "model.layers.{i}.", "decoder.blocks.{i}."
RULES = (
    prefix("model."),
    rule("model.embed_tokens.weight", "decoder.embed.tokens.weight"),
    rule(LAYER + "input_layernorm.weight", BLOCK + "self_attn_norm.weight"),
    rule(LAYER + "self_attn.{part:q_proj|k_proj|v_proj|o_proj}.{w}", BLOCK + "self_attn.{part:q_proj|k_proj|v_proj|o_proj}.{w}"),
    rule(LAYER + "post_attention_layernorm.weight", BLOCK + "ffn_norm.weight"),
    rule(LAYER + "mlp.{part:up_proj|gate_proj|down_proj}.{w}", BLOCK + "ffn.{part:up_proj|gate_proj|down_proj}.{w}"),
    rule("model.norm.weight", "decoder.norm.weight"),
    rule("lm_head.weight", "heads.lm.weight"),
    tie("lm_head.weight", "model.embed_tokens.weight"),
    drop(LAYER + "self_attn.rotary_emb.inv_freq", "the rates of rotary positions; they are computed here, in float64"),
)


GGUF = llama_gguf.ARCHITECTURES
DIVIDED = "what Llama 3's stretch divides the rates of rotary positions by"


def gguf_rules(c: Config, architecture: str = "llama") -> tuple[Entry, ...]:
    """Names of GGUF. Where its `general.architecture` is llama, rows of q and k lie in the order of pairs (RoFormer's own)."""
    width = c.d_head or c.d_model // c.n_heads
    turned = [halves(width)] if architecture == "llama" else []
    return (
        rule("token_embd.weight", "decoder.embed.tokens.weight"),
        rule("blk.{i}.attn_norm.weight", BLOCK + "self_attn_norm.weight"),
        *(rule(f"blk.{{i}}.attn_{name}.{{w}}", f"{BLOCK}self_attn.{name}_proj.{{w}}", *turned) for name in "qk"),
        rule("blk.{i}.attn_v.{w}", BLOCK + "self_attn.v_proj.{w}"),
        rule("blk.{i}.attn_output.{w}", BLOCK + "self_attn.o_proj.{w}"),
        rule("blk.{i}.ffn_norm.weight", BLOCK + "ffn_norm.weight"),
        *(rule(f"blk.{{i}}.ffn_{name}.{{w}}", f"{BLOCK}ffn.{name}_proj.{{w}}") for name in ("up", "gate", "down")),
        rule("output_norm.weight", "decoder.norm.weight"),
        rule("output.weight", "heads.lm.weight"),
        tie("output.weight", "token_embd.weight"),
        *([computed(llama_gguf.DIVISORS, partial(llama_gguf.divisors, c.rope_base, c.stretch, width), DIVIDED)] if c.stretch else ()),
    )


def gguf_config(metadata: Mapping[str, Any], source: Any) -> Config:
    """The settings in a GGUF's metadata; `source` has its tensors, which say what is tied, what has a bias and how positions are stretched.

    Raises one `InputError` with every key that is missing or not understood.
    """
    return Config(**llama_gguf.settings(metadata, source))


def gguf_metadata(c: Config) -> dict[str, Any]:
    """The keys in which a GGUF says these settings. Raises `InputError` with what none of its architectures can say."""
    whole = replace(c, d_head=c.d_head or c.d_model // c.n_heads, n_kv_heads=c.n_kv_heads or c.n_heads)
    return llama_gguf.metadata(asdict(whole))


# ---- config.json ----


def _layer_windows(raw) -> dict:
    """Qwen2: from layer `max_window_layers` on (or where `layer_types` says so) a window, if it is switched on at all."""
    layers = raw.get("num_hidden_layers", 32)
    window = raw.get("sliding_window", 4096) if raw.get("use_sliding_window", False) else None
    types = raw.get("layer_types") or [
        "sliding_attention" if i >= raw.get("max_window_layers", 28) else "full_attention" for i in range(layers)
    ]
    if odd := sorted(set(types) - {"sliding_attention", "full_attention"}):
        raise ValueError(f"layer_types: {', '.join(odd)} is not supported")
    if window is None and raw.get("layer_types") and "sliding_attention" in types:
        raise ValueError("layer_types has sliding_attention, but use_sliding_window and sliding_window give no window")
    windows = [window if kind == "sliding_attention" else None for kind in types]
    return {"window": None if set(windows) <= {None} else windows}


def _layer_window_keys(settings) -> dict:
    window = settings["window"]
    windows = window if isinstance(window, list) else [window] * settings["n_layers"]
    widths = set(windows) - {None}
    if len(widths) > 1:
        raise ValueError(f"windows of several widths, {sorted(widths)}, cannot be written")
    types = ["full_attention" if w is None else "sliding_attention" for w in windows]
    return {"use_sliding_window": bool(widths), "sliding_window": next(iter(widths), None), "layer_types": types}


def _keys(model_type: str, architecture: str, d_ff: int, kv_heads: int | None, length: int, *own) -> Keys:
    """What the three families share, with their defaults where they differ."""
    shared = (
        key("vocab_size", "vocab_size", 151936 if model_type == "qwen2" else 32000),
        key("hidden_size", "d_model", 4096),
        key("num_attention_heads", "n_heads", 32),
        key("num_hidden_layers", "n_layers", 32),
        key("intermediate_size", "d_ff", d_ff),
        key("num_key_value_heads", "n_kv_heads", kv_heads, kind=int, optional=True),
        key("head_dim", "d_head", None, kind=int),
        key("max_position_embeddings", "max_length", length),
        key("rms_norm_eps", "norm_eps", 1e-6),
        activation("hidden_act", "silu"),
        key("attention_dropout", "attention_dropout", 0.0),
        key("tie_word_embeddings", "tie", False),
        rope,
        fixed("rope_interleaved", False, "the pairs that turn are channels i and i + d_head / 2"),
    )
    # pretraining_tp only cuts the products into slices.
    return Keys(
        model_type, (*shared, *own), ("pretraining_tp", "is_llama_config", "max_sequence_length"), {"architectures": [architecture]}
    )


def _is(ours: str, value: Any):
    """A setting that this family always has."""
    return group((), lambda raw: {ours: value}, lambda settings: {})


KEYS = (
    _keys(
        "llama",
        "LlamaForCausalLM",
        11008,
        None,
        2048,
        key("attention_bias", "bias", False, values={True: "qkvo", False: ""}),
        key("mlp_bias", "ffn_bias", False),
        _is("window", None),
    ),
    _keys(
        "mistral",
        "MistralForCausalLM",
        14336,
        8,
        4096 * 32,
        key("sliding_window", "window", 4096, optional=True),
        _is("bias", ""),
        _is("ffn_bias", False),
    ),
    _keys(
        "qwen2",
        "Qwen2ForCausalLM",
        22016,
        32,
        32768,
        group(("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"), _layer_windows, _layer_window_keys),
        fixed("use_mrope", False, "rotary positions have one axis here"),
        _is("bias", "qkv"),
        _is("ffn_bias", False),
    ),
)
