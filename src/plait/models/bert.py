"""BERT: an encoder that reads both ways (Devlin et al. 2019), with RoBERTa (Liu et al. 2019) and DistilBERT (Sanh et al. 2019)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from plait.core.attention import Attention
from plait.core.blocks import body, each
from plait.core.embeddings import Dropped, Each, Embed, Tokens, Types
from plait.core.feedforward import ACTIVATIONS, FFN
from plait.core.heads import Tied, Transformed
from plait.core.linear import Linear
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.positions import Learned
from plait.core.residual import Post
from plait.weights.rules import Entry, Keys, activation, drop, fixed, group, key, prefix, rule, tie


@dataclass(frozen=True)
class Config:
    """Table 1 of the paper. `types` is 0 for DistilBERT; `first_position` 2 for RoBERTa, whose table has rows for padding.

    `head`: "mlm" fills masks, "classify" reads the first entry through the pooler, "tag" scores each entry, "answer" gives start and
    end scores of a span, "pool" is the bare encoder with its pooler, "none" without. `labels` is the number of classes or tags.
    """

    vocab_size: int = 30522
    d_model: int = 768
    n_heads: int = 12
    n_layers: int = 12
    d_ff: int = 3072
    max_length: int = 512
    types: int = 2
    first_position: int = 0
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.0
    head: Literal["mlm", "classify", "tag", "answer", "pool", "none"] = "mlm"
    tie: bool = True
    labels: int = 2


PRESETS = {
    "tiny": dict(d_model=32, n_heads=4, n_layers=2, d_ff=64, max_length=64),
    "distil": dict(vocab_size=30522, n_layers=6, types=0),
    "base": dict(vocab_size=30522),
    "roberta-base": dict(vocab_size=50265, types=1, first_position=2, norm_eps=1e-5),
    "large": dict(vocab_size=30522, d_model=1024, n_heads=16, n_layers=24, d_ff=4096),
}


def build(c: Config) -> Model:
    d, norm = c.d_model, partial(LayerNorm, c.d_model, eps=c.norm_eps)
    tokens = Tokens(c.vocab_size, d)
    parts = {"tokens": tokens, "positions": Learned(c.max_length, d, c.first_position)}
    if c.types:
        parts["types"] = Types(c.types, d)
    embed = Embed(**parts, norm=Each(norm()), dropout=Dropped(c.dropout))
    blocks = body(
        c.n_layers,
        norm,
        lambda layer: Post(c.dropout),
        self_attn=each(Attention, d, c.n_heads, dropout=c.attention_dropout),
        ffn=each(FFN, d, c.d_ff, ACTIVATIONS[c.activation]),
    )
    return Model(head(c, d, norm(), tokens), encoder=Tower(embed, blocks))


def head(c: Any, width: int, norm: nn.Module, tokens: Tokens) -> dict[str, nn.Module]:
    """The head that a config of BERT's kind asks for; `width` is that of the embeddings, and of what is scored against them."""
    d = c.d_model
    if c.head == "mlm":
        scores = Tied(tokens, bias=True) if c.tie else Linear(width, c.vocab_size)
        return {"mlm": Transformed(Linear(d, width), ACTIVATIONS[c.activation], norm, scores)}
    if c.head in ("classify", "pool"):
        scores = Linear(d, c.labels) if c.head == "classify" else nn.Identity()
        return {c.head: Transformed(Linear(d, d), torch.tanh, nn.Identity(), scores)}
    return {} if c.head == "none" else {c.head: Linear(d, c.labels)}


