"""DETR: objects as a set, each read from the picture by a learned query (Carion et al. 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core import init
from plait.core.attention import Attention, CrossAttention
from plait.core.blocks import body, each
from plait.core.convolution import ChannelNorm, FrozenBatchNorm
from plait.core.embeddings import Each, Embed
from plait.core.feedforward import ACTIVATIONS, FFN
from plait.core.linear import Linear
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.positions import Sine2D
from plait.core.residual import Post
from plait.core.stream import Lent, Stream
from plait.models import resnet
from plait.models.bart import layer_rules
from plait.models.bert import heads_of
from plait.models.resnet import ResNet
from plait.weights.rules import Entry, Keys, activation, fixed, flat, group, key, older, prefix, rule

PLACES = 50  # learned positions end there, in rows and in columns (the authors' code)


@dataclass(frozen=True)
class Config:
    """Section 4; the encoder reads pixels of any size, the decoder the numbers of queries, 0 to n_queries - 1.

    `stem` to `dilated` are the backbone's (`models/resnet.py`). Its norms are "frozen", as in everything released, or "channels", which
    learn from scratch. `names`: whose names its tensors have in a file, timm's or transformers' own. With `renormed` every block of the
    decoder ends in the decoder's last norm, as transformers (not the paper) computes what was trained there with auxiliary losses.
    """

    n_queries: int = 100
    labels: int = 91
    d_model: int = 256
    n_heads: int = 8
    n_decoder_heads: int = 8
    n_layers: int = 6
    n_decoder_layers: int = 6
    d_ff: int = 2048
    d_decoder_ff: int = 2048
    activation: str = "relu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    positions: Literal["sine", "learned"] = "sine"
    renormed: bool = False
    head: Literal["detect", "none"] = "detect"
    names: Literal["timm", "transformers"] = "timm"
    stem: int = 64
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    backbone_norm: Literal["frozen", "channels"] = "frozen"
    early: bool = False
    halved: bool = False
    dilated: bool = False

    def __post_init__(self) -> None:
        for name in ("widths", "depths"):  # a saved config has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))


TINY = dict(d_model=32, n_heads=4, n_decoder_heads=4, n_layers=2, n_decoder_layers=2, d_ff=64, d_decoder_ff=64)
# Without dropout: from scratch queries would tell themselves apart by its noise, and be all alike without it (docs/log.md).
SMALL = dict(d_model=128, n_heads=4, n_decoder_heads=4, n_layers=3, n_decoder_layers=3, d_ff=512, d_decoder_ff=512, dropout=0.0)
PRESETS = {
    "tiny": dict(**TINY, names="transformers", n_queries=7, labels=5, stem=8, widths=(16, 16, 24, 32), depths=(1, 1, 2, 1)),
    "small": dict(**SMALL, n_queries=50, bottleneck=False, backbone_norm="channels", stem=32, widths=(32, 64, 128), depths=(2, 2, 2)),
    "r50": dict(),
    "r50-dc5": dict(dilated=True),
    "r101": dict(depths=(3, 4, 23, 3)),
    "r101-dc5": dict(depths=(3, 4, 23, 3), dilated=True),
}


class GridVectors(nn.Module):
    """A learned vector for each column beside one for each row, as the stream's own position vectors (the authors' other kind)."""

    def __init__(self, d_model: int):
        super().__init__()
        self.row, self.column = (nn.Parameter(torch.empty(PLACES, d_model // 2)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for p in (self.row, self.column):
            init.uniform_(p)

    def forward(self, s: Stream) -> Stream:
        assert s.grid is not None
        height, width = s.grid
        if max(height, width) > PLACES:
            raise ValueError(f"a map of {height} x {width} places is too large: this model has positions for {PLACES} each way")
        shape = (height, width, self.row.shape[1])
        pos = torch.cat([self.column[:width].expand(shape), self.row[:height, None].expand(shape)], -1)
        return s.having(pos=pos.flatten(0, 1).expand(s.x.shape[0], -1, -1))


class Queries(nn.Module):
    """Numbers of queries [B, N] -> nothing at all [B, N, D], at learned positions (section 3.2)."""

    def __init__(self, n: int, d_model: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.normal_(self.weight)

    def forward(self, s: Stream) -> Stream:
        pos = F.embedding(s.x, self.weight)
        return s.having(x=torch.zeros_like(pos), pos=pos)


class Renormed(Post):
    """`Post`, and the tower's last norm behind each block."""

    def __init__(self, norm: Lent, dropout: float):
        super().__init__(dropout)
        self.last = norm

    def forward(self, x: Tensor, steps: Any) -> Tensor:
        return self.last(super().forward(x, steps))


class Detect(nn.Module):
    """Hidden vectors [..., D] -> (scores [..., C + 1], the last that of no object; boxes [..., 4] as cx cy w h of the picture, 0 to 1)."""

    def __init__(self, d_model: int, labels: int):
        super().__init__()
        self.scores = Linear(d_model, labels + 1)
        self.boxes = nn.ModuleList([Linear(d_model, d_model), Linear(d_model, d_model), Linear(d_model, 4)])

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.scores(hidden), self.offsets(hidden).sigmoid()

    def offsets(self, hidden: Tensor) -> Tensor:
        """[..., 4]: boxes as logits."""
        first, second, last = self.boxes
        return last(F.relu(second(F.relu(first(hidden)))))


