"""What `plait eval` does: by the model's task; for translation answers, metrics, and the baselines beside them."""

import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from plait.data.cleaning import clean
from plait.data.split import answers as grouped
from plait.errors import InputError
from plait.hub import load
from plait.tasks.memory import TranslationMemory
from plait.tasks.metrics import score as metrics_of
from plait.train.checkpoints import write_atomically
from plait.train.log import Reporter
from plait.verbs.eval import Eval
from plait.verbs.lessons.translation import pairs_of

LESSONS = {
    "generate": "language",
    "fill-mask": "masked",
    "classify": "classify",
    "tag": "tag",
    "answer": "answer",
    "detect": "detect",
    "embed": "embed",
    "text-to-text": "masked",
}


def score(verb: Eval) -> dict[str, Any]:
    """Each task's own `score(verb, model)` stands beside how it is learned."""
    if verb.threads:
        torch.set_num_threads(verb.threads)
    model = load(verb.model)
    if model.task == "translation":
        return score_translation(verb, model)
    if model.task not in LESSONS:
        raise InputError(f"{verb.model}: its task is {model.task}, which is not scored; there is translation, {', '.join(LESSONS)}")
    return import_module(f"plait.verbs.lessons.{LESSONS[model.task]}").score(verb, model)


def score_translation(verb: Eval, run: Any) -> dict[str, Any]:
    reporter = Reporter()
    trained_on = run.config.get("train", {}).get("data", [])
    names = verb.data or trained_on
    if not verb.data and (not names or Path(names[0]).exists()):
        raise InputError("--data is missing: give files with right answers that the model was not trained on")
    pairs, found = pairs_of(names, "test")
    reporter.say(found)
    pairs, report = clean(pairs, max_ratio=None)
    if report.n_dropped:
        reporter.say(str(report))
    right = grouped(pairs)
    sources = list(right)[: verb.limit]
    if not sources:
        raise InputError(f"{', '.join(names)}: holds no pair to score")
    references = [right[source] for source in sources]
    start = time.perf_counter()
    given = run(sources, beams=verb.beams, length_penalty=verb.length_penalty)
    seconds = time.perf_counter() - start
    metrics, signatures = metrics_of(given, references)
    result: dict[str, Any] = {"task": "translation", "n": len(sources), "metrics": rounded(metrics), "signatures": signatures}
    result["beams"], result["seconds"] = verb.beams, round(seconds, 2)
    if verb.baselines:
        result["baselines"] = baselines(sources, references, trained_on, reporter)
    if verb.out:
        rows = zip(sources, given, references, strict=True)
        write_atomically(verb.out, "".join(f"{s}\t{a}\t{' | '.join(r)}\n" for s, a, r in rows).encode())
    return result


def baselines(sources: list[str], references: list[list[str]], trained_on: list[str], reporter: Reporter) -> dict[str, Any]:
    """Copying the source, and the answer of the most similar training source; the latter only where the training data is still there."""
    done: dict[str, Any] = {"copy": rounded(metrics_of(sources, references)[0])}
    try:
        known, _ = pairs_of(trained_on)
    except InputError as error:
        reporter.say(f"no nearest-neighbour baseline: the training data cannot be read ({'; '.join(error.faults) or error.message})")
        return done
    held = set(sources)
    known = [pair for pair in clean(known)[0] if pair.source not in held]
    if not known:
        reporter.say("no nearest-neighbour baseline: all sources of the training data are among those scored")
        return done
    memory = TranslationMemory([p.source for p in known], [p.target for p in known])
    done["nearest_neighbour"] = rounded(metrics_of([memory.answer(source) for source in sources], references)[0])
    return done


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in metrics.items()}
