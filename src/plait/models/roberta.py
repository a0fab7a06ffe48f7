"""RoBERTa: BERT trained longer, without the task of the next sentence (Liu et al. 2019); XLM-R (Conneau et al. 2020), CamemBERT."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plait.core.feedforward import gelu
from plait.core.model import Model
from plait.models import bert
from plait.weights.rules import Entry, Keys, drop, group, key, rule


@dataclass(frozen=True)
class Config(bert.Config):
    """BERT's settings. Positions count from `first_position`, one above the id of the padding; `max_length` is what a text may have."""

    vocab_size: int = 50265
    types: int = 1
    first_position: int = 2
    norm_eps: float = 1e-5


PRESETS = {
    "tiny": dict(vocab_size=128, d_model=32, n_heads=4, n_layers=2, d_ff=64, max_length=64),
    "base": dict(),
    "large": dict(d_model=1024, n_heads=16, n_layers=24, d_ff=4096),
}


def build(c: Config) -> Model:
    return bert.build(c, filling=gelu)  # whatever the feed-forward has


fitted = bert.fitted


def rules(c: Config) -> list[Entry]:
    """The table of Hugging Face's names for a model of this config."""
    pooler, dense, out = "roberta.pooler.dense.{w}", "classifier.dense.{w}", "classifier.out_proj.{w}"
    heads: dict[str, list[Entry]] = {
        "mlm": bert.filling_rules("lm_head.", "lm_head.dense", "lm_head.layer_norm", "roberta.embeddings.word_embeddings.weight", c.tie),
        "classify": [rule(dense, "heads.classify.dense.{w}"), rule(out, "heads.classify.scores.{w}")],
        "tag": [rule("classifier.{w}", "heads.tag.{w}")],
        "answer": [rule("qa_outputs.{w}", "heads.answer.{w}")],
        "pool": [rule(pooler, "heads.pool.dense.{w}")],
    }
    unread = [] if c.head == "pool" else [drop(pooler, bert.POOLER)]
    return [*bert.encoder_rules("roberta"), *heads.get(c.head, []), *unread]


def _positions(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Their table has a row for each id up to the padding's, which no position uses."""
    rows, padding = raw.get("max_position_embeddings", 512), raw.get("pad_token_id", 1)
    if not isinstance(rows, int) or not isinstance(padding, int) or not 0 <= padding < rows - 1:
        raise ValueError(f"max_position_embeddings={rows!r} and pad_token_id={padding!r}: positions count from the second, so give numbers")
    return {"first_position": padding + 1, "max_length": rows - padding - 1}


def _position_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    first = settings["first_position"]
    return {"pad_token_id": first - 1, "max_position_embeddings": first + settings["max_length"]}


def _keys(model_type: str, family: str, vocab_size: int) -> Keys:
    return Keys(
        model_type,
        [
            bert.heads_of(family),
            key("vocab_size", "vocab_size", vocab_size),
            *[entry for entry in bert.SIZES if "max_position_embeddings" not in entry.names],
            group(["max_position_embeddings", "pad_token_id"], _positions, _position_keys),
            *bert.STEPS,
        ],
        ignored={"classifier_dropout", "label2id"},
    )


KEYS = (
    _keys("roberta", "Roberta", 50265),
    _keys("xlm-roberta", "XLMRoberta", 30522),
    _keys("camembert", "Camembert", 30522),
)
