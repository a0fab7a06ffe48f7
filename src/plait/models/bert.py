"""BERT: an encoder that reads both ways (Devlin et al. 2019)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from plait.core.attention import Attention
from plait.core.blocks import body, each
from plait.core.embeddings import Dropped, Each, Embed, Tokens, Types
from plait.core.feedforward import ACTIVATIONS, FFN, Activation
from plait.core.heads import Tied, Transformed
from plait.core.linear import Linear
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.positions import Learned
from plait.core.residual import Post
from plait.weights.rules import Entry, Keys, activation, drop, fixed, group, key, older, prefix, rule, tie


@dataclass(frozen=True)
class Config:
    """Table 1 of the paper. Without `types` there is no second id; the table of positions has `first_position` rows that no text uses.

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
    "base": dict(vocab_size=30522),
    "large": dict(vocab_size=30522, d_model=1024, n_heads=16, n_layers=24, d_ff=4096),
}


def build(c: Config, filling: Activation | None = None, pooling: Activation = torch.tanh) -> Model:
    """`filling` and `pooling` are the activations of the heads (see `head`), where a page after BERT has others."""
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
    return Model(head(c, d, norm(), tokens, filling, pooling), encoder=Tower(embed, blocks))


def head(
    c: Any, width: int, norm: nn.Module, tokens: Tokens, filling: Activation | None = None, pooling: Activation = torch.tanh
) -> dict[str, nn.Module]:
    """The head that a config of BERT's kind asks for; `width` is that of the embeddings, and of what is scored against them.

    `filling` is the activation before masks are filled (None: that of the feed-forward), `pooling` that of what reads the first entry.
    """
    d = c.d_model
    if c.head == "mlm":
        scores = Tied(tokens, bias=True) if c.tie else Linear(width, c.vocab_size)
        return {"mlm": Transformed(Linear(d, width), filling or ACTIVATIONS[c.activation], norm, scores)}
    if c.head in ("classify", "pool"):
        scores = Linear(d, c.labels) if c.head == "classify" else nn.Identity()
        return {c.head: Transformed(Linear(d, d), pooling, nn.Identity(), scores)}
    return {} if c.head == "none" else {c.head: Linear(d, c.labels)}


POSITIONS = "0, 1, 2 ... as a table of integers: our positions are counted"
POOLER = "of the first entry, which this head does not read"


def encoder_rules(family: str) -> list[Entry]:
    """Names of all but the heads; `family` is the name that all of them begin with."""
    layer, block = f"{family}.encoder.layer.{{i}}.", "encoder.blocks.{i}."
    return [
        prefix(f"{family}."),
        rule(f"{family}.embeddings.word_embeddings.weight", "encoder.embed.tokens.weight"),
        rule(f"{family}.embeddings.position_embeddings.weight", "encoder.embed.positions.weight"),
        rule(f"{family}.embeddings.token_type_embeddings.weight", "encoder.embed.types.weight"),
        rule(f"{family}.embeddings.LayerNorm.{{w}}", "encoder.embed.norm.part.{w}"),
        *(rule(f"{layer}attention.self.{name}.{{w}}", f"{block}self_attn.{name[0]}_proj.{{w}}") for name in ("query", "key", "value")),
        rule(layer + "attention.output.dense.{w}", block + "self_attn.o_proj.{w}"),
        rule(layer + "attention.output.LayerNorm.{w}", block + "self_attn_norm.{w}"),
        rule(layer + "intermediate.dense.{w}", block + "ffn.up_proj.{w}"),
        rule(layer + "output.dense.{w}", block + "ffn.down_proj.{w}"),
        rule(layer + "output.LayerNorm.{w}", block + "ffn_norm.{w}"),
        drop(f"{family}.embeddings.position_ids", POSITIONS),
        older("LayerNorm.gamma", "LayerNorm.weight"),
        older("LayerNorm.beta", "LayerNorm.bias"),
    ]


def fitted(c: Any, names: Collection[str]) -> Any:
    """The config that a file with these names is of: a bare model may have been saved without its pooler, which config.json cannot say."""
    return replace(c, head="none") if c.head == "pool" and not any("pooler." in name for name in names) else c


