"""TimeSformer: a ViT of clips that attends over time and over space by turns (Bertasius et al. 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attention import Attention
from plait.core.blocks import body, each
from plait.core.embeddings import Dropped, Embed
from plait.core.feedforward import ACTIVATIONS, FFN
from plait.core.heads import Pooled
from plait.core.linear import Linear
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.pixels import Before, GridPositions, Patches, Times
from plait.core.residual import Pre
from plait.core.stream import Call, Stream
from plait.errors import InputError
from plait.models.bert import heads_of
from plait.models.vit import grid
from plait.weights.rules import Entry, Keys, activation, flat, group, key, prefix, row, rule, split

Kind = Literal["divided_space_time", "joint_space_time", "space_only"]


@dataclass(frozen=True)
class Config:
    """Clips of `frames` pictures of `image_size` x `image_size` pixels, in squares of `patch` x `patch` (section 3 of the paper).

    `attention`: "divided_space_time" attends over the frames of each place, then over the places of each frame; "joint_space_time" over
    all entries at once; "space_only" within frames, each with a class token of its own. `head`: "classify" reads the class token (the
    mean of the frames' own), "none" is the bare encoder. `drop_path` is the last layer's, the first has none; a step is
    dropped for a whole clip (in the authors' code for a frame or a place).
    """

    image_size: int = 224
    patch: int = 16
    channels: int = 3
    frames: int = 8
    d_model: int = 768
    n_heads: int = 12
    n_layers: int = 12
    d_ff: int = 3072
    attention: Kind = "divided_space_time"
    activation: str = "gelu"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    head: Literal["classify", "none"] = "classify"
    labels: int = 2


# The last three are section 4.3 of the paper, with the classes of Kinetics-400; "small" learns from scratch.
PRESETS = {
    "tiny": dict(image_size=8, patch=4, frames=3, d_model=32, n_heads=4, n_layers=2, d_ff=64),
    "small": dict(image_size=32, patch=8, d_model=64, n_heads=4, n_layers=3, d_ff=256),
    "base": dict(labels=400),
    "large": dict(labels=400, frames=96),
    "hr": dict(labels=400, image_size=448, frames=16),
}


def build(c: Config) -> Model:
    d, norm = c.d_model, partial(LayerNorm, c.d_model, eps=c.norm_eps)
    how = dict(bias="qkvo" if c.qkv_bias else "o", dropout=c.attention_dropout)
    space, time = each(SpaceAttention, d, c.n_heads, **how), each(TimeAttention, d, c.n_heads, **how)
    steps, last = {
        "divided_space_time": (dict(time_attn=time, self_attn=space), Times(c.frames, d)),
        "joint_space_time": (dict(self_attn=each(Attention, d, c.n_heads, **how)), Times(c.frames, d)),
        "space_only": (dict(self_attn=space), in_each_frame),
    }[c.attention]
    embed = Embed(
        clips=Clips(),
        patches=Patches(c.patch, d, c.channels),
        cls=Before(1, d),
        positions=NearestPositions(grid(c.image_size, c.patch), d),
        times=last,
        dropout=Dropped(c.dropout),
    )
    blocks = body(
        c.n_layers,
        norm,
        lambda layer: Pre(c.dropout, c.drop_path * layer / max(1, c.n_layers - 1)),
        **steps,
        ffn=each(FFN, d, c.d_ff, ACTIVATIONS[c.activation], dropout=c.dropout),
    )
    heads: dict[str, nn.Module] = {"classify": Pooled(class_mean, Linear(d, c.labels))} if c.head == "classify" else {}
    return Model(heads, encoder=Tower(embed, blocks, norm()))


# ---- entries: what stands before the grid, then the places of the first frame, of the second ... ----


def apart(x: Tensor, s: Stream) -> tuple[Tensor, Tensor]:
    """What stands before the grid [B, 1 or T, D], and the frames [B, T, N, D]."""
    assert s.grid is not None
    before = x.shape[1] - prod(s.grid)
    return x[:, :before], x[:, before:].unflatten(1, (s.grid[0], -1))


class Clips:
    """Lets clips of one size pass: frames are cut into rows of attention, so they cannot have padding."""

    takes = "clips"

    def __call__(self, s: Stream) -> Stream:
        if s.x.dim() != 5 or s.real is not None:
            given = f"pixels {list(s.x.shape)}{' with padding' if s.real is not None else ''}"
            raise InputError(f"{given}: this model reads clips [B, T, C, H, W] of one size, so `real` must be None: resize or crop them")
        return s


class NearestPositions(GridPositions):
    """The vector of the nearest place where the grid is another one, as in the authors' code."""

    def resized(self, height: int, width: int) -> Tensor:
        grid = self.weight[self.before :].T.unflatten(1, self.grid)[None]  # [1, D, H, W]
        return torch.cat([self.weight[: self.before], F.interpolate(grid, size=(height, width), mode="nearest")[0].flatten(1).T])


def in_each_frame(s: Stream) -> Stream:
    """A class token for each frame."""
    before, frames = apart(s.x, s)
    return s.having(x=torch.cat([before.expand(-1, frames.shape[1], -1), frames.flatten(1, 2)], 1))


def class_mean(s: Stream) -> Tensor:
    """The vector of the class token, or the mean of those of the frames [B, D]."""
    return apart(s.x, s)[0].mean(1)


# ---- the steps: the attention of the core, over rows that are cut out of a clip ----


class TimeAttention(Attention):
    """Each place over its frames, then a layer more; the class token gets nothing (section 3, "divided space-time attention").

    Its weights are [B * N, H, T, T].
    """

    def __init__(self, d_model: int, n_heads: int, **slots: Any):
        super().__init__(d_model, n_heads, **slots)
        self.dense = Linear(d_model, d_model)

    def forward(self, x: Tensor, call: Call, path: tuple) -> Tensor:
        before, frames = apart(x, call.stream)
        places = frames.transpose(1, 2)  # [B, N, T, D]
        rows = places.flatten(0, 1)
        y = self.dense(super().forward(rows, replace(call, stream=Stream(rows)), path))
        return torch.cat([torch.zeros_like(before), y.view_as(places).transpose(1, 2).flatten(1, 2)], 1)


class SpaceAttention(Attention):
    """Each frame over its places and a class token: its own, or the clip's, which then gets the mean of what the frames give it.

    Its weights are [B * T, H, 1 + N, 1 + N].
    """

    def forward(self, x: Tensor, call: Call, path: tuple) -> Tensor:
        before, frames = apart(x, call.stream)
        token = before.expand(-1, frames.shape[1], -1).unsqueeze(2)  # [B, T, 1, D]
        rows = torch.cat([token, frames], 2).flatten(0, 1)
        y = super().forward(rows, replace(call, stream=Stream(rows)), path).unflatten(0, frames.shape[:2])  # [B, T, 1 + N, D]
        token = y[:, :, 0] if before.shape[1] > 1 else y[:, :, 0].mean(1, keepdim=True)
        return torch.cat([token, y[:, :, 1:].flatten(1, 2)], 1)


# ---- the files of others ----


def rules(c: Config) -> list[Entry]:
    """The table of Hugging Face's names for a model of this config."""
    front, layer, block = "timesformer.embeddings.", "timesformer.encoder.layer.{i}.", "encoder.blocks.{i}."

    def attention(theirs: str, ours: str, norm: str) -> list[Entry]:
        qkv = [f"{block}{ours}.{name}_proj.{{w}}" for name in "qkv"]
        return [
            rule(f"{layer}{theirs}.attention.qkv.{{w}}", qkv, split()),
            rule(f"{layer}{theirs}.output.dense.{{w}}", f"{block}{ours}.o_proj.{{w}}"),
            rule(f"{layer}{norm}.{{w}}", f"{block}{ours}_norm.{{w}}"),
        ]

    return [
        prefix("timesformer."),
        rule(front + "cls_token", "encoder.embed.cls.weight", row),
        rule(front + "position_embeddings", "encoder.embed.positions.weight", row),
        rule(front + "time_embeddings", "encoder.embed.times.weight", row),
        rule(front + "patch_embeddings.projection.{w}", "encoder.embed.patches.proj.{w}", flat(c.channels, c.patch, c.patch)),
        *attention("temporal_attention", "time_attn", "temporal_layernorm"),
        rule(layer + "temporal_dense.{w}", block + "time_attn.dense.{w}"),
        *attention("attention", "self_attn", "layernorm_before"),
        rule(layer + "intermediate.dense.{w}", block + "ffn.up_proj.{w}"),
        rule(layer + "output.dense.{w}", block + "ffn.down_proj.{w}"),
        rule(layer + "layernorm_after.{w}", block + "ffn_norm.{w}"),
        rule("timesformer.layernorm.{w}", "encoder.norm.{w}"),
        rule("classifier.{w}", "heads.classify.scores.{w}"),
    ]


def stochastic_depth(raw: Mapping[str, Any]) -> dict[str, Any]:
    rate = raw.get("drop_path_rate", 0)
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path_rate={rate!r} must be a chance from 0 to below 1")
    return {"drop_path": float(rate)}


KEYS = (
    Keys(
        "timesformer",
        [
            heads_of("Timesformer", {"ForVideoClassification": "classify", "Model": "none"}),
            key("image_size", "image_size", 224),
            key("patch_size", "patch", 16),
            key("num_channels", "channels", 3),
            key("num_frames", "frames", 8),
            key("hidden_size", "d_model", 768),
            key("num_attention_heads", "n_heads", 12),
            key("num_hidden_layers", "n_layers", 12),
            key("intermediate_size", "d_ff", 3072),
            key("attention_type", "attention", "divided_space_time", values={name: name for name in get_args(Kind)}),
            activation("hidden_act", "gelu"),
            key("layer_norm_eps", "norm_eps", 1e-6),
            key("qkv_bias", "qkv_bias", True),
            key("hidden_dropout_prob", "dropout", 0.0),
            key("attention_probs_dropout_prob", "attention_dropout", 0.0),
            # The reference takes whole numbers only, so none is written where there is none.
            group(["drop_path_rate"], stochastic_depth, lambda c: {"drop_path_rate": c["drop_path"]} if c["drop_path"] else {}),
        ],
    ),
)
