"""Embedding: pairs of texts that belong together, read, split and grouped, and an encoder whose vectors find one by the other."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.core.model import Model
from plait.data.batches import BatchOrder
from plait.data.columns import Row, columns_of
from plait.data.corpus import Flat
from plait.data.examples import Examples, example_set
from plait.data.feed import RowFeed
from plait.data.report import Report
from plait.data.tables import read_rows
from plait.errors import InputError
from plait.tasks.baselines import embed_baseline
from plait.tasks.contrast import ANCHOR, NEGATIVE, POSITIVE, Contrast
from plait.tasks.encoding import Embedder, Pooling
from plait.tasks.scores import Ranks, spearman
from plait.text.loaded import LoadedTokenizer
from plait.train.log import Reporter
from plait.verbs.eval import Eval
from plait.verbs.lessons.beginning import begin
from plait.verbs.lessons.lesson import Lesson, Say
from plait.verbs.lessons.rows import Read, counter_of, in_chunks, lesson_of, longest_of, read_rows_of, rounded, rows_to_score, trained_by
from plait.verbs.train import Train

ALIASES = {
    "anchor": ("query", "question", "sentence1", "text1", "text"),
    "positive": ("answer", "passage", "document", "sentence2", "text2", "second"),
    "negative": ("hard_negative",),
    "score": ("similarity",),
}
GROUP = 32  # pairs that are told from each other
MEASURED = 1000  # pairs of the validation set that recall is measured on: memory must not grow with the data


@dataclass(frozen=True, slots=True)
class Together:
    """Two texts that belong together, and perhaps one that only seems to; or two with a score of how near they are."""

    anchor: str
    positive: str
    negative: str
    where: str
    score: float | None = None


def key(row: Together) -> str:
    return row.anchor


def stratum(row: Together) -> None:
    return None


def reader(columns: Sequence[str]) -> Read[Together]:
    def read(paths: Sequence[str]) -> tuple[list[Together], Report]:
        kinds: dict[str, tuple[type, ...]] = {"score": (str, int, float)}
        rows, report = read_rows(paths, columns_of(columns), ("anchor", "positive"), ("negative", "score"), ALIASES, kinds)
        return [Together(**{"negative": "", **row.values, "score": score_of(row)}, where=row.where) for row in rows], report

    return read


def score_of(row: Row) -> float | None:
    if (given := row.values.get("score")) is None:
        return None
    try:
        return float(given)
    except ValueError:
        raise InputError(f"{row.where}: the score {str(given)[:40]!r} is not a number") from None


@dataclass(frozen=True)
class Grouped:
    """Pairs as ids; a batch of them is groups of up to `GROUP`, as `Contrast` wants them."""

    anchors: Flat
    positives: Flat
    negatives: Flat  # of no ids where there is none
    pad: int

    @property
    def lengths(self) -> np.ndarray:
        """[N, 2], as `BatchOrder` wants them."""
        return np.stack([self.anchors.lengths, np.maximum(self.positives.lengths, self.negatives.lengths)], 1)

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Examples:
        ids, roles = list[np.ndarray](), list[int]()
        for group in np.array_split(rows, -(-len(rows) // GROUP)):
            for role, side in ((ANCHOR, self.anchors), (POSITIVE, self.positives), (NEGATIVE, self.negatives)):
                texts = [text for row in group if len(text := side[int(row)])]
                ids += texts
                roles += [role] * len(texts)
        whole = example_set(ids, np.array(roles), self.pad)  # type: ignore[arg-type]
        return whole.batch(np.arange(len(whole)))

    def feed(self, tokens_per_batch: int, seed: int = 0) -> RowFeed:
        usual = int(np.quantile(self.lengths.max(1), 0.9))  # at least one group a batch, but for the longest rows
        return RowFeed(BatchOrder(self.lengths, max(tokens_per_batch, 2 * GROUP * usual), seed), self.batch)


def encoded(rows: Sequence[Together], tokenizer: LoadedTokenizer, longest: int, report: Report) -> Grouped:
    room = longest - len(tokenizer.wrap([]))

    def side(name: str) -> Flat:
        texts = [getattr(row, name) for row in rows]
        ids = tokenizer.encode_batch(texts)
        for row, one in zip(rows, ids):
            if len(one) > room:
                report.note(f"{name} cut to {longest} tokens", row.where)
        return Flat.of([tokenizer.wrap(one[:room]) if text.strip() else [] for one, text in zip(ids, texts)])

    return Grouped(side("anchor"), side("positive"), side("negative"), tokenizer.pad_id)


def lesson(verb: Train, saved: dict[str, Any] | None, say: Say) -> Lesson:
    rows = read_rows_of(verb.data, verb.valid, verb.seed, reader(verb.columns), key, stratum, say)
    if any(row.score is not None for row in (*rows.train, *rows.valid)):
        raise InputError("rows with a score are for plait eval: to learn from, give pairs that belong together, without that column")
    texts = [text for row in rows.train for text in (row.anchor, row.positive, row.negative) if text]
    start = begin(verb, saved, ("encoder",), texts, {"head": "none"}, say, usual="modern-encoder", count=counter_of(texts, verb.context))
    longest, report = longest_of(verb, start), Report("encoded", len(rows.train))
    train, valid = (encoded(part, start.tokenizer, longest, report) for part in (rows.train, rows.valid))
    pooling = Pooling("mean", True, longest)
    say(f"{report}\neach text is told from those of up to {GROUP - 1} other pairs")

    def measure(net: Model) -> dict[str, float]:
        embedder, some = Embedder(net, start.tokenizer, longest, pooling), rows.valid[:MEASURED]
        counted = ranked(some, lambda one, two: embedder(one) @ embedder(two).T)
        return {"recall@1": counted.figures()["recall@1"]}

    return lesson_of(start, longest, Contrast(pooling), (train, valid), verb.seed, {}, measure, lambda folder: keep(folder, pooling))


def keep(folder: Path, pooling: Pooling) -> None:
    """How vectors are made of a text's, in the files that sentence-embedding models say it by (see `pooling_of`)."""
    parts = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (kind, path) in enumerate(parts)
    ]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": {f"pooling_mode_{pooling.kind}_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": pooling.max_length},
    }
    for name, said in files.items():
        (folder / name).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def ranked(rows: Sequence[Together], cosines: Callable[[list[str], list[str]], np.ndarray]) -> Ranks:
    """Where each anchor's positive stands among all positives, behind those that are as near. One that another pair of the same anchor
    has is right as well."""
    texts = list(dict.fromkeys(row.positive for row in rows))
    numbers, right, counted = {text: i for i, text in enumerate(texts)}, dict[str, dict[int, None]](), Ranks()
    for row in rows:
        right.setdefault(row.anchor, {})[numbers[row.positive]] = None
    for some in in_chunks(right, 256):
        for anchor, row in zip(some, cosines(list(some), texts)):
            own = row[list(right[anchor])]
            counted.add(int((row >= own.max()).sum() - (own >= own.max()).sum()))
    return counted


