"""Conditional DETR: a query looks around a place of its own, as its content says, and so learns sooner where to look (Meng et al. 2021)."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core import init, kernels
from plait.core.attention import Attention, CrossAttention
from plait.core.blocks import PerLayer, body, each
from plait.core.embeddings import Embed
from plait.core.feedforward import ACTIVATIONS, FFN
from plait.core.linear import Linear, project
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.positions import sinusoid
from plait.core.residual import Post
from plait.core.stream import Call, Lent, Places, Stream
from plait.models import detr
from plait.models.bert import heads_of
from plait.models.detr import Detect, Queries, Renormed
from plait.weights.rules import Entry, Keys, Rule, key, rule

EDGE = 1e-5  # how near to the picture's edge, as a share of it, a place's logit still tells one from another (the authors' code)
RARE = 0.01  # how probable each class is before anything is learned (Lin et al. 2017, "Focal loss ...", section 4.1)


@dataclass(frozen=True)
class Config(detr.Config):
    """DETR's, with more queries. `labels` are all classes that are scored: there is none for "no object"."""

    n_queries: int = 300


PRESETS = detr.PRESETS


class PlacedQueries(Queries):
    """DETR's queries, whose places on the picture (x and y as shares of it, [B, N, 2]) are the stream's positions (section 3.3)."""

    def __init__(self, n: int, d_model: int):
        super().__init__(n, d_model)
        self.place = nn.ModuleList([Linear(d_model, d_model), Linear(d_model, 2)])

    def forward(self, s: Stream) -> Stream:
        s = super().forward(s)
        assert s.pos is not None
        return s.having(positions=self.places(s.pos))

    def places(self, pos: Tensor) -> Tensor:
        first, last = self.place
        return last(F.relu(first(pos))).sigmoid()


class PlacedDetect(Detect):
    """`Detect` whose boxes are told from the queries' places (section 3.1), and whose classes are judged each for itself.

    Hidden vectors [..., N, D] are those of the first N queries, in order -> (scores [..., N, C], the logits of the classes; boxes).
    """

    apart = True

    def __init__(self, d_model: int, labels: int, queries: PlacedQueries):
        super().__init__(d_model, labels)
        self.scores, self.queries = Linear(d_model, labels), Lent(queries)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        last: Any = self.boxes[-1]
        init.zeros_(last.weight)
        init.zeros_(last.bias)
        assert self.scores.bias is not None
        init.constant_(self.scores.bias, math.log(RARE / (1 - RARE)))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        place = self.queries.places(self.queries.weight[: hidden.shape[-2]])
        start = (place.clamp_min(EDGE) / (1 - place).clamp_min(EDGE)).log()
        return self.scores(hidden), (self.offsets(hidden) + F.pad(start, (0, 2))).sigmoid()


class Entered(Post):
    """`Post`, and cross-attention is told what entered the block."""

    def forward(self, x: Tensor, steps: Any) -> Tensor:
        self_attn, (cross_attn, norms), ffn = steps
        return super().forward(x, [self_attn, (partial(cross_attn, entered=x), norms), ffn])


class EnteredRenormed(Entered, Renormed):
    """`Entered`, and `Renormed`."""


class PlacedAttention(Attention):
    """Self-attention in which the stream's own positions join queries and keys by projections of their own."""

    def __init__(self, d_model: int, n_heads: int, **slots: Any):
        super().__init__(d_model, n_heads, **slots)
        self.pos = nn.ModuleDict({name: Linear(d_model, d_model) for name in ("q_proj", "k_proj")})

    def queries_keys_values(self, x: Tensor, call: Call, path: tuple) -> tuple[Tensor, Tensor, Tensor, Places]:
        assert call.stream.pos is not None
        q, k, v = project(x, self.q_proj, self.k_proj, self.v_proj)
        q_pos, k_pos = project(call.stream.pos, *self.pos.values())
        return self.heads(q + q_pos), self.heads(k + k_pos), self.heads(v), call.stream.places