POSITIONS = "0, 1, 2 ... as a table of integers: our positions are counted"
ENCODER: list[Entry] = [
    prefix("bert."),
    rule("bert.embeddings.word_embeddings.weight", "encoder.embed.tokens.weight"),
    rule("bert.embeddings.position_embeddings.weight", "encoder.embed.positions.weight"),
    rule("bert.embeddings.token_type_embeddings.weight", "encoder.embed.types.weight"),
    rule("bert.embeddings.LayerNorm.{w}", "encoder.embed.norm.part.{w}"),
    rule("bert.encoder.layer.{i}.attention.self.query.{w}", "encoder.blocks.{i}.self_attn.q_proj.{w}"),
    rule("bert.encoder.layer.{i}.attention.self.key.{w}", "encoder.blocks.{i}.self_attn.k_proj.{w}"),
    rule("bert.encoder.layer.{i}.attention.self.value.{w}", "encoder.blocks.{i}.self_attn.v_proj.{w}"),
    rule("bert.encoder.layer.{i}.attention.output.dense.{w}", "encoder.blocks.{i}.self_attn.o_proj.{w}"),
    rule("bert.encoder.layer.{i}.attention.output.LayerNorm.{w}", "encoder.blocks.{i}.self_attn_norm.{w}"),
    rule("bert.encoder.layer.{i}.intermediate.dense.{w}", "encoder.blocks.{i}.ffn.up_proj.{w}"),
    rule("bert.encoder.layer.{i}.output.dense.{w}", "encoder.blocks.{i}.ffn.down_proj.{w}"),
    rule("bert.encoder.layer.{i}.output.LayerNorm.{w}", "encoder.blocks.{i}.ffn_norm.{w}"),
    drop("bert.embeddings.position_ids", POSITIONS),
]
HEADS: dict[str, list[Entry]] = {
    "mlm": [
        rule("cls.predictions.transform.dense.{w}", "heads.mlm.dense.{w}"),
        rule("cls.predictions.transform.LayerNorm.{w}", "heads.mlm.norm.{w}"),
        rule("cls.predictions.bias", "heads.mlm.scores.bias"),
        tie("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        tie("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ],
    "classify": [rule("bert.pooler.dense.{w}", "heads.classify.dense.{w}"), rule("classifier.{w}", "heads.classify.scores.{w}")],
    "tag": [rule("classifier.{w}", "heads.tag.{w}")],
    "answer": [rule("qa_outputs.{w}", "heads.answer.{w}")],
    "pool": [rule("bert.pooler.dense.{w}", "heads.pool.dense.{w}")],
    "none": [],
}


def rules(c: Config) -> list[Entry]:
    """The table of Hugging Face's names for a model of this config."""
    if c.head == "mlm" and not c.tie:
        unused = drop("cls.predictions.bias", "not used by an untied output, which has a bias of its own")
        return [*ENCODER, *HEADS["mlm"][:2], rule("cls.predictions.decoder.{w}", "heads.mlm.scores.{w}"), unused]
    return [*ENCODER, *HEADS[c.head]]


CLASSES = {
    "ForMaskedLM": "mlm",
    "ForPreTraining": "mlm",
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "tag",
    "ForQuestionAnswering": "answer",
    "Model": "pool",
}


def heads_of(family: str) -> Any:
    """The head that `architectures` names, and how many labels it has."""
    kinds = {family + ending: kind for ending, kind in CLASSES.items()}

    def read(raw: Mapping[str, Any]) -> dict[str, Any]:
        (name, *_) = raw.get("architectures") or [f"{family}Model"]
        if name not in kinds:
            raise ValueError(f"architectures={[name]!r} is not known here: there is {', '.join(kinds)}")
        labels = len(raw["id2label"]) if raw.get("id2label") else raw.get("num_labels", 2)
        return {"head": kinds[name], "labels": labels}

    def write(settings: Mapping[str, Any]) -> dict[str, Any]:
        name = next((name for name, kind in kinds.items() if kind == settings["head"]), None)
        if name is None:
            raise ValueError(f"no architecture of {family} has the head {settings['head']!r}")
        labels = settings["labels"]
        return {"architectures": [name], **({} if labels == 2 else {"id2label": {str(i): f"LABEL_{i}" for i in range(labels)}})}

    return group(["architectures", "num_labels", "id2label"], read, write)


SIZES = [
    key("hidden_size", "d_model", 768),
    key("num_attention_heads", "n_heads", 12),
    key("num_hidden_layers", "n_layers", 12),
    key("intermediate_size", "d_ff", 3072),
    key("max_position_embeddings", "max_length", 512),
    key("type_vocab_size", "types", 2),
    key("layer_norm_eps", "norm_eps", 1e-12),
    key("tie_word_embeddings", "tie", True),
    fixed("position_embedding_type", "absolute"),
]
KEYS = (
    Keys(
        "bert",
        [
            heads_of("Bert"),
            key("vocab_size", "vocab_size", 30522),
            *SIZES,
            activation("hidden_act", "gelu"),
            key("hidden_dropout_prob", "dropout", 0.1),
            key("attention_probs_dropout_prob", "attention_dropout", 0.1),
        ],
        ignored={"classifier_dropout", "label2id"},
    ),
)
