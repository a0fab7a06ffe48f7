"""`plait bench`: its options, the process it starts, and the file it leaves."""

import json

import pytest

from plait.bench import __main__ as bench
from plait.bench import train_speed
from plait.bench.verb import Bench
from plait.errors import InputError


def test_wrong_numbers_are_told_all_at_once():
    with pytest.raises(InputError) as error:
        Bench("quality", minutes=0, rates=[0.0], peer_dropout=1.0, rounds=-1).run()
    assert len(error.value.faults) == 4


def test_an_error_of_the_job_comes_through_its_process():
    with pytest.raises(InputError, match="--only nobody: choose among"):
        Bench("train-speed", only=["nobody"]).run()


def test_a_job_prints_its_table_and_writes_its_file(monkeypatch, toy, tmp_path, capsys):
    monkeypatch.setitem(train_speed.JOBS, "medium", train_speed.Job(toy, rows=2, length=4))
    options = {"job": "train-speed", "out": str(tmp_path / "one.json"), "threads": 1, "only": ["plait"], "rounds": 2, "shape": "medium"}
    assert bench.main([json.dumps(options)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "tokens/s" in said["table"] and "one.json" in said["table"]
    found = json.loads((tmp_path / "one.json").read_text())
    assert found["settings"]["rounds"] == 2 and len(found["contestants"]["plait"]["seconds"]) == 2
    assert found["load_after"] is None or found["load_after"] >= 0
    assert bench.main([json.dumps({**options, "shape": "huge"})]) == 2
    assert "--shape huge" in json.loads(capsys.readouterr().out)["error"]
