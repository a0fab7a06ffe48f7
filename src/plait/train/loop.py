"""The training loop: steps, evaluation, checkpoints, and going on exactly where a run stopped."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from plait.core.model import Model
from plait.errors import InputError
from plait.tasks.objective import Objective
from plait.train.checkpoints import FORMAT, group_of, grouped, mean_of, read_tensors, rng_state, set_rng_state, write_tensors
from plait.train.log import MetricsFile, Reporter
from plait.train.schedules import Schedule


class Optimizer(Protocol):
    def step(self, factor: float, divide: Tensor | None = None) -> None: ...
    def state(self) -> dict[str, Tensor]: ...
    def load(self, state: Any) -> None: ...


@dataclass(frozen=True)
class Budget:
    """How long to train: exactly one of minutes of wall time (since `started` on the perf_counter clock), steps, epochs."""

    minutes: float | None = None
    steps: int | None = None
    epochs: float | None = None
    started: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Settings:
    """How the loop goes, apart from the model, the data and the optimizer."""

    clip: float | None = 1.0
    accumulate: int = 1
    evaluations: int = 20  # spread evenly over the budget
    patience: int | None = None  # stop after so many evaluations without a better validation loss
    average: int = 1  # the last so many evaluated weights are averaged at the end; 1: none
    save_seconds: float = 60.0


@dataclass
class State:
    """Where a run stands. Saved in each checkpoint, with weights, optimizer and generator states."""

    step: int = 0
    epoch: int = 0
    position: int = 0  # batches of this epoch already taken
    seconds: float = 0.0  # of the budget
    progress: float = 0.0
    evaluated: int = 0
    best: float = math.inf
    best_step: int = 0
    stale: int = 0  # evaluations since the best
    row_step: int = -1  # step of the last line of metrics.jsonl
    tokens: int = 0
    finished: bool = False


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came; the run was saved."""


