"""`plait doctor` and `plait train --check`: what they print, where, and with which exit code."""

import json

import pytest
import torch
from safetensors.torch import load_file

from plait.train import overfitting

SMALL = ["--preset", "modern-tiny", "--batch-tokens", "256"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(overfitting, "STEPS", 24)
    monkeypatch.setattr(overfitting, "FEWER", 16)
    monkeypatch.setattr(overfitting, "RATES", (1e-3,))


@pytest.fixture(scope="session")
def lower(pairs, tmp_path_factory):
    """The pairs' sources as a text."""
    path = tmp_path_factory.mktemp("data") / "lower.txt"
    path.write_text("".join(line.partition("\t")[0] + "\n" for line in pairs.read_text().splitlines()) * 10, encoding="utf-8")
    return path


def test_a_healthy_translation(plait, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = plait("doctor", "translation", "--data", pairs, "--seconds", "100", *SMALL)
    lines = out.splitlines()
    assert code == 0, out + err
    assert all(line.startswith("ok ") for line in lines)
    assert any(line.startswith("ok       overfits one batch: ") for line in lines)
    assert not list(tmp_path.iterdir())  # nothing is kept


def test_a_fault_is_exit_code_2_and_findings_stay_on_stdout(plait, pairs):
    words = ["--preset", "vaswani-tiny", "--optimizer", "adam", "--schedule", "linear", "--warmup", "10", "--learning-rate", "9"]
    code, out, err = plait("doctor", "translation", "--data", pairs, "--seconds", "100", "--json", *words)
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 2 and "learning rate" in err.splitlines()[-1] and "Traceback" not in err
    (fault,) = [finding for finding in found if finding["name"] == "learning rate"]
    assert fault["level"] == "fault" and "too high" in fault["seen"] and "0.001" in fault["advice"]


def test_a_language_model_validated_on_its_own_text(plait, lower):
    words = ["--tokenizer", "characters", "--context", "64", "--preset", "modern-decoder-tiny", "--batch-tokens", "256"]
    code, out, _ = plait("doctor", "language-model", "--data", lower, "--valid", lower, "--seconds", "100", *words)
    assert code == 2 and "fault    held out: " in out


def test_check_stops_a_run_that_cannot_work_before_it_leaves_anything(plait, pairs, tmp_path):
    words = ["train", "translation", "--data", pairs, "--out", tmp_path / "run", "--steps", "2", "--check"]
    adam = ["--optimizer", "adam", "--learning-rate", "9", "--schedule", "linear", "--warmup", "5", "--preset", "vaswani-tiny"]
    code, out, err = plait(*words, *adam)
    assert code == 2 and not out and "1 fault: learning rate" in err
    assert not (tmp_path / "run").exists()


def test_a_checked_run_is_the_run_without_the_check(plait, pairs, tmp_path):
    for name, more in (("plain", []), ("checked", ["--check"])):
        code, _, err = plait("train", "translation", "--data", pairs, "--out", tmp_path / name, "--steps", "3", *SMALL, *more)
        assert code == 0 and ("overfits one batch" in err) == bool(more)
    plain, checked = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "checked"))
    assert plain.keys() == checked.keys() and all(torch.equal(plain[name], checked[name]) for name in plain)


def test_what_cannot_be_examined(refused, pairs, tmp_path):
    refused(["doctor", "translation"], "--data is missing")
    refused(["doctor", "translation", "--data", pairs, "--resume"], "--resume")
    refused(["doctor", "translation", "--data", pairs, "--seconds", "0"], "--seconds 0")
