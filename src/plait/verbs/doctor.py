"""plait doctor: what is wrong with a training run, before it runs."""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from plait.errors import InputError
from plait.verbs.numbers import number_faults
from plait.verbs.train import BUDGET, Train

if TYPE_CHECKING:
    from plait.core.model import Model
    from plait.train.patient import Finding
    from plait.train.recipes import Recipe
    from plait.verbs.lessons.lesson import Lesson


@dataclass
class Doctor(Train):
    """Examine a training run before it starts: overfit one batch, and name what is silently wrong."""

    out: Annotated[Path, "RUN", "nothing is written: may be left out"] = Path("run")
    seconds: Annotated[float, "about how long the examination may take, reading of data apart"] = 30.0
    json: Annotated[bool, "one JSON object a finding"] = False

    def run(self) -> Iterator[Any]:  # type: ignore[override]
        """A line for each finding (ok, warning or fault), as it is made; after a fault, InputError."""
        if self.resume:
            raise InputError("--resume: a run that has begun was examined by its first steps; leave it out")
        if faults := number_faults(self, ("seconds",)):
            raise InputError("this run cannot be examined", faults)
        with tempfile.TemporaryDirectory() as folder:
            given: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(Train)}
            given["out"] = Path(folder) / "run"
            if all(given[name] is None for name in BUDGET):
                given["epochs"] = 1.0
            yield from shown(given_up(examined(Train(**given).checked(), self.seconds)), self.json)


def shown(findings: "Iterator[Finding]", as_json: bool) -> Iterator[Any]:
    return (finding if as_json else str(finding) for finding in findings)


def given_up(findings: "Iterator[Finding]") -> "Iterator[Finding]":
    """The findings, and after the last one an error if there were faults."""
    faults = []
    for finding in findings:
        if finding.level == "fault":
            faults.append(finding.name)
        yield finding
    if faults:
        raise InputError(f"{len(faults)} fault{'s' * (len(faults) > 1)}: {', '.join(faults)}; mend them before the run")


def examined(verb: Train, seconds: float) -> "Iterator[Finding]":
    """Findings on the run that `verb` would start."""
    import torch

    from plait.train.log import Reporter
    from plait.train.recipes import recipe_for
    from plait.verbs.training import lesson_of, model_of

    if verb.threads:
        torch.set_num_threads(verb.threads)
    lesson = lesson_of(verb, None, Reporter(verb.quiet).say)
    net = model_of(verb, lesson).to("cuda" if torch.cuda.is_available() else "cpu")
    recipe = recipe_for(verb, lesson.recipe, lesson.config.get("d_model", 512))
    yield from findings_on(verb, lesson, net, recipe, seconds)


def findings_on(verb: Train, lesson: "Lesson", net: "Model", recipe: "Recipe", seconds: float) -> "Iterator[Finding]":
    """Findings on a lesson and the model that is to learn it; neither is changed."""
    from plait.train.doctor import examine
    from plait.train.patient import Patient

    patient = Patient(
        net,
        lesson.objective,
        lesson.feed,
        lesson.valid,
        recipe,
        fresh=lesson.start is None,
        tuned=verb.method not in (None, "full"),
        precision=verb.precision,
        clip=verb.clip or None,
        shown=lesson.shown,
        unknown=unknown_of(lesson),
        seconds=seconds,
    )
    return examine(patient, verb.seed)


def unknown_of(lesson: "Lesson") -> int | None:
    """The id of unknown symbols in what the lesson's model reads, from the tokenizer that the run would keep."""
    from plait.hub import runs
    from plait.text.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        lesson.keep(Path(folder))
        file = Path(folder) / runs.TOKENIZER
        return Tokenizer.load(file).unk_id if file.exists() else None


def check_first(verb: Train, lesson: "Lesson", net: "Model", recipe: "Recipe") -> None:
    """For `train --check`: says what was found, within a tenth of the run's time, and raises InputError where there is a fault."""
    seconds = 30.0 if verb.minutes is None else min(30.0, 6 * verb.minutes)
    for finding in given_up(findings_on(verb, lesson, net, recipe, seconds)):
        if not verb.quiet or finding.level != "ok":
            print(finding, file=sys.stderr)
