"""A toy run: a one-layer model on random pairs, small enough that a training run takes a tenth of a second."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from plait.data.corpus import Corpus, Flat
from plait.data.report import Report
from plait.models import build
from plait.tasks.translation import TeacherForcing
from plait.train.log import Reporter
from plait.train.loop import Trainer
from plait.train.optimizers import Adam, Muon, Together, inner_matrices, others
from plait.train.schedules import linear_decay
from plait.train.state import Budget, Settings

VOCAB = 12
SIZE = dict(source_vocab=VOCAB, target_vocab=VOCAB, d_model=16, n_heads=2, n_layers=1, d_ff=32)


def corpus_of(rows: list[tuple[list[int], list[int]]]) -> Corpus:
    return Corpus(Flat.of([s for s, _ in rows]), Flat.of([t for _, t in rows]), 0, 0, 1, 2, Report("made"))


def random_rows(n: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    draw = np.random.default_rng(seed)
    return [tuple(draw.integers(4, VOCAB, draw.integers(1, 7)).tolist() for _ in range(2)) for _ in range(n)]  # type: ignore[misc]


def muon_and_adam(net) -> Together:
    inner = inner_matrices(net)
    return Together(muon=Muon(inner, 0.02), adam=Adam(others(net, inner), 0.005))


@pytest.fixture
def toy():
    """toy(folder, budget, ...) -> a Trainer that has taken no step; the same arguments give the same run, bit for bit."""

    def make(folder: Path, budget: Budget | None = None, settings: Settings | None = None, **how) -> Trainer:
        torch.manual_seed(how.get("seed", 0))
        net = build(how.get("arch", "modern"), {**SIZE, "dropout": how.get("dropout", 0.2)}).to(how.get("dtype", torch.float32))
        corpus = corpus_of(how.get("rows") or random_rows(60))
        return Trainer(
            net,
            TeacherForcing(0.1),
            how.get("optimizer", muon_and_adam),
            how.get("schedule") or linear_decay(3),
            corpus.feed(how.get("tokens", 120)),
            how.get("valid") or [corpus_of(random_rows(9, 1)).batch(np.arange(9))],
            budget or Budget(steps=12),
            settings or Settings(evaluations=4, save_seconds=1e9),
            folder,
            Reporter(quiet=True),
        )

    return make


@pytest.fixture
def before_step():
    """before_step(trainer, n, act): `act()` runs when the batch of step n (counted from 1) is about to be handed out."""

    def put(trainer: Trainer, n: int, act) -> Trainer:
        stream = trainer.feed.stream

        def watched(epoch: int, position: int):
            for item in stream(epoch, position):
                if trainer.state.step == n - 1:
                    act()
                yield item

        trainer.feed.stream = watched
        return trainer

    return put


class Clock:
    """Stands for the module `time`: a hundredth of a second passes at each look."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self) -> float:
        self.now += 0.01
        return self.now

    def __getattr__(self, name):
        return getattr(time, name)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("plait.train.loop.time", made)
    return made
