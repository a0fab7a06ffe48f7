"""ViT: an encoder that reads a picture as a row of patches (Dosovitskiy et al. 2021).

DeiT's is the same, in most releases with a second token, which learned from a teacher (Touvron et al. 2021, section 4).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plait.core.attention import Attention
from plait.core.blocks import body, each
from plait.core.embeddings import Dropped, Embed
from plait.core.feedforward import ACTIVATIONS, FFN
from plait.core.heads import Pooled, Transformed, first, grid_mean
from plait.core.linear import Linear
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.pixels import Before, GridPositions, Patches
from plait.core.residual import Pre
from plait.core.stream import Stream
from plait.models.bert import POOLER, heads_of
from plait.models.bert import fitted as fitted  # as of BERT's page
from plait.weights.rules import ACTIVATIONS as ACTIVATION_NAMES
from plait.weights.rules import Entry, Keys, activation, drop, flat, group, key, prefix, row, rule


@dataclass(frozen=True)
class Config:
    """Table 1 of the paper. Pictures are squares of `image_size` pixels; others that patches fit get positions interpolated from these.

    `pool`: what "classify" reads, the class token or the mean of the patches, which then have no class token. `distilled` adds DeiT's
    second token. `head`: "classify", "taught" (the mean of a class token's and a distillation token's scores), "pool" is the bare encoder
    with its pooler, "none" without. `d_pooled` and `pooling` are the pooler's width (None: d_model) and activation.
    """

    image_size: int = 224
    patch: int = 16
    channels: int = 3
    d_model: int = 768
    n_heads: int = 12
    n_layers: int = 12
    d_ff: int = 3072
    activation: str = "gelu"
    norm_eps: float = 1e-12
    qkv_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    distilled: bool = False
    pool: Literal["class", "mean"] = "class"
    head: Literal["classify", "taught", "pool", "none"] = "classify"
    labels: int = 2
    d_pooled: int | None = None
    pooling: str = "tanh"


DEIT_TINY = dict(d_model=192, n_heads=3, d_ff=768, distilled=True)
PRESETS = {
    "tiny": dict(image_size=16, patch=4, d_model=32, n_heads=4, n_layers=2, d_ff=64),
    "deit-tiny": DEIT_TINY,
    "deit-small": {**DEIT_TINY, "d_model": 384, "n_heads": 6, "d_ff": 1536},
    "base": dict(image_size=224, patch=16),
    "deit-base": dict(distilled=True),
    "large": dict(image_size=224, patch=16, d_model=1024, n_heads=16, n_layers=24, d_ff=4096),
    "huge": dict(image_size=224, patch=14, d_model=1280, n_heads=16, n_layers=32, d_ff=5120),
}
POOLINGS = {"tanh": torch.tanh, **ACTIVATIONS}


class Taught(nn.Module):
    """The mean of two heads' scores, one on each half of a vector: of class and distillation token (Touvron et al. 2021, section 4)."""

    def __init__(self, d_model: int, labels: int):
        super().__init__()
        self.own, self.taught = Linear(d_model, labels), Linear(d_model, labels)

    def forward(self, x: Tensor) -> Tensor:  # [..., 2D] -> [..., labels]
        own, taught = x.chunk(2, -1)
        return (self.own(own) + self.taught(taught)) / 2


def first_two(s: Stream) -> Tensor:
    """The first two entries' vectors, one after the other [B, 2D]."""
    return s.x[:, :2].flatten(1)


def build(c: Config) -> Model:
    d, norm = c.d_model, partial(LayerNorm, c.d_model, eps=c.norm_eps)
    if c.pool == "mean" and (c.distilled or c.head in ("taught", "pool")):
        raise ValueError(f"pool='mean' has no class token, which distilled={c.distilled} or head={c.head!r} needs: give pool='class'")
    if c.head == "taught" and not c.distilled:
        raise ValueError("head='taught' reads a distillation token: give distilled=True")
    tokens = {"distillation": Before(1, d)} if c.distilled else {}
    if c.pool == "class":
        tokens["cls"] = Before(1, d)
    embed = Embed(
        patches=Patches(c.patch, d, c.channels),
        **tokens,
        positions=GridPositions(grid(c.image_size, c.patch), d, before=len(tokens)),
        dropout=Dropped(c.dropout),
    )
    blocks = body(
        c.n_layers,
        norm,
        lambda layer: Pre(c.dropout),
        self_attn=each(Attention, d, c.n_heads, bias="qkvo" if c.qkv_bias else "o", dropout=c.attention_dropout),
        ffn=each(FFN, d, c.d_ff, ACTIVATIONS[c.activation]),
    )
    return Model(head(c), encoder=Tower(embed, blocks, norm()))


def head(c: Config) -> dict[str, nn.Module]:
    d = c.d_model
    if c.head == "classify":
        return {"classify": Pooled(first if c.pool == "class" else grid_mean, Linear(d, c.labels))}
    if c.head == "taught":
        return {"classify": Pooled(first_two, Taught(d, c.labels))}
    if c.head == "pool":
        return {"pool": Transformed(Linear(d, c.d_pooled or d), POOLINGS[c.pooling], nn.Identity(), nn.Identity())}
    return {}