def filling_rules(front: str, dense: str, norm: str, tokens: str, tied: bool) -> list[Entry]:
    """Names of what fills masks: `front` + "bias" and "decoder", of which an untied output uses the second's bias."""
    shared: list[Entry] = [rule(f"{dense}.{{w}}", "heads.mlm.dense.{w}"), rule(f"{norm}.{{w}}", "heads.mlm.norm.{w}")]
    if not tied:
        unused = drop(f"{front}bias", "not used by an untied output, which has a bias of its own")
        return [*shared, rule(f"{front}decoder.{{w}}", "heads.mlm.scores.{w}"), unused]
    ties = [tie(f"{front}decoder.weight", tokens), tie(f"{front}decoder.bias", f"{front}bias")]
    return [*shared, rule(f"{front}bias", "heads.mlm.scores.bias"), *ties]


def rules(c: Config) -> list[Entry]:
    """The table of Hugging Face's names for a model of this config."""
    pooler, predictions, tokens = "bert.pooler.dense.{w}", "cls.predictions.", "bert.embeddings.word_embeddings.weight"
    transform = predictions + "transform."
    heads: dict[str, list[Entry]] = {
        "mlm": [
            *filling_rules(predictions, transform + "dense", transform + "LayerNorm", tokens, c.tie),
            drop("cls.seq_relationship.{w}", "of the next sentence, which filling masks does not use"),
        ],
        "classify": [rule(pooler, "heads.classify.dense.{w}"), rule("classifier.{w}", "heads.classify.scores.{w}")],
        "tag": [rule("classifier.{w}", "heads.tag.{w}")],
        "answer": [rule("qa_outputs.{w}", "heads.answer.{w}")],
        "pool": [rule(pooler, "heads.pool.dense.{w}")],
    }
    unread = [] if c.head in ("classify", "pool") else [drop(pooler, POOLER)]
    return [*encoder_rules("bert"), *heads.get(c.head, []), *unread]


CLASSES = {
    "ForMaskedLM": "mlm",
    "ForPreTraining": "mlm",
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "tag",
    "ForQuestionAnswering": "answer",
    "Model": "pool",
}


def heads_of(family: str, classes: Mapping[str, str] = CLASSES) -> Any:
    """The head that `architectures` names, and how many labels it has."""
    kinds = {family + ending: kind for ending, kind in classes.items()}

    def read(raw: Mapping[str, Any]) -> dict[str, Any]:
        (name, *_) = raw.get("architectures") or [f"{family}Model"]
        if name not in kinds:
            raise ValueError(f"architectures={[name]!r} is not known here: there is {', '.join(kinds)}")
        labels = len(raw["id2label"]) if raw.get("id2label") else raw.get("num_labels", 2)
        bare = kinds[name] == "pool" and raw.get("add_pooling_layer") is False
        return {"head": "none" if bare else kinds[name], "labels": labels}

    def write(settings: Mapping[str, Any]) -> dict[str, Any]:
        bare = settings["head"] == "none" and "none" not in kinds.values()
        name = next((name for name, kind in kinds.items() if kind == ("pool" if bare else settings["head"])), None)
        if name is None:
            raise ValueError(f"no architecture of {family} has the head {settings['head']!r}")
        labels = settings["labels"]
        named = {} if labels == 2 else {"id2label": {str(i): f"LABEL_{i}" for i in range(labels)}}
        return {"architectures": [name], **named, **({"add_pooling_layer": False} if bare else {})}

    return group(["architectures", "num_labels", "id2label", "add_pooling_layer"], read, write)


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
    fixed("is_decoder", False, "entries see the whole text here"),
]
STEPS = [
    activation("hidden_act", "gelu"),
    key("hidden_dropout_prob", "dropout", 0.1),
    key("attention_probs_dropout_prob", "attention_dropout", 0.1),
]
KEYS = (
    Keys(
        "bert",
        [
            heads_of("Bert"),
            key("vocab_size", "vocab_size", 30522),
            *SIZES,
            *STEPS,
        ],
        ignored={"classifier_dropout", "label2id"},
    ),
)
