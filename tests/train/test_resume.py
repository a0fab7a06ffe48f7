"""A run that was stopped and went on is the run that was not stopped: weights, optimizer, metrics, averages, to the last bit."""

import os
import signal

import numpy as np
import pytest
import torch

from plait.errors import InputError
from plait.train.checkpoints import group_of, read_tensors
from plait.train.loop import Interrupted
from plait.train.state import Budget, Settings

BUDGETS = {"steps": dict(steps=12), "epochs": dict(epochs=2.3)}
KEEP = dict(evaluations=4, average=2)


class Blow(Exception):
    pass


def blow():
    raise Blow


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def ended(trainer) -> dict:
    """Everything of a run's end that must not depend on how often it was stopped."""
    state = {name: value for name, value in vars(trainer.state).items() if name != "seconds"}
    rows = [{k: row[k] for k in ("step", "valid_loss", "learning_rate", "progress", "epoch", "tokens")} for row in trainer.metrics.rows()]
    files = {path.name: read_tensors(path)[0] for path in sorted(trainer.keeper.folder.glob("*.safetensors"))}
    files["last"] = {name: t for name, t in files.pop("last.safetensors").items() if not name.startswith("rng/cuda")}
    average = trainer.keeper.mean(trainer.settings.average)
    return {"state": state, "rows": rows, "files": files, "positions": trainer.positions.read_bytes(), "average": average}


