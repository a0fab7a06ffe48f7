"""A lesson with a teacher: another model of the same task, which is learned from as well as the answers (`--teacher`)."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from plait import models
from plait.core.model import Model
from plait.errors import InputError
from plait.hub import load, runs
from plait.hub.together import tokenizers_of
from plait.tasks.distilling import Distilled
from plait.tasks.hints import FITTED, KINDS, Hints
from plait.text.tokenizer import Tokenizer
from plait.verbs.lessons.lesson import Lesson
from plait.verbs.train import Train

WEIGHT, TEMPERATURE = 0.5, 2.0


def with_teacher(verb: Train, lesson: Lesson) -> Lesson:
    """The lesson as it is, or with the teacher that the verb names; InputError says all in which that does not fit."""
    if verb.teacher is None:
        return lesson
    objective: Any = lesson.objective
    if not getattr(objective, "of_classes", False):
        what = getattr(objective, "problem", type(objective).__name__.lower())
        raise InputError(f"--teacher: {verb.task} ({what}) has no one distribution over classes for each answer: train without a teacher")
    ready, kinds = load(verb.teacher), verb.teacher_match or ["scores"]
    with torch.device("meta"):
        net = models.build(lesson.arch, lesson.config)
    if faults := differences(lesson, objective.head, net, ready):
        raise InputError(f"--teacher {verb.teacher}: cannot teach this model", faults)
    if "attention" in kinds and verb.parallel in ("tp", "fsdp+tp"):
        raise InputError("--teacher-match attention: with --parallel tp each rank has some of the heads: match hidden, or use fsdp")
    hints = None
    if inner := [kind for kind in KINDS if kind in kinds]:
        try:
            hints = Hints(net, ready.net, inner)
        except InputError as error:
            raise InputError(f"--teacher {verb.teacher}: {error.message}", error.faults) from None
        if hints.widths:
            fitted(lesson, hints)
    weight = WEIGHT if verb.teacher_weight is None else verb.teacher_weight
    temperature = (verb.teacher_temperature or TEMPERATURE) if "scores" in kinds else None
    lesson.objective = Distilled(objective, ready.net, weight, temperature, hints)
    return lesson


def fitted(lesson: Lesson, hints: Hints) -> None:
    """The lesson's model takes projections to the teacher's widths, which are trained with it and are no weights of it."""
    begin, weights = lesson.start, lesson.weights

    def start(net: Model) -> None:
        if begin is not None:
            begin(net)
        hints.fit(net)

    lesson.start = start
    lesson.weights = lambda net: {name: t for name, t in weights(net).items() if not name.startswith(FITTED)}


def differences(lesson: Lesson, head: str, net: Model, ready: Any) -> list[str]:
    """What a teacher has otherwise than the model that is to learn."""
    teacher = ready.net
    if teacher.towers != net.towers or head not in teacher.heads:
        shown = [f"{' and '.join(one.towers)} with {', '.join(one.heads) or 'no head'}" for one in (teacher, net)]
        return [f"it has {shown[0]}, the model {shown[1]}"]
    faults = []
    if (scores := [len(matrix.weight) for one in (teacher, net) if (matrix := last(one.heads[head])) is not None]) and len(set(scores)) > 1:
        faults.append(f"it scores {scores[0]:,} classes, the model {scores[1]:,}")
    labels = list(lesson.notes.get("answers", {}).get("id2label", {}).values())
    if labels and (its := list(getattr(ready, "labels", []))) != labels:
        faults.append(f"its labels are {', '.join(its)}; those of the model are {', '.join(labels)}, in this order")
    for side, theirs, ours in zip(("input", "output"), tokenizers_of(ready), kept_vocabularies(lesson), strict=True):
        if theirs is None:
            faults.append("it has no tokenizer")
        elif (known := theirs.backend.get_vocab()) != ours:
            odd = first_difference(known, ours)
            faults.append(f"its tokenizer of the {side} has {len(known):,} tokens, that of the model {len(ours):,}; {odd}")
    return list(dict.fromkeys(faults))


def last(head: Any) -> Any:
    """The matrix that a head ends with; None where it has none that tells."""
    matrix = getattr(head, "scores", head)
    return matrix if isinstance(getattr(matrix, "weight", None), torch.Tensor) else None


def kept_vocabularies(lesson: Lesson) -> list[dict[str, int]]:
    """Token -> id of what the run reads and writes, from the files that it would keep."""
    with tempfile.TemporaryDirectory() as folder:
        lesson.keep(Path(folder))
        files = [Path(folder) / name for name in (runs.TOKENIZER, runs.TARGET_TOKENIZER)]
        return [Tokenizer.load(file if file.exists() else files[0]).backend.get_vocab() for file in files]


def first_difference(known: Mapping[str, int], ours: Mapping[str, int]) -> str:
    token = min((token for token in {**known, **ours} if known.get(token) != ours.get(token)), key=lambda t: ours.get(t, known.get(t, 0)))
    ids = [str(one[token]) if token in one else "no token" for one in (known, ours)]
    return f"{token!r} is {ids[0]} there, {ids[1]} here"