def score(verb: Eval, ready: Any) -> dict[str, Any]:
    """`plait eval` of an embedding model, beside cosines of word weights: how near what belongs together is, or where rows have scores,
    whether cosines are in their order."""
    reporter, train = Reporter(), trained_by(ready)
    rows, known = rows_to_score(verb, train, reader(train.columns if train else ()), key, stratum, reporter.say)
    held: dict[tuple[str, ...], np.ndarray] = {}

    def cosines(one: list[str], two: list[str]) -> np.ndarray:
        if tuple(two) not in held:
            held[tuple(two)] = unit(ready.embed(two))
        return unit(ready.embed(one)) @ held[tuple(two)].T

    def figures(cosines: Callable[[list[str], list[str]], np.ndarray]) -> dict[str, float]:
        scores = [row.score for row in rows if row.score is not None]
        if len(scores) < len(rows):
            return rounded(ranked(rows, cosines).figures())
        near = [x for some in in_chunks(rows, 64) for x in cosines([row.anchor for row in some], [row.positive for row in some]).diagonal()]
        return rounded({"spearman": spearman(near, scores)})

    result: dict[str, Any] = {"task": "embed", "n": len(rows), "metrics": figures(cosines)}
    if verb.baselines and known:
        weighed = embed_baseline([text for row in known for text in (row.anchor, row.positive)], reporter.say)
        result["baselines"] = {} if weighed is None else {"tfidf": figures(weighed)}
    return result


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(vectors.dtype).tiny)