def assert_same(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def whole(request, tmp_path_factory):
    """The run that nobody stopped, by budget; made once."""
    made = {}

    def get(toy, budget):
        if budget not in made:
            trainer = toy(tmp_path_factory.mktemp("whole"), Budget(**BUDGETS[budget]), Settings(**KEEP, save_seconds=1e9))
            trainer.fit()
            made[budget] = ended(trainer)
        return made[budget]

    return get


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("stops", [(1,), (7,), (12,), (3, 4, 9)], ids=str)
def test_after_ctrl_c(budget, stops, toy, before_step, whole, tmp_path):
    settings = Settings(**KEEP, save_seconds=1e9)
    for stop in stops:
        trainer = before_step(toy(tmp_path, Budget(**BUDGETS[budget]), settings), stop, ctrl_c)
        trainer.resume()
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(Interrupted):
            trainer.fit()
        assert signal.getsignal(signal.SIGINT) is before
        assert trainer.state.step == stop
    trainer = toy(tmp_path, Budget(**BUDGETS[budget]), settings, seed=5)  # other first weights: all must come from the checkpoint
    torch.manual_seed(99)
    trainer.resume()
    trainer.fit()
    assert_same(ended(trainer), whole(toy, budget))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("save_seconds", [0.0, 1e9], ids=["saved", "never saved"])
@pytest.mark.parametrize("stops", [(2,), (7, 8)], ids=str)
def test_after_an_error_inside(budget, save_seconds, stops, toy, before_step, whole, tmp_path):
    """Without a checkpoint a run starts anew, and leaves nothing of its first life behind."""
    settings = Settings(**KEEP, save_seconds=save_seconds)
    for stop in (*stops, None):
        trainer = toy(tmp_path, Budget(**BUDGETS[budget]), settings)
        trainer.resume()
        if stop is None:
            trainer.fit()
        else:
            with pytest.raises(Blow):
                before_step(trainer, stop, blow).fit()
    assert_same(ended(trainer), whole(toy, budget))


@pytest.mark.parametrize("when", ["write_tensors", "add"])
def test_stopped_between_the_last_evaluation_and_its_checkpoint(when, toy, whole, tmp_path, monkeypatch):
    """The last row of metrics stands already; it must not come twice."""
    trainer = toy(tmp_path, settings=Settings(**KEEP, save_seconds=0.0))
    if when == "add":
        real = trainer.metrics.add

        def add(row):
            real(row)
            if row["progress"] == 1.0:
                raise Blow

        monkeypatch.setattr(trainer.metrics, "add", add)
    else:
        monkeypatch.setattr(trainer, "save", lambda real=trainer.save: blow() if trainer.state.finished else real())
    with pytest.raises(Blow):
        trainer.fit()
    trainer = toy(tmp_path, settings=Settings(**KEEP, save_seconds=0.0))
    trainer.resume()
    assert not trainer.state.finished
    trainer.fit()
    assert_same(ended(trainer), whole(toy, "steps"))


def minutes(clock) -> Budget:
    return Budget(minutes=0.012, started=clock.now)  # 0.7 s of a clock that runs a hundredth at each look


@pytest.mark.parametrize("saved_at", [None, 4])
def test_minutes_are_replayed_as_recorded(saved_at, toy, before_step, tmp_path, clock):
    """Steps after the checkpoint are taken again at their recorded positions, and the clock then stands where it stood."""
    alone = toy(tmp_path / "alone", minutes(clock))
    alone.fit()

    trainer = before_step(toy(tmp_path / "run", minutes(clock)), 9, blow)
    if saved_at:
        before_step(trainer, saved_at + 1, trainer.save)
    with pytest.raises(Blow):
        trainer.fit()
    there = {name: t.clone() for name, t in trainer.net.state_dict().items()}  # after 8 steps
    known = np.fromfile(trainer.positions)
    assert len(known) == 8 and (np.diff(known) > 0).all()

    clock.now += 1000.0  # a long break
    again = toy(tmp_path / "run", minutes(clock), seed=3 if saved_at else 0)
    again.resume()
    assert again.state.step == (saved_at or 0) and len(again.replay) == 8 - (saved_at or 0)
    seen = {}
    before_step(again, 9, lambda: seen.update({name: t.clone() for name, t in again.net.state_dict().items()}))
    again.fit()
    assert_same(seen, there)
    positions = np.fromfile(again.positions)
    assert positions[:8].tobytes() == known.tobytes()
    assert (np.diff(positions) > 0).all() and positions[-1] < 1 and np.diff(positions).max() < 0.2  # no leap after the replay
    assert abs(again.state.step - alone.state.step) <= 2  # replaying cost nothing of the budget
    assert [row["step"] for row in again.metrics.rows()] == sorted({row["step"] for row in again.metrics.rows()})


def test_a_half_written_position_is_forgotten(toy, before_step, tmp_path, clock):
    with pytest.raises(Blow):
        before_step(toy(tmp_path, minutes(clock)), 6, blow).fit()
    trainer = toy(tmp_path, minutes(clock))
    with open(trainer.positions, "ab") as file:
        file.write(b"\x01\x02\x03")
    trainer.resume()
    trainer.fit()
    positions = np.fromfile(trainer.positions)
    assert len(positions) == trainer.state.step and (np.diff(positions) > 0).all()


def test_half_a_line_of_metrics_and_parts_of_files_go(toy, before_step, tmp_path):
    with pytest.raises(Interrupted):
        before_step(toy(tmp_path), 8, ctrl_c).fit()
    trainer = toy(tmp_path)
    rows = trainer.metrics.rows()
    with open(trainer.metrics.path, "a") as file:
        file.write('{"step": 99, "valid_loss": 1.0}\n{"step": 100, "val')
    (trainer.keeper.folder / ".best.safetensors.123.part").write_bytes(b"half")
    trainer.resume()
    assert trainer.metrics.rows() == rows and rows
    assert not list(trainer.keeper.folder.glob(".*"))


def test_a_checkpoint_of_another_format_is_refused(toy, before_step, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        before_step(toy(tmp_path), 2, ctrl_c).fit()
    monkeypatch.setattr("plait.train.keeping.FORMAT", 7)
    with pytest.raises(InputError, match="is a checkpoint of format 1, this version reads format 7"):
        toy(tmp_path).resume()


def test_a_damaged_checkpoint_is_refused(toy, before_step, tmp_path):
    with pytest.raises(Interrupted):
        before_step(toy(tmp_path), 2, ctrl_c).fit()
    trainer = toy(tmp_path)
    data = trainer.keeper.last.read_bytes()
    trainer.keeper.last.write_bytes(data[:-100])
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        trainer.resume()


def test_saved_is_loaded(toy, tmp_path):
    trainer = toy(tmp_path)
    trainer.fit()
    tensors, note = read_tensors(trainer.keeper.last)
    assert note["state"]["step"] == 12 and note["state"]["finished"]
    for name, tensor in trainer.net.state_dict().items():
        assert torch.equal(group_of(tensors, "model")[name], tensor)
    for name, tensor in trainer.optimizer.state().items():
        assert torch.equal(group_of(tensors, "optimizer")[name], tensor)
    assert torch.equal(group_of(tensors, "rng")["cpu"], torch.get_rng_state())