class Trainer:
    """Trains `net` on `stream(epoch, position)` of (epoch, position after it, batch), keeping `folder/checkpoints/last` and `best`."""

    def __init__(
        self,
        net: Model,
        objective: Objective,
        optimizer: Optimizer,
        schedule: Schedule,
        stream: Callable[[int, int], Iterator[tuple[int, int, Any]]],
        batches_an_epoch: Callable[[int], int],
        valid: Sequence[Any],
        budget: Budget,
        settings: Settings,
        folder: Path,
        reporter: Reporter,
    ):
        self.net, self.objective, self.optimizer, self.schedule = net, objective, optimizer, schedule
        self.stream, self.batches_an_epoch, self.valid = stream, batches_an_epoch, valid
        self.budget, self.settings, self.reporter = budget, settings, reporter
        self.device = next(net.parameters()).device
        self.folder = folder / "checkpoints"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.state = State()
        self.replay: np.ndarray = np.empty(0)  # progress of steps that a stopped run had already taken after its checkpoint
        self.stop = False
        self.recent: list[tuple[Tensor, int]] = []  # losses of the steps since the last line of metrics
        self.params = [p for p in net.parameters() if p.requires_grad]

    # --- going on

    @property
    def last(self) -> Path:
        return self.folder / "last.safetensors"

    @property
    def positions(self) -> Path:
        return self.folder / "progress.f64"

    def resume(self) -> None:
        """Continue from the last checkpoint: weights, optimizer, generators, data position, and the schedule's recorded positions.

        A run that was stopped before its first checkpoint starts anew, at the positions recorded then.
        """
        for part in self.folder.glob(".*.part"):  # of a write that was killed
            part.unlink(missing_ok=True)
        if self.last.exists():
            self.restore(*read_tensors(self.last))
        self.metrics.cut_after(self.state.row_step)
        if self.budget.minutes is not None and self.positions.exists():
            self.replay = np.fromfile(self.positions, dtype=np.float64)[self.state.step :]

    def restore(self, tensors: dict[str, Tensor], note: Any) -> None:
        if not isinstance(note, dict) or note.get("format") != FORMAT:
            found = note.get("format") if isinstance(note, dict) else None
            raise InputError(f"{self.last}: is a checkpoint of format {found}, this version reads format {FORMAT}: start a new run")
        self.net.load_state_dict(group_of(tensors, "model"))
        self.optimizer.load(group_of(tensors, "optimizer"))
        set_rng_state(group_of(tensors, "rng"))
        self.state = State(**note["state"])

    def save(self) -> None:
        note = {"format": FORMAT, "state": asdict(self.state)}
        groups = grouped(model=self.net.state_dict(), optimizer=self.optimizer.state(), rng=rng_state())
        write_tensors(self.last, groups, note)

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
                for epoch, position, batch in self.stream(state.epoch, state.position):
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
            value = (epoch + (position - 1) / self.batches_an_epoch(epoch)) / budget.epochs
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
        return str(self.last) if self.last.exists() else "not saved yet"

    # --- one step

    def step(self, batch: Any) -> None:
        """Gradient of the mean loss of the whole batch, however many parts it is computed in."""
        state = self.state
        parts = self.objective.parts(batch, self.settings.accumulate)
        for p in self.params:
            p.grad = None
        total, count = torch.zeros((), device=self.device), 0
        for part in parts:
            loss = self.objective.loss(self.net, part)
            loss.total.backward()
            total, count = total + loss.plain.detach(), count + loss.count
        grads = [p.grad for p in self.params if p.grad is not None]
        divide = torch.full_like(total, max(count, 1))
        watched = total
        if self.settings.clip:
            watched = nn.utils.get_total_norm(grads) / divide
            divide = divide * torch.clamp((watched + 1e-6) / self.settings.clip, min=1.0)
        if not bool(watched.isfinite()):
            self.not_finite("loss", state.step + 1)
        state.step += 1
        self.optimizer.step(self.schedule(state.step, state.progress), divide)
        state.tokens += self.objective.size(batch)
        self.recent.append((total, count))

    def not_finite(self, what: str, step: int) -> None:
        where = f"at step {step} (epoch {self.state.epoch}, batch {self.state.position})"
        raise InputError(f"the {what} is no longer a number {where}; the last good state is {self.kept()}: try a lower --learning-rate")

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
            loss = self.objective.loss(self.net, batch)
            total, count = total + float(loss.plain), count + loss.count
        self.net.train()
        return total / max(count, 1)

    def evaluate(self, speed: float) -> None:
        state = self.state
        valid, train = self.valid_loss(), self.loss_now() if self.recent else None
        if not math.isfinite(valid):
            self.not_finite("validation loss", state.step)
        better = valid < state.best
        if better:
            state.best, state.best_step, state.stale = valid, state.step, 0
            write_tensors(self.folder / "best.safetensors", self.net.state_dict(), {"format": FORMAT, "step": state.step})
        else:
            state.stale += 1
        if self.settings.average > 1:
            write_tensors(self.folder / f"step-{state.step:08}.safetensors", self.net.state_dict(), {"format": FORMAT, "step": state.step})
            for old in sorted(self.folder.glob("step-*.safetensors"))[: -self.settings.average]:
                old.unlink()
        row = {"step": state.step, "seconds": round(state.seconds, 3), "train_loss": train, "valid_loss": valid, "tokens": state.tokens}
        row |= {"tokens_per_second": round(speed, 1), "learning_rate": self.schedule(state.step, state.progress)}
        self.metrics.add(row | {"epoch": state.epoch, "progress": state.progress})
        self.recent.clear()
        state.row_step = state.step
        mark = "  best so far" if better else ""
        self.reporter.say(f"step {state.step:>7,}  train {train or 0:.4f}  valid {valid:.4f} nats a token  {speed:,.0f} tokens/s{mark}")

    def averaged(self) -> dict[str, Tensor] | None:
        """The mean of the last evaluated weights (Vaswani et al. 2017, section 6.1); None when no averaging was asked for."""
        files = sorted(self.folder.glob("step-*.safetensors"))
        return mean_of(files) if self.settings.average > 1 and files else None


def _set_handler(handler: Callable) -> bool:
    try:
        signal.signal(signal.SIGINT, handler)
    except ValueError:  # not the main thread: Ctrl-C is somebody else's there
        return False
    return True
