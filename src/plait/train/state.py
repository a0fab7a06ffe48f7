"""How long a run goes, how its loop goes, and where it stands."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from plait.errors import InputError


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
    ema: float | None = None  # decay of a moving average of the weights, which then is what is evaluated and kept
    precision: str = "float32"  # of products: float32, bfloat16 or float16, the last with loss scaling
    compile: bool = False
    save_seconds: float = 60.0


@dataclass
class State:
    """Where a run stands. Saved in each checkpoint, with weights, optimizer and generator states."""

    step: int = 0
    epoch: int = 0
    position: int = 0  # batches of this epoch already taken
    seconds: float = 0.0  # of the budget
    progress: float = 0.0
    begun: float = 0.0  # progress before the first step
    evaluated: int = 0
    best: float = math.inf
    best_step: int = 0
    stale: int = 0  # evaluations since the best
    row_step: int = -1  # step of the last line of metrics.jsonl
    tokens: int = 0
    finished: bool = False

    @property
    def place(self) -> float:
        """In the schedule: the share that is spent of what training has of the budget."""
        return (self.progress - self.begun) / (1 - self.begun)


class Positions:
    """The file of each step's place in the schedule, written before the step: a resumed run takes the same steps again."""

    def __init__(self, path: Path, step: int, fresh: bool, wanted: bool):
        self.path = path
        self.file = open(path, "wb" if fresh or not path.exists() else "r+b", buffering=0) if wanted else None  # noqa: SIM115
        if self.file is not None:
            self.file.seek(8 * step)

    def note(self, progress: float, kept: Callable[[], str]) -> None:
        try:
            if self.file is not None:
                self.file.write(np.float64(progress).tobytes())
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}; the last good state is {kept()}") from None

    def __enter__(self) -> "Positions":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