class ConditionalAttention(CrossAttention):
    """Cross-attention whose scores are the sum of two: how contents fit, and how places fit (section 3.3).

    Contents and places are projected apart and stand beside each other in each head, so its queries and keys are twice as wide as its
    values. The vector of a query's place is scaled channel by channel, by what `scaling` makes of what entered the block. The first
    block has no `scaling`, since no content enters it: there positions join the content, as in DETR. Prefixes have content and no place.
    """

    def __init__(self, d_model: int, n_heads: int, scaling: Lent | None, **slots: Any):
        super().__init__(d_model, n_heads, scale=(2 * d_model // n_heads) ** -0.5, **slots)
        self.scaling = scaling
        self.pos = nn.ModuleDict({name: Linear(d_model, d_model) for name in (("k_proj",) if scaling else ("q_proj", "k_proj"))})
        self.sines = nn.ModuleDict({"q_proj": Linear(d_model, d_model)})

    def forward(self, x: Tensor, call: Call, path: tuple, entered: Tensor) -> Tensor:
        q = self.queries(x, call, entered)  # [B, H, L, 2K]
        k, v, places = self.read(call, path)  # [B, H, S, 2K], [B, H, S, K]
        if self.memory is not None:
            content, place = k.chunk(2, -1)
            content, v, places = self.memory(content, v, places, call)
            k = torch.cat([content, F.pad(place, (0, 0, content.shape[2] - place.shape[2], 0))], -1)
        mask = call.once((self.mask, places), lambda: self.lowered(None, call, places))
        if call.watch is not None and call.watch.wants(path):
            call.watch.see(path, kernels.weights(q, k, mask, None, self.scale))
        out = call.kernel.attend(q, k, v, mask, None, self.scale, self.dropout if self.training else 0.0)
        return self.o_proj(out.transpose(1, 2).flatten(2))  # [B, H, L, K] -> [B, L, D]

    def queries(self, x: Tensor, call: Call, entered: Tensor) -> Tensor:
        content = self.q_proj(x)
        if self.scaling is None:
            content = content + self.pos["q_proj"](call.stream.pos)
        place = call.once("vectors of places", lambda: vectors(call.stream, x))
        place = self.sines["q_proj"](place if self.scaling is None else place * self.scaling(entered))
        return torch.cat([self.heads(content), self.heads(place)], -1)

    def keys_values(self, memory: Stream, call: Call) -> tuple[Tensor, Tensor]:
        (content, v), place = project(memory.x, self.k_proj, self.v_proj), self.pos["k_proj"](memory.pos)
        if self.scaling is None:
            content = content + place
        return torch.cat([self.heads(content), self.heads(place)], -1), self.heads(v)


def vectors(s: Stream, like: Tensor) -> Tensor:
    """The sines of the places of a stream's entries [B, L, D], row before column, as `Sine2D` makes those of the picture's."""
    assert s.positions is not None
    return sinusoid(2 * math.pi * s.positions.flip(-1), like.shape[-1] // 2).flatten(-2).to(like.dtype)


def build(c: Config) -> Model:
    """DETR's encoder (what else DETR has is made and let go), and the decoder of section 3."""
    d, norm, last = c.d_model, partial(LayerNorm, c.d_model), LayerNorm(c.d_model)
    queries, scaling = PlacedQueries(c.n_queries, d), FFN(d, d)

    def rule_of(layer: int) -> Post:
        return EnteredRenormed(Lent(last), c.dropout) if c.renormed else Entered(c.dropout)

    blocks = body(
        c.n_decoder_layers,
        norm,
        rule_of,
        self_attn=each(PlacedAttention, d, c.n_decoder_heads, dropout=c.attention_dropout),
        cross_attn=each(
            ConditionalAttention,
            d,
            c.n_decoder_heads,
            PerLayer(lambda layer: Lent(scaling) if layer else None),
            dropout=c.attention_dropout,
        ),
        ffn=each(FFN, d, c.d_decoder_ff, ACTIVATIONS[c.activation], dropout=c.activation_dropout),
    )
    decoder = Tower(Embed(queries=queries), blocks, last, scaling=scaling)
    heads: dict[str, nn.Module] = {"detect": PlacedDetect(d, c.labels, queries)} if c.head == "detect" else {}
    return Model(heads, encoder=detr.build(c).get_submodule("encoder"), decoder=decoder)


# ---- the files of others ----

APART = {  # projections of a block of the decoder, by the names that files of 2022 have for them
    "self_attn.q_proj": "sa_qcontent_proj",
    "self_attn.k_proj": "sa_kcontent_proj",
    "self_attn.v_proj": "sa_v_proj",
    "self_attn.pos.q_proj": "sa_qpos_proj",
    "self_attn.pos.k_proj": "sa_kpos_proj",
    "cross_attn.q_proj": "ca_qcontent_proj",
    "cross_attn.k_proj": "ca_kcontent_proj",
    "cross_attn.v_proj": "ca_v_proj",
    "cross_attn.pos.q_proj": "ca_qpos_proj",
    "cross_attn.pos.k_proj": "ca_kpos_proj",
    "cross_attn.sines.q_proj": "ca_qpos_sine_proj",
}


def rules(c: Config) -> list[Entry]:
    """The table of Hugging Face's names: DETR's, but for the projections of the decoder's attentions and what is new."""
    apart = {f"decoder.blocks.{{i}}.{ours}.{{w}}": f"model.decoder.layers.{{i}}.{theirs}.{{w}}" for ours, theirs in APART.items()}
    table = [entry for entry in detr.rules(c) if not (isinstance(entry, Rule) and entry.ours[0].text in apart)]
    table += [rule(theirs, ours) for ours, theirs in apart.items()]
    table.append(rule("model.decoder.ref_point_head.layers.{i}.{w}", "decoder.embed.queries.place.{i}.{w}"))
    table.append(rule("model.decoder.query_scale.layers.0.{w}", "decoder.scaling.up_proj.{w}"))
    table.append(rule("model.decoder.query_scale.layers.1.{w}", "decoder.scaling.down_proj.{w}"))
    return table


KEYS = (
    Keys(
        "conditional_detr",
        [
            heads_of("ConditionalDetr", {"ForObjectDetection": "detect", "Model": "none"}),
            key("num_queries", "n_queries", 300),
            *detr.KEYS[0].entries[2:],  # the first two are those that differ
        ],
        ignored=[*detr.UNREAD, "cls_loss_coefficient", "focal_alpha"],
        extra={"is_encoder_decoder": True},
    ),
)
