"""A lesson that is learned by a small part of a model there is (`--method`): what that part is, and how fast it learns."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from plait import tune
from plait.core.model import Model, learning
from plait.errors import InputError, choices
from plait.hub.tuned import Tuned, attach, begun, from_base
from plait.train.recipes import small
from plait.verbs.lessons.lesson import Lesson
from plait.verbs.train import TUNING, Train

WHOLE = (None, "full")


def with_tuning(verb: Train, lesson: Lesson, saved: Mapping[str, Any] | None) -> Lesson:
    """The lesson as it is, or with the small part that the verb names; `saved` is config.json of the run that is to go on."""
    if verb.method in WHOLE:
        return lesson
    tuning, started = settings_of(verb), lesson.start
    lesson.recipe = small(verb.method, lesson.config.get("d_model", 768))  # type: ignore[arg-type]

    def start(net: Model) -> None:
        if saved is not None:
            tuned = Tuned.of(saved["tuned"], verb.out)
            from_base(net, tuned, verb.out)
            attach(net, tuned)
            return
        assert started is not None and verb.model is not None
        found = started(net)
        tuned = begun(net, verb.model, found, tuning, verb.bits)
        lesson.notes["tuned"] = tuned.written()
        if verb.method in ("prefix", "prompt"):
            *_, batch = next(lesson.feed.stream(0, 0))
            tune.begin(net, lambda: lesson.objective.loss(net, lesson.objective.parts(batch, 4)[0]))

    def result(net: Model, best: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return tune.small(net)

    lesson.start, lesson.weights, lesson.result = start, learning, result  # type: ignore[assignment]
    return lesson


def settings_of(verb: Train) -> Any:
    """The settings of the verb's method; InputError names options that it does not have."""
    assert verb.method is not None
    made = tune.METHODS.get(verb.method, tune.Full)  # of an unknown one `tuning_of` speaks
    given = {name: getattr(verb, name) for name in TUNING if name != "bits" and getattr(verb, name) not in (None, [])}
    known = {f.name for f in fields(made)} if verb.method in tune.METHODS else set(given)
    if odd := [f"--{name}" for name in given if name not in known]:
        own = [f"--{name}" for name in TUNING if name in known]
        raise InputError(f"--method {verb.method} has no {choices(odd)}" + (f"; it has {choices(own)}" if own else ""))
    return tune.tuning_of({"method": verb.method, **given})
