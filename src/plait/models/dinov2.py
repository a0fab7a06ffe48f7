"""DINOv2: a ViT with LayerScale that was trained without labels (Oquab et al. 2024), and the kind with registers (Darcet et al. 2024)."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from plait.core.attention import Attention
from plait.core.blocks import body, each
from plait.core.embeddings import Dropped, Embed
from plait.core.feedforward import ACTIVATIONS, FFN, silu
from plait.core.heads import Pooled, first, grid_mean
from plait.core.linear import Linear
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.pixels import Before, GridPositions, Patches
from plait.core.residual import Scaled
from plait.core.stream import Stream
from plait.models.bert import heads_of
from plait.models.vit import SIZES, always, grid, picture_rules, square
from plait.weights.rules import Entry, Keys, key, row, rule, split


@dataclass(frozen=True)
class Config:
    """Table 16 of the paper. Pictures are squares of `image_size` pixels; others that patches fit get positions interpolated from these.

    The feed-forward is `d_ff_ratio` times as wide as the stream; where it is `gated`, SiLU-gated at two thirds of that. `layer_scale` is
    what the scales start from, `drop_path` the chance to leave out a step in training. With `registers`, the interpolation is smoothed.
    `head`: "classify" reads the class token beside the mean of the patches, "none" is the bare encoder.
    """

    image_size: int = 224
    patch: int = 14
    channels: int = 3
    d_model: int = 768
    n_heads: int = 12
    n_layers: int = 12
    d_ff_ratio: int = 4
    gated: bool = False
    activation: str = "gelu"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    layer_scale: float = 1.0
    registers: int | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    head: Literal["classify", "none"] = "none"
    labels: int = 2


PRESETS = {
    "tiny": dict(image_size=16, patch=4, d_model=32, n_heads=4, n_layers=2, d_ff_ratio=2, head="classify"),
    "small": dict(image_size=518, d_model=384, n_heads=6),
    "base": dict(image_size=518),
    "large": dict(image_size=518, d_model=1024, n_heads=16, n_layers=24),
    "giant": dict(image_size=518, d_model=1536, n_heads=24, n_layers=40, gated=True),
}


def both(s: Stream) -> Tensor:
    """The class token's vector and the mean of the patches [B, 2D]."""
    return torch.cat([first(s), grid_mean(s)], -1)


def build(c: Config) -> Model:
    d, norm = c.d_model, partial(LayerNorm, c.d_model, eps=c.norm_eps)
    embed = Embed(
        patches=Patches(c.patch, d, c.channels),
        cls=Before(1, d),
        positions=GridPositions(grid(c.image_size, c.patch), d, antialias=c.registers is not None),
        **({} if c.registers is None else {"registers": Before(c.registers, d, behind=1)}),
        dropout=Dropped(c.dropout),
    )
    width = d * c.d_ff_ratio
    if c.gated:
        ffn = each(FFN, d, (width * 2 // 3 + 7) // 8 * 8, silu, gated=True)
    else:
        ffn = each(FFN, d, width, ACTIVATIONS[c.activation])
    blocks = body(
        c.n_layers,
        norm,
        lambda layer: Scaled(d, c.layer_scale, drop_path=c.drop_path),
        self_attn=each(Attention, d, c.n_heads, bias="qkvo" if c.qkv_bias else "o", dropout=c.attention_dropout),
        ffn=ffn,
    )
    heads: dict[str, nn.Module] = {"classify": Pooled(both, Linear(2 * d, c.labels))} if c.head == "classify" else {}
    return Model(heads, encoder=Tower(embed, blocks, norm()))


def rules(c: Config) -> list[Entry]:
    """The table of Hugging Face's names for a model of this config."""
    family = "dinov2" if c.registers is None else "dinov2_with_registers"
    layer, block = f"{family}.encoder.layer.{{i}}.", "encoder.blocks.{i}."
    plain = [rule(f"{layer}mlp.fc1.{{w}}", f"{block}ffn.up_proj.{{w}}"), rule(f"{layer}mlp.fc2.{{w}}", f"{block}ffn.down_proj.{{w}}")]
    gated = [
        rule(f"{layer}mlp.weights_in.{{w}}", (f"{block}ffn.gate_proj.{{w}}", f"{block}ffn.up_proj.{{w}}"), split()),
        rule(f"{layer}mlp.weights_out.{{w}}", f"{block}ffn.down_proj.{{w}}"),
    ]
    return [
        *picture_rules(family, c.patch, c.channels, "norm1", "norm2"),
        *([] if c.registers is None else [rule(f"{family}.embeddings.register_tokens", "encoder.embed.registers.weight", row)]),
        rule(f"{layer}layer_scale1.lambda1", f"{block}self_attn_scale.weight"),
        rule(f"{layer}layer_scale2.lambda1", f"{block}ffn_scale.weight"),
        *(gated if c.gated else plain),
        *([rule("classifier.{w}", "heads.classify.scores.{w}")] if c.head == "classify" else []),
    ]


SHARED = [
    *SIZES,
    key("mlp_ratio", "d_ff_ratio", 4),
    key("use_swiglu_ffn", "gated", False),
    key("layer_norm_eps", "norm_eps", 1e-6),
    key("layerscale_value", "layer_scale", 1.0),
    key("drop_path_rate", "drop_path", 0.0),
]
CLASSES = {"ForImageClassification": "classify", "Model": "none"}
# Which layers a detector would read, and how: of the class of another name, which is refused. The mask token is of pretraining.
UNREAD = {"apply_layernorm", "out_features", "out_indices", "reshape_hidden_states", "stage_names", "use_mask_token"}
KEYS = (
    Keys("dinov2", [heads_of("Dinov2", CLASSES), always(registers=None), square("patch_size", "patch", 14), *SHARED], UNREAD),
    Keys(
        "dinov2_with_registers",
        [
            heads_of("Dinov2WithRegisters", CLASSES),
            key("num_register_tokens", "registers", 4),
            square("patch_size", "patch", 16),
            *SHARED,
        ],
        UNREAD,
    ),
)
