"""DistilBERT: BERT with half the layers, learned from the whole (Sanh et al. 2019). It has no second id and no pooler."""

from dataclasses import dataclass

from plait.core.feedforward import relu
from plait.core.model import Model
from plait.models import bert
from plait.weights.rules import Entry, Keys, activation, drop, group, key, prefix, rule, tie


@dataclass(frozen=True)
class Config(bert.Config):
    """Section 3 of the paper. There is no head "pool"; "classify" has a layer and a ReLU of its own where BERT has its pooler."""

    n_layers: int = 6
    types: int = 0


PRESETS = {
    "tiny": dict(vocab_size=128, d_model=32, n_heads=4, n_layers=2, d_ff=64, max_length=64),
    "base": dict(),
}


def build(c: Config) -> Model:
    return bert.build(c, pooling=relu)


FRONT, LAYER, BLOCK = "distilbert.embeddings.", "distilbert.transformer.layer.{i}.", "encoder.blocks.{i}."
ENCODER: list[Entry] = [
    prefix("distilbert."),
    rule(FRONT + "word_embeddings.weight", "encoder.embed.tokens.weight"),
    rule(FRONT + "position_embeddings.weight", "encoder.embed.positions.weight"),
    rule(FRONT + "LayerNorm.{w}", "encoder.embed.norm.part.{w}"),
    *(rule(f"{LAYER}attention.{name}_lin.{{w}}", f"{BLOCK}self_attn.{name}_proj.{{w}}") for name in "qkv"),
    rule(LAYER + "attention.out_lin.{w}", BLOCK + "self_attn.o_proj.{w}"),
    rule(LAYER + "sa_layer_norm.{w}", BLOCK + "self_attn_norm.{w}"),
    rule(LAYER + "ffn.lin1.{w}", BLOCK + "ffn.up_proj.{w}"),
    rule(LAYER + "ffn.lin2.{w}", BLOCK + "ffn.down_proj.{w}"),
    rule(LAYER + "output_layer_norm.{w}", BLOCK + "ffn_norm.{w}"),
    drop(FRONT + "position_ids", bert.POSITIONS),
]
HEADS: dict[str, list[Entry]] = {
    "mlm": [
        rule("vocab_transform.{w}", "heads.mlm.dense.{w}"),
        rule("vocab_layer_norm.{w}", "heads.mlm.norm.{w}"),
        rule("vocab_projector.{w}", "heads.mlm.scores.{w}"),
        tie("vocab_projector.weight", FRONT + "word_embeddings.weight"),
    ],
    "classify": [rule("pre_classifier.{w}", "heads.classify.dense.{w}"), rule("classifier.{w}", "heads.classify.scores.{w}")],
    "tag": [rule("classifier.{w}", "heads.tag.{w}")],
    "answer": [rule("qa_outputs.{w}", "heads.answer.{w}")],
}


def rules(c: Config) -> list[Entry]:
    """The table of Hugging Face's names for a model of this config."""
    return [*ENCODER, *HEADS.get(c.head, [])]


CLASSES = {**{name: kind for name, kind in bert.CLASSES.items() if name != "ForPreTraining"}, "Model": "none"}
KEYS = (
    Keys(
        "distilbert",
        [
            bert.heads_of("DistilBert", CLASSES),
            key("vocab_size", "vocab_size", 30522),
            key("dim", "d_model", 768, also=["hidden_size"]),
            key("n_heads", "n_heads", 12, also=["num_attention_heads"]),
            key("n_layers", "n_layers", 6, also=["num_hidden_layers"]),
            key("hidden_dim", "d_ff", 3072),
            key("max_position_embeddings", "max_length", 512),
            activation("activation", "gelu"),
            key("dropout", "dropout", 0.1),
            key("attention_dropout", "attention_dropout", 0.1),
            key("tie_word_embeddings", "tie", True),
            group((), lambda raw: {"types": 0, "norm_eps": 1e-12, "first_position": 0}, lambda settings: {}),
        ],
        # Sinusoids are only how the table of positions starts: it is stored. The other two dropouts are of heads, tie_weights_ is not read.
        ignored={"sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout", "tie_weights_", "label2id"},
    ),
)
