"""Classification of pictures and clips: read, counted, split, and an encoder for them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from plait.core.model import Model
from plait.data.columns import columns_of
from plait.data.picture_feed import PictureSet, read
from plait.data.picture_rows import Part, PictureRow, kind_of, parts_in, read_pictures, size_of
from plait.data.report import Report
from plait.errors import InputError, choices
from plait.media.augment import PRESETS, Augmentation
from plait.media.preparing import Exactly, Preparation
from plait.tasks.classifying import Classifying
from plait.train.log import Reporter
from plait.verbs.eval import Eval
from plait.verbs.lessons.classify import Labels, balance, counter, given, plain
from plait.verbs.lessons.lesson import Lesson, Say
from plait.verbs.lessons.named import files_of
from plait.verbs.lessons.rows import Rows, read_rows_of, rounded, rows_to_score, trained_by
from plait.verbs.lessons.seeing import Seeing, begin, picture_lesson
from plait.verbs.train import Train

SAMPLED = 50  # pictures whose size is looked at
SIDES = (28, 32, 48, 64, 96, 128, 160, 192, 224)  # what a model from scratch is given, where --size does not say
FRAMES = 8
SMALL = 16  # pixels a side, for the baseline


def kind_in(data: Sequence[str]) -> str | None:
    """ "pictures" or "clips" where that is what all data are, None where they are something else."""
    kinds = {kind_of(path) for path in files_of(data, lambda _: None)} if data else set()
    return kinds.pop() if len(kinds) == 1 else None


def reader(columns: Sequence[str], clips: bool, part: Part | None) -> Callable[[Sequence[str]], tuple[list[PictureRow], Report]]:
    return lambda paths: read_pictures(paths, part, columns_of(columns) or None, clips)


def read_rows(verb: Train, clips: bool, say: Say) -> Rows[PictureRow]:
    """Both sides: data that are divided in folders train/ and valid/ are taken so."""
    parts = {part for path in files_of(verb.data, lambda _: None) for part in parts_in(path)}
    if "valid" in parts and not verb.valid:
        sides = []
        for part in ("train", "valid"):
            rows, report = reader(verb.columns, clips, part)(files_of(verb.data, say))  # type: ignore[arg-type]
            say(f"{part}: {report}")
            sides.append(rows)
        return Rows(*sides)
    read = reader(verb.columns, clips, "train" if parts else None)
    return read_rows_of(verb.data, verb.valid, verb.seed, read, lambda row: row.key, lambda row: row.stratum, say)


def side_of(verb: Train, rows: Sequence[PictureRow], clips: bool) -> int:
    """Pixels of a side that a model from scratch is given: about as many as the pictures have."""
    if verb.size:
        return verb.size
    if clips:
        return 32
    sample = rows[:: max(1, len(rows) // SAMPLED)]
    shorter = int(np.median([min(size_of(row.source, row.where)) for row in sample]))
    return max((side for side in SIDES if side <= shorter), default=SIDES[0])


def augmentation_of(verb: Train, side: int) -> Augmentation:
    """What --augment names; for small pictures by default no flips, since much that is small is a sign."""
    name = verb.augment or ("digits" if side <= 64 else "photographs")
    if name not in PRESETS:
        raise InputError(f"--augment {name}: there is {choices(PRESETS)}")
    return Augmentation.named(name, side)


def lesson(verb: Train, saved: dict[str, Any] | None, say: Say, kind: str) -> Lesson:
    clips = kind == "clips"
    rows = read_rows(verb, clips, say)
    labels = Labels.of(saved["answers"]) if saved else Labels.seen(rows.train)  # type: ignore[arg-type]
    for line in balance(rows.train, labels):  # type: ignore[arg-type]
        say(line)
    side = side_of(verb, rows.train, clips)
    settings = {"head": "classify", "labels": len(labels.names)} | ({"frames": FRAMES} if clips else {})
    usual, takes = ("timesformer", "clips") if clips else ("modern-vision", "pixels")
    prepare = Preparation(size=Exactly(side, side))
    start = begin(verb, saved, Seeing(("encoder",), takes, usual, settings, prepare, side, len(rows.train)), say)
    shown = start.preparation
    assert start.side is not None
    augment = augmentation_of(verb, start.side)
    frames = start.choice.config.get("frames") if clips else None
    made = [
        PictureSet(part, labels.answers(part), shown, change, frames)  # type: ignore[arg-type]
        for part, change in ((rows.train, augment if augment.steps else None), (rows.valid, None))
    ]
    objective = Classifying(labels.problem, start.choice.smoothing)
    done = picture_lesson(start, objective, made, verb.seed, labels.said())
    done.measure = measure(objective, done.valid, labels)
    return done


def measure(objective: Classifying, batches: Sequence[Any], labels: Labels) -> Callable[[Model], dict[str, float]]:
    def figures(net: Model) -> dict[str, float]:
        counted = counter(labels)
        for batch in batches:
            scores = objective.scores(net, objective.on_device(net, batch)).float().cpu()
            counted.add(plain(batch.answers.numpy(), labels), given(scores, labels))
        return counted.figures()

    return figures


def score(verb: Eval, ready: Any) -> dict[str, Any]:
    """`plait eval` of a classifier of pictures, beside the most frequent label and logistic regression on small grey pictures."""
    from plait.tasks.baselines import picture_baselines

    reporter, train = Reporter(), trained_by(ready)
    labels = Labels(ready.problem, tuple(ready.labels))
    paths = files_of(verb.data, lambda _: None, "test") or (files_of(train.data, lambda _: None, "test") if train else [])
    parts = {part for path in paths for part in parts_in(path)}
    part = next((part for part in ("test", "valid") if part in parts), None)
    taken = reader(train.columns if train else (), ready.clips, part)  # type: ignore[arg-type]
    rows, known = rows_to_score(verb, train, taken, lambda row: row.key, lambda row: row.stratum, reporter.say)
    right = plain(labels.answers(rows), labels)  # type: ignore[arg-type]
    shown = PictureSet(rows, labels.answers(rows), ready.prepare, None, ready.parts.settings.frames if ready.clips else None)  # type: ignore[arg-type]
    scores = np.concatenate([ready.logits(batch.pixels) for batch in shown.feed(16).rereading()])
    result: dict[str, Any] = {"task": "classify", "n": len(rows), "metrics": figures_of(labels, right, found_of(labels, scores))}
    if verb.baselines and known and labels.problem == "single":
        taught = plain(labels.answers(known), labels)  # type: ignore[arg-type]
        frames = shown.frames
        guesses = picture_baselines([small(row, frames) for row in known], taught, [small(row, frames) for row in rows], reporter.say)
        result["baselines"] = {name: figures_of(labels, right, guess) for name, guess in guesses.items()}
    return result


def small(row: PictureRow, frames: int | None) -> np.ndarray:
    """Grey values -1 to 1 of a picture (of a clip: of its frames, one after the other) made `SMALL` pixels wide and high, as a vector."""
    from plait.media.pictures import pillow

    pictures = read(row, frames)
    made = [pillow().fromarray(picture).convert("L").resize((SMALL, SMALL), 2) for picture in (pictures if frames else [pictures])]
    return np.concatenate([np.asarray(one, np.float32).ravel() for one in made]) / 127.5 - 1


def found_of(labels: Labels, scores: np.ndarray) -> np.ndarray:
    import torch

    return given(torch.from_numpy(scores), labels)


def figures_of(labels: Labels, right: np.ndarray, found: np.ndarray) -> dict[str, float]:
    counted = counter(labels)
    counted.add(right, found)
    return rounded(counted.figures())
