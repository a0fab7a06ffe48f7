"""Trackers get the rows of metrics.jsonl: TensorBoard's own reader finds them; Weights & Biases is asked as its documentation says."""

import sys
from types import SimpleNamespace

import pytest

from plait.errors import InputError
from plait.train.trackers import TensorBoard, WeightsAndBiases

ROWS = [{"step": 3, "train_loss": 2.5, "valid_loss": 2.25, "epoch": 0}, {"step": 9, "train_loss": None, "valid_loss": 1.5, "note": "x"}]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_back_every_figure_at_its_step(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed")
    tracker = TensorBoard(tmp_path)
    for row in ROWS:
        tracker.add(row)
    tracker.close()
    found = reader.EventAccumulator(str(tmp_path)).Reload()
    read = {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}
    assert read == {"train_loss": [(3, 2.5)], "valid_loss": [(3, 2.25), (9, 1.5)], "epoch": [(3, 0.0)]}


def test_weights_and_biases_goes_on_with_the_run_of_that_name(monkeypatch):
    said = []
    run = SimpleNamespace(log=lambda figures, step: said.append((step, figures)), finish=lambda: said.append("finished"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **how: said.append(how) or run))
    tracker = WeightsAndBiases("words", "run-7", {"seed": 1})
    tracker.add(ROWS[1])
    tracker.close()
    assert said == [
        {"project": "words", "name": "run-7", "id": "run-7", "config": {"seed": 1}, "resume": "allow"},
        (9, {"valid_loss": 1.5}),
        "finished",
    ]


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"--wandb: the package wandb is not installed: pip install 'plait\[wandb\]'"):
        WeightsAndBiases("words", "run-7", {})
