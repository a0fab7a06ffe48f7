"""Learning-rate schedules: factors in [0, 1] (or the paper's formula) from the step and from how much of the budget is spent."""

import math
from collections.abc import Callable

Schedule = Callable[[int, float], float]  # (step from 1, progress in [0, 1]) -> what the learning rate is multiplied by


def risen(warmup: float, step: int, progress: float) -> float:
    """How far a linear warm-up has come: over `warmup` steps, or where that is below 1 over that share of the budget."""
    if warmup >= 1 or not warmup:
        return min(1.0, step / warmup) if warmup else 1.0
    return min(1.0, max(progress / warmup, step / 1000))  # the first step has no progress, and must not stand still


def inverse_sqrt(warmup: float) -> Schedule:
    """The paper's shape, scaled to 1 at its peak: up linearly for `warmup` steps, then down with 1/sqrt(step) (Vaswani et al. 2017, 5.3).

    The paper's own rate is d_model^-0.5 · step^-0.5 after the warm-up: a learning rate of (d_model · warmup)^-0.5.
    """
    return lambda step, progress: min(step / warmup, (warmup / step) ** 0.5)


def linear_decay(warmup: float, hold: float = 0.0, final: float = 0.0) -> Schedule:
    """Up for `warmup` steps, level until the share `hold` of the budget is spent, then straight down to `final` at its end."""

    def factor(step: int, progress: float) -> float:
        down = 1.0 if progress <= hold else final + (1 - final) * (1 - progress) / (1 - hold)
        return risen(warmup, step, progress) * max(down, 0.0)

    return factor


def cosine(warmup: float, final: float = 0.1) -> Schedule:
    """Up for `warmup` steps, then down to `final` along half a cosine over the budget (Loshchilov & Hutter 2017, without restarts)."""

    def factor(step: int, progress: float) -> float:
        down = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return risen(warmup, step, progress) * down

    return factor