def build(c: Config) -> Model:
    d, norm = c.d_model, partial(LayerNorm, c.d_model)
    backbone = ResNet(
        c.stem,
        c.widths,
        c.depths,
        bottleneck=c.bottleneck,
        early=c.early,
        halved=c.halved,
        dilated=c.dilated,
        norm={"frozen": FrozenBatchNorm, "channels": ChannelNorm}[c.backbone_norm],
    )
    positions = GridVectors(d) if c.positions == "learned" else Sine2D()
    how = dict(add_pos=True, dropout=c.attention_dropout)

    def ffn(width: int):
        return each(FFN, d, width, ACTIVATIONS[c.activation], dropout=c.activation_dropout)

    encoder = Tower(
        Embed(backbone=backbone, proj=Each(Linear(c.widths[-1], d)), positions=positions),
        body(c.n_layers, norm, lambda layer: Post(c.dropout), self_attn=each(Attention, d, c.n_heads, **how), ffn=ffn(c.d_ff)),
    )
    last = norm()
    blocks = body(
        c.n_decoder_layers,
        norm,
        lambda layer: Renormed(Lent(last), c.dropout) if c.renormed else Post(c.dropout),
        self_attn=each(Attention, d, c.n_decoder_heads, **how),
        cross_attn=each(CrossAttention, d, c.n_decoder_heads, **how),
        ffn=ffn(c.d_decoder_ff),
    )
    decoder = Tower(Embed(queries=Queries(c.n_queries, d)), blocks, last)
    return Model({"detect": Detect(d, c.labels)} if c.head == "detect" else {}, encoder=encoder, decoder=decoder)


STEPS = {"encoder": {"self_attn": "self_attn"}, "decoder": {"self_attn": "self_attn", "cross_attn": "encoder_attn"}}


def rules(c: Config) -> list[Entry]:
    """Names of released files, which are transformers' of 2020, whatever it calls its modules today."""
    table = [prefix("model."), *resnet.rules("model.backbone.conv_encoder.model.", "encoder.embed.backbone.", c)]
    table.append(rule("model.input_projection.{w}", "encoder.embed.proj.part.{w}", flat(-1, 1, 1)))
    table.append(rule("model.query_position_embeddings.weight", "decoder.embed.queries.weight"))
    if c.positions == "learned":
        for axis in ("row", "column"):
            name = f"position_embedding.{axis}_embeddings.weight"
            table += [rule(f"model.{name}", f"encoder.embed.positions.{axis}"), older(f"backbone.{name}", name)]
    for side, attentions in STEPS.items():
        table += layer_rules(side, attentions)
    table.append(rule("model.decoder.layernorm.{w}", "decoder.norm.{w}"))
    if c.head == "detect":
        table.append(rule("class_labels_classifier.{w}", "heads.detect.scores.{w}"))
        table.append(rule("bbox_predictor.layers.{i}.{w}", "heads.detect.boxes.{i}.{w}"))
    return table


def _backbone(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Of three generations of files: a timm name, that name in a config of its own, or transformers' own config."""
    given, wide = raw.get("backbone_config"), raw.get("dilation") or False
    if given is None and raw.get("use_timm_backbone", True):
        given = {"model_type": "timm_backbone", "backbone": raw.get("backbone") or "resnet50", "output_stride": 16 if wide else None}
        given |= raw.get("backbone_kwargs") or {}
    elif given is None and raw.get("backbone") is not None:
        raise ValueError(f"backbone={raw['backbone']!r} is a model elsewhere, whose settings this file does not have: give backbone_config")
    settings = resnet.read(given or {"model_type": "resnet"})
    if wide and not settings["dilated"]:
        raise ValueError(f"dilation={wide!r} does nothing beside this backbone_config, and nobody can say what was meant")
    return settings


def _backbone_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    found, timm = resnet.write(settings), settings["names"] == "timm"
    if timm:
        return {"use_timm_backbone": True, "backbone": found["backbone"], "dilation": settings["dilated"]}
    return {"use_timm_backbone": False, "backbone_config": found, "dilation": False}


UNREAD = "bbox_cost bbox_loss_coefficient class_cost classifier_dropout dice_loss_coefficient eos_coefficient giou_cost init_std".split()
UNREAD += "giou_loss_coefficient init_xavier_std mask_loss_coefficient max_position_embeddings num_hidden_layers scale_embedding".split()
UNREAD += ["tie_word_embeddings", "use_pretrained_backbone"]
KEYS = (
    Keys(
        "detr",
        [
            heads_of("Detr", {"ForObjectDetection": "detect", "Model": "none"}),
            key("num_queries", "n_queries", 100),
            key("d_model", "d_model", 256, also=["hidden_size"]),
            key("encoder_attention_heads", "n_heads", 8, also=["num_attention_heads"]),
            key("decoder_attention_heads", "n_decoder_heads", 8),
            key("encoder_layers", "n_layers", 6),
            key("decoder_layers", "n_decoder_layers", 6),
            key("encoder_ffn_dim", "d_ff", 2048),
            key("decoder_ffn_dim", "d_decoder_ff", 2048),
            activation("activation_function", "relu"),
            key("dropout", "dropout", 0.1),
            key("attention_dropout", "attention_dropout", 0.0),
            key("activation_dropout", "activation_dropout", 0.0),
            key("position_embedding_type", "positions", "sine", values={"sine": "sine", "learned": "learned"}),
            key("auxiliary_loss", "renormed", False),
            group(["backbone", "backbone_config", "backbone_kwargs", "dilation", "use_timm_backbone"], _backbone, _backbone_keys),
            fixed("num_channels", 3),
            fixed("is_encoder_decoder", True),
            fixed("encoder_layerdrop", 0.0),
            fixed("decoder_layerdrop", 0.0),
        ],
        ignored=UNREAD,
        extra={"is_encoder_decoder": True},
    ),
)
