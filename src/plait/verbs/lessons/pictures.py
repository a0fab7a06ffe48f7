"""Classification of pictures and clips: read, counted, split, and an encoder for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from plait.data.columns import columns_of
from plait.data.picture_feed import PictureSet, read
from plait.data.picture_rows import PictureRow, kind_of, read_pictures, size_of
from plait.hub import load
from plait.media.preparing import Exactly, Preparation
from plait.tasks.classifying import Classifying
from plait.tasks.detecting import pixels_of
from plait.train.log import Reporter
from plait.verbs.eval import Eval
from plait.verbs.lessons.classify import Labels, balance, counter, given, measure, plain
from plait.verbs.lessons.lesson import Lesson, Say, has_towers, presets_of
from plait.verbs.lessons.named import files_of
from plait.verbs.lessons.rows import rounded, trained_by
from plait.verbs.lessons.seeing import Reader, Seeing, begin, in_order, picture_lesson, sides_of, sides_to_score
from plait.verbs.train import Train

SAMPLED = 50  # pictures whose size is looked at
SIDES = (28, 32, 48, 64, 96, 128, 160, 192, 224)  # what a model from scratch is given, where --size does not say
FRAMES = 8
LEAST, MOST = 32, 64  # pictures of a batch, from scratch
LIKE_DIGITS = 64  # pixels of a side, up to which pictures are not mirrored where --augment does not say
SMALL = 16  # pixels a side, for the baseline


def kind_in(data: Sequence[str]) -> str | None:
    """ "pictures" or "clips" where that is what all data are, None where they are something else."""
    kinds = {kind_of(path) for path in files_of(data, lambda _: None)} if data else set()
    return kinds.pop() if len(kinds) == 1 else None


def of_clips(verb: Train, saved: dict[str, Any] | None) -> bool:
    """Whether the model that was named takes clips: then a folder of pictures is a clip's frames, though it looks like more of a class."""
    fits = has_towers(("encoder",), "clips")
    if saved is not None:
        return fits(saved["arch"])
    if verb.model is not None:
        net = load(verb.model).net
        return net.takes(net.towers[0]) == "clips"
    return verb.preset in presets_of(fits)


def reader(columns: Sequence[str], clips: bool) -> Reader[PictureRow]:
    return lambda paths, part: read_pictures(paths, part, columns_of(columns) or None, clips)


def stratum(row: PictureRow) -> str:
    return row.stratum


def side_of(verb: Train, rows: Sequence[PictureRow], clips: bool) -> int:
    """Pixels of a side that a model from scratch is given: about as many as the pictures have."""
    if verb.size:
        return verb.size
    if clips:
        return 32
    sample = rows[:: max(1, len(rows) // SAMPLED)]
    shorter = int(np.median([min(size_of(row.source, row.where)) for row in sample]))
    return max((side for side in SIDES if side <= shorter), default=SIDES[0])


def lesson(verb: Train, saved: dict[str, Any] | None, say: Say, kind: str) -> Lesson:
    clips = kind == "clips" or of_clips(verb, saved)
    rows = sides_of(verb, reader(verb.columns, clips), stratum, say)
    labels = Labels.of(saved["answers"]) if saved else Labels.seen(rows.train)  # type: ignore[arg-type]
    for line in balance(rows.train, labels):  # type: ignore[arg-type]
        say(line)
    side = side_of(verb, rows.train, clips)
    settings = {"head": "classify", "labels": len(labels.names)}
    usual, takes = ("modern-video", "clips") if clips else ("modern-vision", "pixels")
    prepare = Preparation(size=Exactly(side, side))
    frames = FRAMES if clips else None
    want = Seeing(("encoder",), takes, usual, settings, prepare, side, len(rows.train), most=MOST, least=LEAST, frames=frames)
    start = begin(verb, saved, want, say)
    # What is small is often a sign, and a sign's mirror image is another one.
    augment = start.augmentation(verb, "digits" if (start.side or 0) <= LIKE_DIGITS else "photographs")
    frames = start.choice.config.get("frames") if clips else None
    made = [
        PictureSet(part, labels.answers(part), start.preparation, change, frames)  # type: ignore[arg-type]
        for part, change in ((rows.train, augment if augment.steps else None), (rows.valid, None))
    ]
    objective = Classifying(labels.problem, start.choice.smoothing)
    done = picture_lesson(start, objective, made, verb.seed, labels.said())
    done.measure = measure(objective, done.valid, labels)
    return done


def score(verb: Eval, ready: Any) -> dict[str, Any]:
    """`plait eval` of a classifier of pictures, beside the most frequent label and logistic regression on small grey pictures."""
    from plait.tasks.baselines import picture_baselines

    reporter, train = Reporter(), trained_by(ready)
    labels = Labels(ready.problem, tuple(ready.labels))
    rows, known = sides_to_score(verb, train, reader(train.columns if train else (), ready.clips), stratum, reporter.say)
    answers, frames = labels.answers(rows), ready.parts.settings.frames if ready.clips else None  # type: ignore[arg-type]
    shown, right = PictureSet(rows, answers, ready.prepare, None, frames), plain(answers, labels)
    scores = np.concatenate([ready.said(pixels_of(ready.net, batch)) for batch in in_order(shown)])
    result: dict[str, Any] = {"task": "classify", "n": len(rows), "metrics": figures_of(labels, right, found_of(labels, scores))}
    if verb.baselines and known:
        taught = plain(labels.answers(known), labels)  # type: ignore[arg-type]
        seen, asked = ([small(row, frames) for row in some] for some in (known, rows))
        guesses = picture_baselines(labels.problem, seen, taught, asked, reporter.say)
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
