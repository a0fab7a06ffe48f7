"""Detection: pictures with boxes, read, counted, split, and a detector for them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from plait.data.box_rows import read_boxes
from plait.data.columns import columns_of
from plait.data.picture_feed import BoxSet
from plait.data.picture_rows import BoxRow, Part, classes_of, parts_in
from plait.data.report import Report
from plait.errors import InputError, choices
from plait.media.augment import PRESETS, Augmentation
from plait.media.preparing import Exactly, Preparation, Shortest
from plait.tasks.detecting import Detecting
from plait.train.log import Reporter
from plait.verbs.eval import Eval
from plait.verbs.lessons.lesson import Lesson, Say
from plait.verbs.lessons.named import files_of
from plait.verbs.lessons.rows import Rows, read_rows_of, rounded, rows_to_score, trained_by
from plait.verbs.lessons.seeing import Seeing, Sight, begin, picture_lesson
from plait.verbs.train import Train

SIDE = 224  # pixels of the shorter side from scratch, where --size does not say
LONG = 1333 / 800  # how much longer the longer one may be (Carion et al. 2020, section 4)
MANY = 0.9  # share of the queries that a picture may fill with boxes before we warn


def reader(columns: Sequence[str], part: Part | None) -> Any:
    def read(paths: Sequence[str]) -> tuple[list[BoxRow], Report]:
        return read_boxes(paths, part, columns_of(columns) or None)

    return read


def read_rows(verb: Train, say: Say) -> Rows[BoxRow]:
    parts = {part for path in files_of(verb.data, lambda _: None) for part in parts_in(path)}
    if "valid" in parts and not verb.valid:
        sides = []
        for part in ("train", "valid"):
            rows, report = reader(verb.columns, part)(files_of(verb.data, say))  # type: ignore[arg-type]
            say(f"{part}: {report}")
            sides.append(rows)
        return Rows(*sides)
    read = reader(verb.columns, "train" if parts else None)
    return read_rows_of(verb.data, verb.valid, verb.seed, read, lambda row: row.key, lambda row: "picture", say)


def balance(rows: Sequence[BoxRow]) -> str:
    counts = Counter(label for row in rows for label in row.labels)
    bare = sum(not row.labels for row in rows)
    told = ", ".join(f"{name} {n:,}" for name, n in counts.most_common(20))
    return f"boxes: {told}; {max(len(row.labels) for row in rows)} at most in a picture" + (f"; {bare:,} pictures without" if bare else "")


def prepared(verb: Train, start: Sight) -> tuple[Preparation, Augmentation]:
    """What is done to pictures, the same when learning and when answering but for what is drawn by chance."""
    size = start.preparation.size
    side = verb.size or (size.edge if isinstance(size, Shortest) else size.height if isinstance(size, Exactly) else SIDE)
    name = verb.augment or "boxes"
    if name not in PRESETS:
        raise InputError(f"--augment {name}: there is {choices(PRESETS)}")
    return start.preparation, Augmentation.named(name, side)


def lesson(verb: Train, saved: dict[str, Any] | None, say: Say) -> Lesson:
    rows = read_rows(verb, say)
    say(balance(rows.train))
    names = tuple(saved["answers"]["id2label"].values()) if saved else tuple(classes_of(rows.train))
    side = verb.size or SIDE
    prepare = Preparation(size=Shortest(side, round(side * LONG)), processor="DetrImageProcessor")
    want = Seeing(("encoder", "decoder"), "pixels", "detr", {"labels": len(names)}, prepare, side, len(rows.train))
    start = begin(verb, saved, want, say)
    n_queries = start.choice.config.get("n_queries", 100)
    most = max(len(row.labels) for row in rows.train)
    if most > n_queries:
        raise InputError(
            f"a picture has {most} boxes, and this model {n_queries} queries, which find one object each: choose another --preset"
        )
    if most > MANY * n_queries:
        say(f"warning: a picture has {most} boxes, nearly as many as the model has queries ({n_queries})")
    preparation, augmentation = prepared(verb, start)
    sides = [BoxSet(rows.train, names, preparation, augmentation), BoxSet(rows.valid, names, preparation)]
    objective = Detecting(n_queries)
    answers = {"id2label": {str(i): name for i, name in enumerate(names)}}
    done = picture_lesson(start, objective, sides, verb.seed, answers)
    done.measure = lambda net: objective.figures(net, done.valid)
    return done


def score(verb: Eval, ready: Any) -> dict[str, Any]:
    """`plait eval` of a detector: COCO's average precision, in percent, and each class's."""
    import numpy as np

    from plait.tasks.average_precision import average_precision

    reporter, train = Reporter(), trained_by(ready)
    paths = files_of(verb.data, lambda _: None, "test") or (files_of(train.data, lambda _: None, "test") if train else [])
    parts = {part for path in paths for part in parts_in(path)}
    part = next((part for part in ("test", "valid") if part in parts), None)
    rows, _ = rows_to_score(
        verb, train, reader(train.columns if train else (), part), lambda row: row.key, lambda row: "picture", reporter.say
    )
    numbers = {name: i for i, name in enumerate(ready.labels)}
    if odd := [f"{row.where}: {name!r}" for row in rows for name in dict.fromkeys(row.labels) if name not in numbers]:
        raise InputError(f"boxes of classes that the model does not know; it knows {', '.join(ready.labels)}", odd)
    sources = [row.source.read() if hasattr(row.source, "read") else row.source for row in rows]
    found = [
        (
            np.array([one.box for one in some], np.float32).reshape(-1, 4),
            np.array([one.score for one in some], np.float32),
            np.array([numbers[one.label] for one in some], np.int64),
        )
        for some in ready.detect(sources, 0.0)
    ]
    right = [(row.boxes, np.array([numbers[name] for name in row.labels], np.int64)) for row in rows]
    result = average_precision(found, right, list(ready.labels))  # type: ignore[arg-type]
    return {
        "task": "detect",
        "n": len(rows),
        "metrics": rounded(result.figures),
        "classes": {n: rounded(f) for n, f in result.by_class.items()},
    }
