"""The training loop: steps, evaluation, checkpoints, and going on exactly where a run stopped."""

import math
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from plait.core.model import Model
from plait.data.feed import Feed
from plait.errors import InputError
from plait.tasks.objective import Objective
from plait.train.averaging import MovingAverage
from plait.train.checkpoints import FORMAT, group_of, grouped, mean_of, read_tensors, rng_state, set_rng_state
from plait.train.keeping import Keeper
from plait.train.log import MetricsFile, Reporter
from plait.train.precision import Precision
from plait.train.schedules import Schedule
from plait.train.state import Budget, Settings, State
from plait.train.trackers import Tracker


class Optimizer(Protocol):
    def step(self, factor: float, divide: Tensor | None = None) -> None: ...
    def state(self) -> dict[str, Tensor]: ...
    def load(self, state: Any) -> None: ...


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came; the run was saved."""


class Trainer:
    """Trains `net` on `feed`, keeping `folder/checkpoints/last` and `best`. `measure` gives figures beside the validation loss."""

    def __init__(
        self,
        net: Model,
        objective: Objective,
        optimizer: Optimizer,
        schedule: Schedule,
        feed: Feed,
        valid: Sequence[Any],
        budget: Budget,
        settings: Settings,
        folder: Path,
        reporter: Reporter,
        measure: Callable[[Model], dict[str, float]] | None = None,
        trackers: Sequence[Tracker] = (),
    ):
        self.net, self.objective, self.optimizer, self.schedule = net, objective, optimizer, schedule
        self.feed, self.valid, self.measure, self.trackers = feed, valid, measure, trackers
        self.budget, self.settings, self.reporter = budget, settings, reporter
        self.device = next(net.parameters()).device
        self.precision = Precision(settings.precision, self.device)
        self.keeper = Keeper(folder / "checkpoints")
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.state = State()
        self.replay: np.ndarray = np.empty(0)  # progress of steps that a stopped run had already taken after its checkpoint
        self.stop = False
        self.recent: list[tuple[Tensor, int]] = []  # losses of the steps since the last line of metrics
        self.params = [p for p in net.parameters() if p.requires_grad]
        self.average = MovingAverage(net, settings.ema) if settings.ema else None

    # --- going on

    @property
    def positions(self) -> Path:
        return self.keeper.folder / "progress.f64"

    def resume(self) -> None:
        """Continue from the last checkpoint: weights, optimizer, generators, data position, and the schedule's recorded positions.

        A run that was stopped before its first checkpoint starts anew, at the positions recorded then.
        """
        self.keeper.clear()
        if self.keeper.last.exists():
            self.restore(*read_tensors(self.keeper.last))
        self.metrics.cut_after(self.state.row_step)
        if self.budget.minutes is not None and self.positions.exists():
            self.replay = np.fromfile(self.positions, dtype=np.float64)[self.state.step :]

    def restore(self, tensors: dict[str, Tensor], note: Any) -> None:
        if not isinstance(note, dict) or note.get("format") != FORMAT:
            found = note.get("format") if isinstance(note, dict) else None
            raise InputError(f"{self.keeper.last}: is a checkpoint of format {found}, this version reads format {FORMAT}: start a new run")
        self.net.load_state_dict(group_of(tensors, "model"))
        self.optimizer.load(group_of(tensors, "optimizer"))
        self.precision.load(group_of(tensors, "precision"))
        if self.average is not None:
            self.average.load(group_of(tensors, "average"))
        set_rng_state(group_of(tensors, "rng"))
        self.state = State(**note["state"])

    def save(self) -> None:
        note = {"format": FORMAT, "state": asdict(self.state)}
        groups = {"model": self.net.state_dict(), "optimizer": self.optimizer.state(), "precision": self.precision.state()}
        if self.average is not None:
            groups["average"] = self.average.state()
        self.keeper.write(self.keeper.last, grouped(**groups, rng=rng_state()), note)

    # --- the budget

    def fit(self) -> State:
        """Train until the budget is spent. Raises `Interrupted` after Ctrl-C, with everything saved."""
        state, budget = self.state, self.budget
        self.started = budget.started if state.step == 0 else time.perf_counter() - state.seconds
        saved = measured = time.perf_counter()
        tokens_then = state.tokens
        before = signal.getsignal(signal.SIGINT)
        in_main = _set_handler(lambda *_: setattr(self, "stop", True))
        self.net.train()
        try:
            going_on = self.positions.exists() and (state.step or len(self.replay))
            with open(self.positions, "r+b" if going_on else "wb", buffering=0) as record:
                record.seek(8 * state.step)
                for epoch, position, batch in self.feed.stream(state.epoch, state.position):
                    progress = self.progress(epoch, position)
                    if progress is None:
                        break
                    state.epoch, state.position, state.progress = epoch, position, progress
                    self.note_position(record, progress)
                    self.step(batch)
                    now = time.perf_counter()
                    state.seconds = now - self.started
                    if state.step % 10 == 0:
                        speed = (state.tokens - tokens_then) / max(now - measured, 1e-9)
                        self.reporter.progress(state.step, progress, state.seconds, self.loss_now(), speed)
                    if int(progress * self.settings.evaluations) > state.evaluated:
                        state.evaluated = int(progress * self.settings.evaluations)
                        speed = (state.tokens - tokens_then) / max(now - measured, 1e-9)
                        self.evaluate(speed)
                        measured, tokens_then = time.perf_counter(), state.tokens
                        if self.settings.patience and state.stale >= self.settings.patience:
                            self.reporter.say(f"no better validation loss in {state.stale} evaluations: stopping at step {state.step}")
                            break
                    if self.stop:
                        self.save()
                        self.keeper.wait()
                        raise Interrupted
                    if time.perf_counter() - saved > self.settings.save_seconds:
                        self.save()
                        saved = time.perf_counter()
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

    def progress(self, epoch: int, position: int) -> float | None:
        """The share of the budget that is spent before the coming step; None when it is all gone. `position` is the one after it."""
        budget = self.budget
        if budget.steps is not None:
            value = self.state.step / budget.steps
        elif budget.epochs is not None:
            value = (epoch + (position - 1) / self.feed.batches(epoch)) / budget.epochs
        else:
            assert budget.minutes is not None
            if len(self.replay):
                value, self.replay = float(self.replay[0]), self.replay[1:]
                self.started = time.perf_counter() - value * 60 * budget.minutes  # the clock stands where it stood then
                return value
            value = (time.perf_counter() - self.started) / (60 * budget.minutes)
        return value if value < 1.0 else None

    def note_position(self, record: Any, progress: float) -> None:
        try:
            record.write(np.float64(progress).tobytes())
        except OSError as error:
            raise InputError(f"{self.positions}: cannot be written: {error.strerror}; the last good state is {self.kept()}") from None

    def kept(self) -> str:
        return str(self.keeper.last) if self.keeper.last.exists() else "not saved yet"

    # --- one step

    def step(self, batch: Any) -> None:
        """Gradient of the mean loss of the whole batch, however many parts it is computed in."""
        state = self.state
        for p in self.params:
            p.grad = None
        total, count = torch.zeros((), device=self.device), 0
        for part in self.objective.parts(batch, self.settings.accumulate):
            with self.precision.context():
                loss = self.objective.loss(self.net, part)
            (loss.total if self.precision.factor == 1.0 else loss.total * self.precision.factor).backward()
            total, count = total + loss.plain.detach(), count + loss.count
        grads = [p.grad for p in self.params if p.grad is not None]
        divide = torch.full_like(total, max(count, 1) * self.precision.factor)
        watched = total
        if self.settings.clip:
            watched = nn.utils.get_total_norm(grads) / divide
            divide = divide * torch.clamp((watched + 1e-6) / self.settings.clip, min=1.0)
        skipped = self.precision.overflowed(watched)
        if not skipped and not bool(watched.isfinite()):
            self.not_finite("loss", state.step + 1, batch)
        state.step += 1
        if not skipped:
            self.optimizer.step(self.schedule(state.step, state.progress), divide)
            if self.average is not None:
                self.average.update(state.step)
        state.tokens += self.objective.size(batch)
        self.recent.append((total, count))

    def not_finite(self, what: str, step: int, batch: Any = None) -> None:
        where = f"at step {step} (epoch {self.state.epoch}, batch {self.state.position}{self.rows_of(batch)})"
        raise InputError(f"the {what} is no longer a number {where}; the last good state is {self.kept()}: try a lower --learning-rate")

    @torch.no_grad()
    def rows_of(self, batch: Any) -> str:
        """Which rows of a batch have a loss that is no number, where that is what is wrong with it."""
        if batch is None:
            return ""
        parts = self.objective.parts(batch, len(batch))
        losses = [float(self.objective.loss(self.net, part).plain) for part in parts]
        bad = [row for row, loss in enumerate(losses, 1) if not math.isfinite(loss)]
        if len(bad) == len(losses):
            return ", all its rows: the weights are no numbers any more"
        return f", rows {', '.join(map(str, bad[:10]))} of {len(losses)}" if bad else ", no single row: the gradient overflowed"

    def loss_now(self) -> float:
        rows = self.recent[-50:]
        return float(sum(total for total, _ in rows)) / max(sum(count for _, count in rows), 1)

    # --- evaluation

    @torch.no_grad()
    def valid_loss(self) -> float:
        """Nats a token over the whole validation set, without dropout or smoothing, one batch in memory at a time."""
        self.net.eval()
        total, count = 0.0, 0
        for batch in self.valid:
            with self.precision.context():
                loss = self.objective.loss(self.net, batch)
            total, count = total + float(loss.plain), count + loss.count
        self.net.train()
        return total / max(count, 1)

    def figures(self) -> dict[str, float]:
        """What the task measures on the validation set besides its loss."""
        if self.measure is None:
            return {}
        self.net.eval()
        with torch.no_grad():
            found = self.measure(self.net)
        self.net.train()
        return found

    def evaluate(self, speed: float) -> None:
        with nullcontext() if self.average is None else self.average.in_place():
            self.evaluate_weights(speed)

    def evaluate_weights(self, speed: float) -> None:
        state, keeper = self.state, self.keeper
        valid, train = self.valid_loss(), self.loss_now() if self.recent else None
        if not math.isfinite(valid):
            self.not_finite("validation loss", state.step)
        figures = self.figures()
        better, note = valid < state.best, {"format": FORMAT, "step": state.step}
        if better:
            state.best, state.best_step, state.stale = valid, state.step, 0
            keeper.write(keeper.best, self.net.state_dict(), note)
        else:
            state.stale += 1
        if self.settings.average > 1:
            keeper.write(keeper.evaluated(state.step), self.net.state_dict(), note)
            for old in keeper.all_evaluated()[: -self.settings.average]:
                old.unlink()
        row = {"step": state.step, "seconds": round(state.seconds, 3), "train_loss": train, "valid_loss": valid, "tokens": state.tokens}
        row |= {"tokens_per_second": round(speed, 1), "learning_rate": self.schedule(state.step, state.progress)}
        row |= figures | {"epoch": state.epoch, "progress": state.progress}
        self.metrics.add(row)
        for tracker in self.trackers:
            tracker.add(row)
        self.recent.clear()
        state.row_step = state.step
        told = "".join(f"  {name} {value:.4f}" for name, value in figures.items()) + "  best so far" * better
        self.reporter.say(f"step {state.step:>7,}  train {train or 0:.4f}  valid {valid:.4f} nats  {speed:,.0f} tokens/s{told}")

    def averaged(self) -> dict[str, Tensor] | None:
        """The mean of the last evaluated weights (Vaswani et al. 2017, section 6.1); None when no averaging was asked for."""
        files = self.keeper.all_evaluated()
        return mean_of(files) if self.settings.average > 1 and files else None


def _set_handler(handler: Callable) -> bool:
    try:
        signal.signal(signal.SIGINT, handler)
    except ValueError:  # not the main thread: Ctrl-C is somebody else's there
        return False
    return True
