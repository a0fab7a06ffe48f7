"""What `plait train` does, whatever the task: a lesson made ready, a model trained, the best of it kept."""

import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from plait import __version__, models
from plait.core.model import Model, parameters
from plait.data.ahead import ahead
from plait.errors import InputError
from plait.hub import runs
from plait.train import parallel
from plait.train.allocator import keep_freed_memory
from plait.train.checkpoints import read_tensors, write_json, write_tensors
from plait.train.keeping import filled
from plait.train.log import MetricsFile, Reporter
from plait.train.loop import Interrupted, Trainer
from plait.train.recipes import recipe_for
from plait.train.state import Budget, Settings, State
from plait.train.trackers import TensorBoard, Tracker, WeightsAndBiases
from plait.verbs.doctor import check_first
from plait.verbs.lessons.lesson import Lesson, Say
from plait.verbs.lessons.teaching import with_teacher
from plait.verbs.lessons.tuning import with_tuning
from plait.verbs.train import LESSONS, Train


def lesson_of(verb: Train, saved: dict[str, Any] | None, say: Say) -> Lesson:
    """The lesson of the verb's task; `saved` is config.json of the run that is to go on."""
    lesson = import_module(f"plait.verbs.lessons.{LESSONS[verb.task]}").lesson(verb, saved, say)
    return with_teacher(verb, with_tuning(verb, lesson, saved))


def model_of(verb: Train, lesson: Lesson) -> Model:
    """The lesson's model with the weights that training starts from."""
    torch.manual_seed(verb.seed)
    net = models.build(lesson.arch, lesson.config)
    if lesson.start is not None:
        lesson.start(net)
    for tower in net.towers:
        net.get_submodule(tower).blocks.recompute = verb.recompute  # type: ignore[union-attr]
    return net


def train(verb: Train, age: float) -> dict[str, Any] | None:
    """`age`: seconds the process had already lived, for `--minutes`. Of several ranks the first returns what there is to say."""
    started = time.perf_counter() - age
    if verb.threads:
        torch.set_num_threads(verb.threads)
    keep_freed_memory()
    with parallel.start(verb.parallel, verb.tensor) as team:
        done = train_on(team, verb, started)
    return done if team.first else None


def train_on(team: parallel.Team, verb: Train, started: float) -> dict[str, Any]:
    reporter = Reporter(verb.quiet or not team.first)
    say, out = reporter.say, verb.out
    saved = runs.read_config(out) if verb.resume else None
    lesson = lesson_of(verb, saved, say)
    if saved and saved["data_fingerprint"] != lesson.fingerprint:
        raise InputError(
            f"{', '.join(verb.data)}: the data changed since this run began; put the old files back, or start a new run with another --out"
        )
    settings = {f"--{name.replace('_', '-')}": value for name, value in verb.saved().items()}
    versions = {"plait": __version__, "torch": torch.__version__}
    team.agree({**versions, "data": lesson.fingerprint, "model": f"{lesson.arch} {lesson.config}", **settings})
    net = model_of(verb, lesson).to(team.device)
    recipe = recipe_for(verb, lesson.recipe, lesson.config.get("d_model", 512))
    if verb.check and not saved:
        check_first(verb, lesson, net, recipe)
    if not saved and team.first:
        out.mkdir(parents=True, exist_ok=True)
        lesson.keep(out)
        described = {"format": runs.FORMAT, "plait": __version__, "task": verb.task, "arch": lesson.arch, "config": lesson.config}
        described |= lesson.notes | {"data_fingerprint": lesson.fingerprint}
        write_json(out / runs.CONFIG, {**described, "recipe": recipe.described(), "train": verb.saved()})
    team.barrier()
    trainer = Trainer(
        net,
        lesson.objective,
        recipe.optimizer,
        recipe.schedule(),
        ahead(lesson.feed, lesson.workers if verb.workers is None else verb.workers),
        lesson.valid,
        Budget(verb.minutes, verb.steps, verb.epochs, started),
        settings_of(verb),
        out,
        reporter,
        lesson.measure,
        trackers_of(verb) if team.first else (),
        team,
        lesson.weights,
    )
    if saved:
        trainer.resume()
        say(f"going on at step {trainer.state.step:,}")
        if trainer.state.finished and not (out / runs.WEIGHTS).exists():  # stopped between its last step and this
            return finish(out, lesson, trainer, trainer.state, say)
        if trainer.state.finished:
            raise InputError(
                f"{out}: this run is finished (step {trainer.state.step:,}): start a new one with another --out for a longer budget"
            )
    try:
        with reporter:
            state = trainer.fit()
    except Interrupted:
        raise KeyboardInterrupt(
            f"stopped at step {trainer.state.step:,}, everything is saved; go on with: plait train {verb.task} --out {out} --resume"
        ) from None
    return finish(out, lesson, trainer, state, say)


def settings_of(verb: Train) -> Settings:
    names = "accumulate evaluations patience average ema precision compile save_seconds".split()
    return Settings(clip=verb.clip or None, **{name: getattr(verb, name) for name in names})


def trackers_of(verb: Train) -> list[Tracker]:
    trackers: list[Tracker] = []
    if verb.tensorboard:
        trackers.append(TensorBoard(verb.out / "tensorboard"))
    if verb.wandb:
        trackers.append(WeightsAndBiases(verb.wandb, verb.out.name, verb.saved()))
    return trackers


def finish(out: Path, lesson: Lesson, trainer: Trainer, state: State, say: Say) -> dict[str, Any]:
    """The best of what was evaluated, or the average of the last weights where that is better, becomes the model."""
    net, weights = trainer.net, lesson.weights(trainer.net)
    keeper, team, last = trainer.keeper, trainer.team, trainer.settings.average
    keeper.wait()
    team.barrier()  # the first rank's files are read by all
    best, note = read_tensors(keeper.best)
    chosen, valid_loss, figures = f"step {note['step']}", state.best, note.get("figures")
    trainer.average = trainer.judge.average = None  # its weights are those that were kept
    if (mean := keeper.mean(last) if last > 1 else None) is not None:
        filled(weights, mean, keeper.folder)
        if (averaged := trainer.valid_loss()) < valid_loss:
            best, chosen, valid_loss, figures = mean, f"the average of the last {last} evaluations", averaged, None
    filled(weights, best, keeper.best)
    if figures is None:
        with trainer.judge.judging():
            figures = trainer.judge.figures()
    if team.first:
        write_tensors(out / runs.WEIGHTS, lesson.result(net, best), {"chosen": chosen})
        from plait.train.curves import draw_curves

        if not draw_curves(MetricsFile(out / "metrics.jsonl").rows(), out / "curves.png"):
            say("no curves.png: matplotlib is not installed (pip install 'plait[plot]')")
    for tracker in trainer.trackers:
        tracker.close()
    told = "".join(f", {name} {value:.4f}" for name, value in figures.items())
    say(f"kept the weights of {chosen}: validation loss {valid_loss:.4f} nats{told}; {state.step:,} steps in {state.seconds:,.0f} s")
    epochs = state.epoch + state.position / trainer.feed.batches(state.epoch)
    result = {"run": str(out), "steps": state.step, "epochs": round(epochs, 2), "seconds": round(state.seconds, 1)}
    result |= {trainer.unit: state.tokens, "valid_loss": round(valid_loss, 5), "parameters": parameters(net)}
    return result | {name: round(value, 5) for name, value in figures.items()}
