"""Detection: pictures with boxes, read, counted, split, and a detector for them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from plait.data.box_rows import read_boxes
from plait.data.columns import columns_of
from plait.data.picture_feed import BoxSet
from plait.data.picture_rows import BoxRow, classes_of
from plait.errors import InputError
from plait.media.preparing import Preparation, Shortest
from plait.tasks.detecting import Detecting, answers, pixels_of
from plait.train.log import Reporter
from plait.verbs.eval import Eval
from plait.verbs.lessons.lesson import Lesson, Say
from plait.verbs.lessons.rows import rounded, trained_by
from plait.verbs.lessons.seeing import Reader, Seeing, begin, in_order, picture_lesson, sides_of, sides_to_score
from plait.verbs.train import Train

USUAL = "modern-detector-small"  # from scratch: smaller ones find little, and larger ones are for more than a CPU's hour
SIDE = 224  # pixels of the shorter side from scratch, where --size does not say
BATCH = 4  # pictures, from scratch
LONG = 1333 / 800  # how much longer the longer one may be (Carion et al. 2020, section 4)
MANY = 0.9  # share of the queries that a picture may fill with boxes before we warn


def reader(columns: Sequence[str]) -> Reader[BoxRow]:
    return lambda paths, part: read_boxes(paths, part, columns_of(columns) or None)


def stratum(row: BoxRow) -> str:
    return "picture"


def balance(rows: Sequence[BoxRow]) -> str:
    counts = Counter(label for row in rows for label in row.labels)
    bare = sum(not row.labels for row in rows)
    told = ", ".join(f"{name} {n:,}" for name, n in counts.most_common(20))
    return f"boxes: {told}; {max(len(row.labels) for row in rows)} at most in a picture" + (f"; {bare:,} pictures without" if bare else "")


def lesson(verb: Train, saved: dict[str, Any] | None, say: Say) -> Lesson:
    rows = sides_of(verb, reader(verb.columns), stratum, say)
    say(balance(rows.train))
    names = tuple(saved["answers"]["id2label"].values()) if saved else tuple(classes_of(rows.train))
    side = verb.size or SIDE
    prepare = Preparation(size=Shortest(side, round(side * LONG)), processor="DetrImageProcessor")
    settings, pictures = {"labels": len(names)}, len(rows.train)
    want = Seeing(("encoder", "decoder"), "pixels", "modern-detector", settings, prepare, side, pictures, most=BATCH)
    start = begin(verb if verb.preset or verb.model else replace(verb, preset=USUAL), saved, want, say)
    n_queries = start.choice.config.get("n_queries", 100)
    most = max(len(row.labels) for row in (*rows.train, *rows.valid))
    if most > n_queries:
        raise InputError(
            f"a picture has {most} boxes, and this model {n_queries} queries, which find one object each: choose another --preset"
        )
    if most > MANY * n_queries:
        say(f"warning: a picture has {most} boxes, nearly as many as the model has queries ({n_queries})")
    augment = start.augmentation(verb, "boxes")
    sides = [
        BoxSet(part, names, start.preparation, change)
        for part, change in ((rows.train, augment if augment.steps else None), (rows.valid, None))
    ]
    objective = Detecting(n_queries)
    said = {"id2label": {str(i): name for i, name in enumerate(names)}}
    done = picture_lesson(start, objective, sides, verb.seed, said)
    done.measure = lambda net: objective.figures(net, done.valid)
    return done


def score(verb: Eval, ready: Any) -> dict[str, Any]:
    """`plait eval` of a detector: COCO's average precision, in percent, and each class's."""
    from plait.tasks.average_precision import average_precision

    reporter, train = Reporter(), trained_by(ready)
    rows, _ = sides_to_score(verb, train, reader(train.columns if train else ()), stratum, reporter.say)
    shown = BoxSet(rows, ready.labels, ready.prepare)
    found = []
    for batch in in_order(shown):
        scores, boxes = map(torch.from_numpy, ready.said(pixels_of(ready.net, batch)))
        found += answers(scores, boxes, batch.sizes)
    right = [(row.boxes, np.array([shown.numbers[name] for name in row.labels], np.int64)) for row in rows]
    crowds = [[(box, shown.numbers[name]) for name, box in row.crowds if name in shown.numbers] for row in rows]
    ignored = [(np.array([box for box, _ in some]).reshape(-1, 4), np.array([label for _, label in some], np.int64)) for some in crowds]
    result = average_precision([(f.boxes, f.scores, f.labels) for f in found], right, list(ready.labels), ignored)
    return {
        "task": "detect",
        "n": len(rows),
        "metrics": rounded(result.figures),
        "classes": {n: rounded(f) for n, f in result.by_class.items()},
    }
