"""`plait bench`: its options, the process it starts, and the file it leaves."""

import json

import pytest

from plait.bench import __main__ as bench
from plait.bench import train_language, train_speed
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


def test_training_in_turn_is_a_job(monkeypatch, peers, tmp_path, capsys):
    monkeypatch.setitem(train_language.SHAPES, "characters", train_language.Shape(16, 2, 1, 12, 30, 2))
    options = {"job": "train", "out": str(tmp_path / "one.json"), "threads": 1, "only": ["plait", "nanogpt"], "rounds": None}
    options |= {"shape": None, "nanogpt": None, "quick": True}
    assert bench.main([json.dumps(options)]) == 0
    said = json.loads(capsys.readouterr().out)["table"]
    assert "GPT-2 of 1 x 16" in said and "nanogpt takes no part: its folder was not given" in said
    assert len(json.loads((tmp_path / "one.json").read_text())["contestants"]["plait"]["losses"]) == 4
    assert bench.main([json.dumps({**options, "shape": "medium"})]) == 2
    assert "--shape medium: choose characters, characters-small or bpe" in json.loads(capsys.readouterr().out)["error"]


def test_learning_needs_its_text(tmp_path):
    for text in (None, tmp_path / "none.txt"):
        with pytest.raises(InputError) as error:
            Bench("learning", text=text).run()
        assert error.value.faults[0].startswith(f"--text {text or 'FILE'}: give the file")


def test_learning_takes_who_is_asked_for(monkeypatch, tmp_path, capsys):
    (text := tmp_path / "text.txt").write_text("To be, or not to be. " * 60, encoding="utf-8")
    options = {"job": "learning", "out": str(tmp_path / "one.json"), "threads": 1, "rounds": None, "text": str(text), "nanogpt": None}
    options |= {"quick": True, "only": ["plait"]}
    assert bench.main([json.dumps(options)]) == 0
    assert "of nanoGPT's time" in json.loads(capsys.readouterr().out)["table"]
    found = json.loads((tmp_path / "one.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["plait"] and 0 < found["rows"][0]["nats"] < 10
    assert bench.main([json.dumps({**options, "only": ["nanogpt"]})]) == 2  # its folder was not given
    assert "choose among 'plait' or 'plait n-grams'" in json.loads(capsys.readouterr().out)["error"]
