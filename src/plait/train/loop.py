"""The training loop: steps, evaluation, checkpoints, and going on exactly where a run stopped."""

import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from plait.core.model import Model, learning
from plait.data.feed import Feed
from plait.errors import InputError
from plait.tasks.objective import Objective
from plait.train.averaging import MovingAverage
from plait.train.checkpoints import group_of, grouped, rng_state, set_rng_state
from plait.train.judging import Judge, Measure
from plait.train.keeping import Keeper
from plait.train.log import MetricsFile, Reporter
from plait.train.parallel import Team
from plait.train.precision import Precision
from plait.train.schedules import Schedule
from plait.train.state import Budget, Positions, Settings, State
from plait.train.trackers import Tracker

GO_ON, SAVE, STOP = range(3)
DRAWN_EVERY = 60.0  # seconds between two drawings of the curves


class Optimizer(Protocol):
    def step(self, factor: float, divide: Tensor | None = None) -> None: ...
    def state(self) -> dict[str, Tensor]: ...


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came; the run was saved."""


class Trainer:
    """Trains `net` on `feed`, keeping `folder/checkpoints`. `measure` gives figures beside the validation loss.

    `optimizer` makes one for the model, once that is laid over the ranks of `team`. `weights` are the tensors that the run changes.
    """

    def __init__(
        self,
        net: Model,
        objective: Objective,
        optimizer: Callable[[Model], Optimizer],
        schedule: Schedule,
        feed: Feed,
        valid: Sequence[Any],
        budget: Budget,
        settings: Settings,
        folder: Path,
        reporter: Reporter,
        measure: Measure | None = None,
        trackers: Sequence[Tracker] = (),
        team: Team | None = None,
        weights: Callable[[Model], Mapping[str, Tensor]] = Model.state_dict,
    ):
        self.team = team = team or Team(device=next(net.parameters()).device)
        self.net, self.objective, self.schedule, self.weights = net, objective, schedule, weights
        self.learner = team.wrap(net, objective)
        self.optimizer = optimizer(net)
        self.feed, self.trackers = feed, trackers
        self.budget, self.settings, self.reporter, self.folder = budget, settings, reporter, folder
        self.precision = Precision(settings.precision, team.device)
        self.average = MovingAverage(net, settings.ema) if settings.ema else None
        self.judge = Judge(net, self.learner, objective, valid, measure, self.average, self.precision, team)
        self.keeper = Keeper(folder / "checkpoints", team)
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.replay: np.ndarray = np.empty(0)  # progress of steps that a stopped run had already taken after its checkpoint
        self.state, self.stop, self.unit = State(), False, "tokens"  # the unit of the batches' sizes
        self.recent: list[tuple[Tensor, int]] = []  # losses of the steps since the last line of metrics
        self.params = [*learning(net).values()]
        if settings.compile:
            net.compile()

    # --- going on

    @property
    def positions(self) -> Path:
        return self.keeper.folder / "progress.f64"

    def resume(self) -> None:
        """Continue from the last checkpoint: weights, optimizer, generators, data position, and the schedule's recorded positions.

        A run that was stopped before its first checkpoint starts anew, at the positions recorded then.
        """
        self.keeper.clear()
        note = self.keeper.read(self.tensors(), lambda there: set_rng_state(group_of(there, "rng")))
        if note is not None:
            self.state = State(**note["state"])
        if self.team.first:
            self.metrics.cut_after(self.state.row_step)
            if self.budget.minutes is not None and self.positions.exists():
                self.replay = np.fromfile(self.positions, dtype=np.float64)[self.state.step :]

    def tensors(self) -> dict[str, Tensor]:
        """All that a run goes on with, but for the generators; they share their memory with what is trained."""
        average = {} if self.average is None else self.average.state()
        model = {**learning(self.net), **self.weights(self.net)}  # what learns and is not kept as well
        return grouped(model=model, optimizer=self.optimizer.state(), precision=self.precision.state(), average=average)

    def save(self) -> None:
        self.keeper.save(self.state.step, self.tensors(), grouped(rng=rng_state()), {"state": asdict(self.state)})

    # --- the budget

    def fit(self) -> State:
        """Train until the budget is spent. Raises `Interrupted` after Ctrl-C, with everything saved."""
        state, budget, team = self.state, self.budget, self.team
        self.started = budget.started if state.step == 0 else time.perf_counter() - state.seconds
        saved = measured = drawn = time.perf_counter()
        tokens_then = state.tokens
        before = signal.getsignal(signal.SIGINT)
        in_main = _set_handler(lambda *_: setattr(self, "stop", True))
        self.learner.train()
        try:
            with Positions(self.positions, state.step, fresh=not (state.step or len(self.replay)), wanted=team.first) as positions:
                for epoch, position, batch in self.feed.stream(state.epoch, state.position):
                    progress = team.first_says(self.progress(epoch, position))
                    if progress >= 1.0:
                        break
                    state.epoch, state.position, state.progress = epoch, position, progress
                    if not state.step:  # reading the data took its share of the budget: no reason to evaluate, nor to warm up less
                        state.begun, state.evaluated = progress, int(progress * self.settings.evaluations)
                    positions.note(progress, self.kept)
                    self.step(batch)
                    now = time.perf_counter()
                    state.seconds = now - self.started
                    speed = (state.tokens - tokens_then) / max(now - measured, 1e-9)
                    if state.step % 10 == 0:
                        self.reporter.progress(state.step, progress, state.seconds, self.loss_now(), speed, self.unit)
                    due = int(progress * self.settings.evaluations)
                    if due > state.evaluated and self.judge.affordable(budget.minutes and progress * 60 * budget.minutes, speed):
                        state.evaluated = due
                        self.evaluate(speed)
                        measured, tokens_then = time.perf_counter(), state.tokens
                        if measured - drawn > DRAWN_EVERY:
                            drawn = measured
                            self.draw()
                        if self.settings.patience and state.stale >= self.settings.patience:
                            self.reporter.say(f"no better validation loss in {state.stale} evaluations: stopping at step {state.step}")
                            break
                    wish = STOP if self.stop else SAVE if time.perf_counter() - saved > self.settings.save_seconds else GO_ON
                    if (wish := int(team.first_says(wish))) != GO_ON:
                        self.save()
                        saved = time.perf_counter()
                    if wish == STOP:
                        self.keeper.wait()
                        raise Interrupted
            if not state.step:
                spent = time.perf_counter() - self.started
                raise InputError(f"{spent:.0f} s went into reading and preparing, and no time was left to train: give more --minutes")
            state.progress, state.finished = 1.0, True
            if state.row_step != state.step:
                self.evaluate(state.tokens / max(state.seconds, 1e-9))
            self.save()
            self.keeper.wait()
        finally:
            if in_main:
                signal.signal(signal.SIGINT, before)
        return state

    def progress(self, epoch: int, position: int) -> float:
        """The share of the budget that is spent before the coming step; 1 or more when it is all gone. `position` is the one after it."""
        budget = self.budget
        if budget.steps is not None:
            return self.state.step / budget.steps
        if budget.epochs is not None:
            return (epoch + (position - 1) / self.feed.batches(epoch)) / budget.epochs
        assert budget.minutes is not None
        if len(self.replay):
            value, self.replay = float(self.replay[0]), self.replay[1:]
            self.started = time.perf_counter() - value * 60 * budget.minutes  # the clock stands where it stood then
            return value
        return (time.perf_counter() - self.started) / (60 * budget.minutes)

    def kept(self) -> str:
        self.keeper.wait()
        return str(self.keeper.newest() or "not saved yet")

    # --- one step

    def step(self, batch: Any) -> None:
        """Gradient of the mean loss of the whole batch, however many parts it is computed in, and on however many ranks."""
        state, team, precision = self.state, self.team, self.precision
        team.seed(state.epoch, state.position)
        for p in self.params:
            p.grad = None
        total, count = torch.zeros((), device=team.device), 0
        for part, weight in team.passes(self.learner, self.objective, batch, self.settings.accumulate):
            with precision.context():
                loss = self.learner(part, weight)
            (loss.total if precision.factor == 1.0 else loss.total * precision.factor).backward()
            total, count = total + loss.plain.detach(), count + loss.count
        if team.layout.data > 1:
            both = team.sum(torch.stack([total.double(), torch.tensor(count, dtype=torch.float64, device=team.device)]))
            total, count = both[0], int(both[1])
        divide = torch.full_like(total, max(count, 1) * precision.factor)
        watched = total
        if self.settings.clip:
            watched = team.norm(self.params) / divide
            divide = divide * torch.clamp((watched + 1e-6) / self.settings.clip, min=1.0)
        skipped = precision.overflowed(watched)
        if not skipped and not bool(watched.isfinite()):
            self.not_finite("loss", state.step + 1, batch)
        state.step += 1
        if not skipped:
            self.optimizer.step(self.schedule(state.step, state.place), divide)
            if self.average is not None:
                self.average.update(state.step)
        self.unit = getattr(batch, "unit", self.unit)
        state.tokens += self.objective.size(batch)
        self.recent.append((total, count))

    def not_finite(self, what: str, step: int, batch: Any = None) -> None:
        where = f"at step {step} (epoch {self.state.epoch}, batch {self.state.position}{self.rows_of(batch)})"
        raise InputError(f"the {what} is no longer a number {where}; the last good state is {self.kept()}: try a lower --learning-rate")

    @torch.no_grad()
    def rows_of(self, batch: Any) -> str:
        """Which rows of a batch have a loss that is no number, where that is what is wrong with it."""
        if batch is None or self.team.size > 1:
            return ""
        parts = self.objective.parts(batch, len(batch))
        losses = [float(self.objective.loss(self.net, part).plain) for part in parts]
        bad = [row for row, loss in enumerate(losses) if not math.isfinite(loss)]
        if not bad:
            return ", no single row: the gradient overflowed"
        if len(bad) == len(losses):
            return ", all its rows: the weights are no numbers any more"
        places = [self.feed.where(self.state.epoch, self.state.position, row) for row in bad[:10]]
        return f", {len(bad)} of {len(losses)} rows: {', '.join(places)}"

    def loss_now(self) -> float:
        rows = self.recent[-50:]
        return float(sum(total for total, _ in rows)) / max(sum(count for _, count in rows), 1)

    # --- evaluation

    def evaluate(self, speed: float) -> None:
        with self.judge.judging():
            valid, train = self.judge.loss(), self.loss_now() if self.recent else None
            if not math.isfinite(valid):
                self.not_finite("validation loss", self.state.step)
            figures = self.judge.figures()
            better = self.keep(valid, figures)
        self.recent.clear()
        state = self.state
        state.row_step = state.step
        if not self.team.first:
            return
        row = {"step": state.step, "seconds": round(state.seconds, 3), "train_loss": train, "valid_loss": valid, "tokens": state.tokens}
        row |= {"tokens_per_second": round(speed, 1), "learning_rate": self.schedule(state.step, state.place)}
        row |= figures | {"epoch": state.epoch, "progress": state.progress}
        self.metrics.add(row)
        for tracker in self.trackers:
            tracker.add(row)
        told = "".join(f"  {name} {value:.4f}" for name, value in figures.items()) + "  best so far" * better
        self.reporter.say(f"step {state.step:>7,}  train {train or 0:.4f}  valid {valid:.4f} nats  {speed:,.0f} {self.unit}/s{told}")

    def valid_loss(self) -> float:
        with self.judge.judging():
            return self.judge.loss()

    def keep(self, valid: float, figures: dict[str, float]) -> bool:
        """Writes the weights where they are the best so far, and where they are to be averaged."""
        state, keeper = self.state, self.keeper
        if better := valid < state.best:
            state.best, state.best_step, state.stale = valid, state.step, 0
            keeper.write(keeper.best, self.weights(self.net), {"step": state.step, "figures": figures})
        else:
            state.stale += 1
        if self.settings.average > 1:
            keeper.write(keeper.evaluated(state.step), self.weights(self.net), {"step": state.step})
            for old in keeper.all_evaluated()[: -self.settings.average] if self.team.first else ():
                old.unlink()
        return better

    def draw(self) -> None:
        """curves.png as it stands, while training goes on."""
        from plait.train.curves import draw_curves

        if self.team.first:
            self.keeper.behind(draw_curves, self.metrics.rows(), self.folder / "curves.png")


def _set_handler(handler: Callable) -> bool:
    try:
        signal.signal(signal.SIGINT, handler)
    except ValueError:  # not the main thread: Ctrl-C is somebody else's there
        return False
    return True
