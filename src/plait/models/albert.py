"""ALBERT: BERT with one set of weights for all layers and small embeddings, projected up (Lan et al. 2020)."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from plait.core.attention import Attention
from plait.core.blocks import body, each
from plait.core.embeddings import Dropped, Each, Embed, Tokens, Types
from plait.core.feedforward import ACTIVATIONS, FFN
from plait.core.linear import Linear
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.positions import Learned
from plait.core.residual import Post
from plait.models.bert import POSITIONS, SIZES, filling_rules, head, heads_of
from plait.models.bert import fitted as fitted  # as of BERT's page
from plait.weights.rules import Entry, Keys, activation, drop, fixed, key, prefix, rule


@dataclass(frozen=True)
class Config:
    """Table 1 of the paper. `groups` is the number of different layers, `d_embed` the width of the embeddings (section 3.1).

    `head` as for BERT: "mlm", "classify", "tag", "answer", "pool", "none".
    """

    vocab_size: int = 30000
    d_embed: int = 128
    d_model: int = 768
    n_heads: int = 12
    n_layers: int = 12
    groups: int = 1
    d_ff: int = 3072
    max_length: int = 512
    types: int = 2
    activation: str = "gelu_tanh"
    norm_eps: float = 1e-12
    dropout: float = 0.0
    attention_dropout: float = 0.0
    head: Literal["mlm", "classify", "tag", "answer", "pool", "none"] = "mlm"
    tie: bool = True
    labels: int = 2


PRESETS = {
    "tiny": dict(d_embed=16, d_model=32, n_heads=4, n_layers=3, d_ff=64, max_length=64),
    "base": dict(vocab_size=30000),
    "large": dict(vocab_size=30000, d_model=1024, n_heads=16, n_layers=24, d_ff=4096),
    "xlarge": dict(vocab_size=30000, d_model=2048, n_heads=16, n_layers=24, d_ff=8192),
    "xxlarge": dict(vocab_size=30000, d_model=4096, n_heads=64, n_layers=12, d_ff=16384),
}


def build(c: Config) -> Model:
    d, norm = c.d_model, partial(LayerNorm, eps=c.norm_eps)
    tokens = Tokens(c.vocab_size, c.d_embed)
    embed = Embed(
        tokens=tokens,
        positions=Learned(c.max_length, c.d_embed),
        types=Types(c.types, c.d_embed),
        norm=Each(norm(c.d_embed)),
        dropout=Dropped(c.dropout),
        up=Each(Linear(c.d_embed, d)),
    )
    blocks = body(
        c.n_layers,
        partial(norm, d),
        lambda layer: Post(c.dropout),
        share=c.groups,
        self_attn=each(Attention, d, c.n_heads, dropout=c.attention_dropout),
        ffn=each(FFN, d, c.d_ff, ACTIVATIONS[c.activation]),
    )
    return Model(head(c, c.d_embed, norm(c.d_embed), tokens), encoder=Tower(embed, blocks))


LAYER = "albert.encoder.albert_layer_groups.{i}.albert_layers.0"
ENCODER: list[Entry] = [
    prefix("albert."),
    rule("albert.embeddings.word_embeddings.weight", "encoder.embed.tokens.weight"),
    rule("albert.embeddings.position_embeddings.weight", "encoder.embed.positions.weight"),
    rule("albert.embeddings.token_type_embeddings.weight", "encoder.embed.types.weight"),
    rule("albert.embeddings.LayerNorm.{w}", "encoder.embed.norm.part.{w}"),
    rule("albert.encoder.embedding_hidden_mapping_in.{w}", "encoder.embed.up.part.{w}"),
    rule(f"{LAYER}.attention.query.{{w}}", "encoder.blocks.{i}.self_attn.q_proj.{w}"),
    rule(f"{LAYER}.attention.key.{{w}}", "encoder.blocks.{i}.self_attn.k_proj.{w}"),
    rule(f"{LAYER}.attention.value.{{w}}", "encoder.blocks.{i}.self_attn.v_proj.{w}"),
    rule(f"{LAYER}.attention.dense.{{w}}", "encoder.blocks.{i}.self_attn.o_proj.{w}"),
    rule(f"{LAYER}.attention.LayerNorm.{{w}}", "encoder.blocks.{i}.self_attn_norm.{w}"),
    rule(f"{LAYER}.ffn.{{w}}", "encoder.blocks.{i}.ffn.up_proj.{w}"),
    rule(f"{LAYER}.ffn_output.{{w}}", "encoder.blocks.{i}.ffn.down_proj.{w}"),
    rule(f"{LAYER}.full_layer_layer_norm.{{w}}", "encoder.blocks.{i}.ffn_norm.{w}"),
    drop("albert.embeddings.position_ids", POSITIONS),
]
POOLER = "albert.pooler.{w}"
HEADS: dict[str, list[Entry]] = {
    "mlm": [
        drop(POOLER, "of sentence order, which filling masks does not use"),
        drop("sop_classifier.classifier.{w}", "of sentence order, which filling masks does not use"),
    ],
    "classify": [rule(POOLER, "heads.classify.dense.{w}"), rule("classifier.{w}", "heads.classify.scores.{w}")],
    "tag": [rule("classifier.{w}", "heads.tag.{w}")],
    "answer": [rule("qa_outputs.{w}", "heads.answer.{w}")],
    "pool": [rule(POOLER, "heads.pool.dense.{w}")],
    "none": [],
}


def rules(c: Config) -> list[Entry]:
    """The table of Hugging Face's names for a model of this config."""
    tokens = "albert.embeddings.word_embeddings.weight"
    filling = filling_rules("predictions.", "predictions.dense", "predictions.LayerNorm", tokens, c.tie) if c.head == "mlm" else []
    return [*ENCODER, *filling, *HEADS[c.head]]


KEYS = (
    Keys(
        "albert",
        [
            heads_of("Albert"),
            key("vocab_size", "vocab_size", 30000),
            key("embedding_size", "d_embed", 128),
            key("hidden_size", "d_model", 4096),
            key("num_attention_heads", "n_heads", 64),
            key("num_hidden_groups", "groups", 1),
            key("intermediate_size", "d_ff", 16384),
            *[entry for entry in SIZES if not {"hidden_size", "num_attention_heads", "intermediate_size"} & set(entry.names)],
            activation("hidden_act", "gelu_new"),
            key("hidden_dropout_prob", "dropout", 0.0),
            key("attention_probs_dropout_prob", "attention_dropout", 0.0),
            fixed("inner_group_num", 1, "a group of several layers"),
        ],
        # What older files carry of ideas that no code ever read.
        ignored={
            "classifier_dropout_prob",
            "label2id",
            "down_scale_factor",
            "gap_size",
            "net_structure_type",
            "num_memory_blocks",
            "eos_token_ids",
        },
    ),
)