def grid(image_size: int, patch: int) -> tuple[int, int]:
    """Patches up and across."""
    if not patch or not image_size or image_size % patch:
        raise ValueError(f"image_size={image_size} is no multiple of patch={patch}: whole patches must fill the picture")
    return image_size // patch, image_size // patch


MASK = "in place of patches that pretraining hides; nothing is hidden here"


def picture_rules(family: str, patch: int, channels: int, before: str, after: str) -> list[Entry]:
    """Names of what models of this kind share: embeddings, attention, norms. `before` and `after` are what the norms are called."""
    embeddings, layer, block = f"{family}.embeddings.", f"{family}.encoder.layer.{{i}}.", "encoder.blocks.{i}."
    attention = f"{layer}attention."
    return [
        prefix(f"{family}."),
        rule(f"{embeddings}cls_token", "encoder.embed.cls.weight", row),
        rule(f"{embeddings}position_embeddings", "encoder.embed.positions.weight", row),
        rule(f"{embeddings}patch_embeddings.projection.{{w}}", "encoder.embed.patches.proj.{w}", flat(channels, patch, patch)),
        drop(f"{embeddings}mask_token", MASK),
        *(rule(f"{attention}attention.{name}.{{w}}", f"{block}self_attn.{name[0]}_proj.{{w}}") for name in ("query", "key", "value")),
        rule(f"{attention}output.dense.{{w}}", f"{block}self_attn.o_proj.{{w}}"),
        rule(f"{layer}{before}.{{w}}", f"{block}self_attn_norm.{{w}}"),
        rule(f"{layer}{after}.{{w}}", f"{block}ffn_norm.{{w}}"),
        rule(f"{family}.layernorm.{{w}}", "encoder.norm.{w}"),
    ]


def rules(c: Config) -> list[Entry]:
    """The table of Hugging Face's names for a model of this config."""
    if c.pool == "mean":
        raise ValueError("pool='mean': the reference has no such model, so its files have no names for it")
    family = "deit" if c.distilled else "vit"
    layer, block, pooler = f"{family}.encoder.layer.{{i}}.", "encoder.blocks.{i}.", f"{family}.pooler.dense.{{w}}"
    heads: dict[str, list[Entry]] = {
        "classify": [rule("classifier.{w}", "heads.classify.scores.{w}")],
        "taught": [
            rule("cls_classifier.{w}", "heads.classify.scores.own.{w}"),
            rule("distillation_classifier.{w}", "heads.classify.scores.taught.{w}"),
        ],
        "pool": [rule(pooler, "heads.pool.dense.{w}")],
        "none": [],
    }
    return [
        *picture_rules(family, c.patch, c.channels, "layernorm_before", "layernorm_after"),
        *([rule(f"{family}.embeddings.distillation_token", "encoder.embed.distillation.weight", row)] if c.distilled else []),
        rule(f"{layer}intermediate.dense.{{w}}", f"{block}ffn.up_proj.{{w}}"),
        rule(f"{layer}output.dense.{{w}}", f"{block}ffn.down_proj.{{w}}"),
        *heads[c.head],
        *([] if c.head == "pool" else [drop(pooler, POOLER)]),
    ]


def square(theirs: str, ours: str, default: int) -> Any:
    """Their key is a number of pixels or (up, across), which must be alike here."""

    def read(raw: Mapping[str, Any]) -> dict[str, Any]:
        said = raw.get(theirs, default)
        sides = list(said) if isinstance(said, list | tuple) else [said]
        if len(sides) > 2 or any(type(side) is not int or side < 1 or side != sides[0] for side in sides) or not sides:
            raise ValueError(f"{theirs}={said!r} is not understood: only squares are, give one number of pixels")
        return {ours: sides[0]}

    return group([theirs], read, lambda settings: {theirs: settings[ours]})


SIZES = [
    square("image_size", "image_size", 224),
    key("num_channels", "channels", 3),
    key("hidden_size", "d_model", 768),
    key("num_attention_heads", "n_heads", 12),
    key("num_hidden_layers", "n_layers", 12),
    activation("hidden_act", "gelu"),
    key("qkv_bias", "qkv_bias", True),
    key("hidden_dropout_prob", "dropout", 0.0),
    key("attention_probs_dropout_prob", "attention_dropout", 0.0),
]
CLASSES = {"ForImageClassification": "classify", "Model": "pool"}


def always(**settings: Any) -> Any:
    """Settings that every file of a `model_type` has and that no key of it says."""
    return group((), lambda raw: settings, lambda given: {})


def _keys(model_type: str, family: str, classes: Mapping[str, str], distilled: bool) -> Keys:
    return Keys(
        model_type,
        [
            heads_of(family, classes),
            always(distilled=distilled, pool="class"),
            *SIZES,
            square("patch_size", "patch", 16),
            key("intermediate_size", "d_ff", 3072),
            key("layer_norm_eps", "norm_eps", 1e-12),
            key("pooler_output_size", "d_pooled", None, kind=int),
            key("pooler_act", "pooling", "tanh", values={"tanh": "tanh", **ACTIVATION_NAMES}),
        ],
        ignored={"encoder_stride"},  # of the head that paints hidden patches
    )


KEYS = (
    _keys("vit", "ViT", CLASSES, False),
    _keys("deit", "DeiT", {**CLASSES, "ForImageClassificationWithTeacher": "taught"}, True),
)
