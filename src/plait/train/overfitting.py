"""Copies of a model learn a few rows by heart: whether they can at all, and at which learning rates."""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from plait.core.model import Model
from plait.train.patient import Finding, Patient, least_loss, marginal_entropy
from plait.train.recipes import Recipe

STEPS, FEWER, WARMUP = 80, 24, 8  # steps of learning by heart, of a rate that is tried out, and of both until the full rate
RATES = tuple(m * 10.0**e for e in range(-5, 0) for m in (1, 3))[:-1]  # 1e-5 to 1e-1
LEARNED = 0.2  # share of what only the input can tell, from which on a trial has learned
STILL = 0.03  # share of the way from the first loss to the least one, below which it has not moved


@dataclass
class Trial:
    """A copy of the model that has learned a few rows for some steps."""

    net: Model
    least: float  # loss that no model goes below
    constant: float  # loss of the best answer that is the same everywhere: what is learned first, and without reading
    losses: list[float] = field(default_factory=list)  # nats an answer, before each step and after the last
    largest: dict[str, float] = field(default_factory=dict)  # of each parameter's gradients; 0 where none ever came

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, self.losses))

    def beyond(self, start: float) -> float:
        """The share of the way from the loss `start` to the least one that was gone."""
        return (start - self.losses[-1]) / max(start - self.least, 1e-6) if self.finite else -math.inf

    @property
    def way(self) -> float:
        return self.beyond(self.losses[0])

    @property
    def learned(self) -> bool:
        """Whether more is known of the answers than how frequent they are."""
        start = min(self.losses[0], self.constant) if self.constant > self.least + 0.05 else self.losses[0]
        return self.beyond(start) >= LEARNED or (self.finite and self.losses[-1] < self.least + 0.05)

    def __str__(self) -> str:
        shown = self.losses[:: max(1, (len(self.losses) - 1) // 4)]
        return f"{' > '.join(f'{loss:.3f}' for loss in shown)} nats in {len(self.losses) - 1} steps"


def mean_loss(net: Model, p: Patient, batch: Any) -> Tensor:
    loss = p.objective.loss(net, batch)
    return loss.total / max(loss.count, 1)


def learn(p: Patient, recipe: Recipe, steps: int, until: float) -> Trial:
    """The small batch again and again, at the recipe's peak rate after a short warm-up, without dropout or smoothing.

    The rate falls at the end, so that the last loss says what was learned and not how far the last steps overshoot.
    """
    net = copy.deepcopy(p.net).eval()
    optimizer, one = recipe.optimizer(net), torch.ones((), device=next(net.parameters()).device)
    constant = marginal_entropy(p.small_pieces)
    trial = Trial(net, least_loss(p.small_pieces, p.tower == "decoder"), math.inf if constant is None else constant)
    trial.largest = dict.fromkeys((name for name, _ in net.named_parameters()), 0.0)
    for step in range(steps):
        for q in net.parameters():
            q.grad = None
        loss = mean_loss(net, p, p.small)
        trial.losses.append(loss.item())
        if not loss.requires_grad:
            return trial
        loss.backward()
        grads = {name: q.grad for name, q in net.named_parameters() if q.grad is not None}
        for name, grad in grads.items():
            trial.largest[name] = max(trial.largest[name], float(grad.abs().max()))
        norm = nn.utils.get_total_norm(list(grads.values()))
        if not trial.finite or not bool(norm.isfinite()):
            trial.losses.append(math.nan)
            return trial
        divide = one * torch.clamp((norm + 1e-6) / p.clip, min=1.0) if p.clip else one
        optimizer.step(min(1.0, (step + 1) / WARMUP, 3 * (steps - step) / steps), divide)
        if time.perf_counter() > until and step >= WARMUP:
            break
    with torch.no_grad():
        trial.losses.append(mean_loss(net, p, p.small).item())
    return trial


def by_heart(p: Patient) -> tuple[list[Finding], Trial]:
    """Whether a few rows can be learned at all, and at the rate asked for; that trial which went furthest."""
    own, rate = learn(p, p.recipe, STEPS, p.time_until(0.45)), p.recipe.rate
    least = f"; no model gets below {own.least:.3f}" if own.least > 0.005 else ""
    findings: list[Finding] = []
    if own.learned:
        findings.append(Finding("ok", "overfits one batch", f"{own}{least}"))
        findings.append(Finding("ok", "learning rate", f"{rate:.2g} works"))
        return findings, own
    if not any(q.requires_grad for q in p.net.parameters()) or not max(own.largest.values()) > 0:
        return [Finding("fault", "overfits one batch", f"{own}{least}", "nothing moves: see frozen and gradients")], own
    trials = tried(p)
    best = max(trials, key=lambda r: trials[r].way)
    longer = learn(p, replace(p.recipe, rate=best), STEPS, p.time_until(0.9))
    if not longer.learned:
        seen = f"{longer}{least}, at the best rate found, {best:.2g}"
        level = "fault" if longer.way < STILL else "warning"
        advice = "a model that cannot learn a few rows by heart learns no others: are answers and inputs those of the same rows?"
        if level == "warning":
            advice = "slow: it may be the few steps, or answers that have little to do with their inputs"
        findings.append(Finding(level, "overfits one batch", seen, advice))
    else:
        findings.append(Finding("ok", "overfits one batch", f"{longer}{least}, at rate {best:.2g}"))
    findings += rate_found(p, own, trials, longer)
    return findings, max(own, longer, key=lambda trial: trial.way)


def tried(p: Patient) -> dict[float, Trial]:
    """A few steps at each of several rates: a range test (Smith 2017, section 3.3) on one batch."""
    ends = [p.time_until(0.45 + 0.35 * (n + 1) / len(RATES)) for n in range(len(RATES))]
    return {rate: learn(p, replace(p.recipe, rate=rate), FEWER, until) for rate, until in zip(RATES, ends, strict=True)}


def rate_found(p: Patient, own: Trial, trials: dict[float, Trial], best: Trial) -> Iterator[Finding]:
    rate, name = p.recipe.rate, "learning rate"
    furthest = max(trial.way for trial in trials.values())
    works = [r for r, trial in trials.items() if trial.way > max(0.5 * furthest, STILL)]
    if not works or not best.learned:
        if not own.finite:
            yield Finding(
                "fault", name, f"{rate:.2g}: the loss is no number after {len(own.losses) - 1} steps", "try a lower --learning-rate"
            )
        return
    advice = f"these work: {works[0]:.2g} to {works[-1]:.2g}" if len(works) > 1 else f"this works: {works[0]:.2g}"
    steps = len(own.losses) - 1
    if rate > works[-1]:
        # With a long warm-up a peak that is a little too high is met by a model that has learned to bear it.
        level = "fault" if p.recipe.warmup < 200 or rate > 10 * works[-1] else "warning"
        became = (
            "the loss is no number" if not own.finite else f"no answer is told from another ({own})" if own.way > 0 else f"it rises ({own})"
        )
        yield Finding(level, name, f"{rate:.2g} is too high, within {steps} steps {became}", advice)
    elif own.way < STILL and rate < 0.1 * works[0]:
        yield Finding("fault", name, f"{rate:.2g} is too low, the loss hardly moves ({own})", advice)
    else:
        yield Finding("warning", name, f"{rate:.2g}: only {own.way:.0%} of what can be learned in {steps} steps", advice)
