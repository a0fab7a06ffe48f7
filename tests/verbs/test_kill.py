"""kill -9, Ctrl-C and a full disk in the middle of the real command: what --resume makes of it is the run that nobody stopped."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from plait.train.checkpoints import read_tensors

STEPS = 60
HOW = ["--steps", STEPS, "--evaluations", "6", "--average", "2", "--preset", "modern-tiny", "--batch-tokens", "256", "--dropout", "0.1"]


def tensors(path: Path) -> dict:
    return read_tensors(path)[0]


def same(a: Path, b: Path) -> bool:
    one, two = tensors(a), tensors(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def rows(run: Path) -> list[dict]:
    keys = ("step", "valid_loss", "learning_rate", "progress", "tokens")
    return [{key: row[key] for key in keys} for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]


def train(out: Path, pairs: Path, save_seconds: float) -> list:
    words = ["train", "translation", "--out", out, "--save-seconds", save_seconds]
    return [*words, "--resume"] if (out / "config.json").exists() else [*words, "--data", pairs, *HOW]


@pytest.fixture(scope="module")
def whole(launcher, pairs, tmp_path_factory):
    """(the run that nobody stopped, the seconds that it took from its first step)."""
    out = tmp_path_factory.mktemp("whole") / "run"
    pid = launcher.start(*train(out, pairs, 1e9))
    wait_for(out / "metrics.jsonl", pid)
    start = time.perf_counter()
    code, _, err = launcher.ended()
    assert code == 0, err
    return out, time.perf_counter() - start


def wait_for(path: Path, pid: int) -> None:
    """Until the file is there, or the process over."""
    until = time.monotonic() + 60
    while not path.exists() and not over(pid) and time.monotonic() < until:
        time.sleep(0.002)


def over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def test_ten_kills_at_random_moments_change_nothing(processes, pairs, whole, tmp_path):
    draw, (reference, seconds) = random.Random(0), whole
    run, deaths, ends = tmp_path / "run0", 0, 0
    while deaths < 10 or ends == 0:
        pid = processes.start(*train(run, pairs, save_seconds=(1e-6, 0.05)[deaths % 2]))
        wait_for(run / "config.json", pid)
        if deaths < 10:
            time.sleep(draw.uniform(0.02, 0.5 * seconds))
            os.kill(pid, signal.SIGKILL)
        code, _, err = processes.ended()
        deaths += code == -signal.SIGKILL
        if code == 0 or "this run is finished" in err:  # perhaps before ten deaths: then once more from the start
            assert same(run / "model.safetensors", reference / "model.safetensors")
            assert same(run / "checkpoints" / "last.safetensors", reference / "checkpoints" / "last.safetensors")
            assert rows(run) == rows(reference)
            assert code != 0 or not list((run / "checkpoints").glob(".*"))  # no rest of a write
            ends += 1
            run = tmp_path / f"run{ends}"
        else:
            assert code == -signal.SIGKILL, err


def test_killed_while_a_checkpoint_is_written(processes, pairs, whole, tmp_path):
    """The write is held up half way, so that the kill is sure to fall into it; the checkpoint before it is whole."""
    out, mark = tmp_path / "run", tmp_path / "writing"
    slow = f"""
import time
fsync, count = os.fsync, [0]
def held(fd):
    count[0] += os.readlink(f"/proc/self/fd/{{fd}}").count("last.safetensors")
    if count[0] == 5:
        os.ftruncate(fd, 1000)
        open({str(mark)!r}, "w").close()
        time.sleep(60)
    fsync(fd)
os.fsync = held
"""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc on this system")
    pid = processes.start(*train(out, pairs, 1e-6), before=slow)
    wait_for(mark, pid)
    os.kill(pid, signal.SIGKILL)
    assert processes.ended()[0] == -signal.SIGKILL
    last = out / "checkpoints" / "last.safetensors"
    assert read_tensors(last)[1]["state"]["step"] == 4
    assert [part.stat().st_size for part in (out / "checkpoints").glob(".*.part")] == [1000]
    processes.start(*train(out, pairs, 1e9))
    code, _, err = processes.ended()
    assert code == 0 and "going on at step 4" in err
    assert same(out / "model.safetensors", whole[0] / "model.safetensors") and rows(out) == rows(whole[0])
    assert not list((out / "checkpoints").glob(".*"))


def test_killed_between_the_last_step_and_the_model(processes, pairs, whole, tmp_path):
    out = tmp_path / "run"
    die = "import plait.verbs.training as t, signal\nt.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    processes.start(*train(out, pairs, 1e9), before=die)
    assert processes.ended()[0] == -signal.SIGKILL
    assert not (out / "model.safetensors").exists()
    processes.start(*train(out, pairs, 1e9))
    code, said, err = processes.ended()
    assert code == 0, err
    assert json.loads(said)["steps"] == STEPS and (out / "curves.png").exists()
    assert same(out / "model.safetensors", whole[0] / "model.safetensors") and rows(out) == rows(whole[0])
    processes.start(*train(out, pairs, 1e9))
    code, _, err = processes.ended()
    assert code == 2 and "this run is finished (step 60): start a new one" in err


def test_ctrl_c_saves_and_says_how_to_go_on(processes, pairs, whole, tmp_path):
    out = tmp_path / "run"
    pid = processes.start(*train(out, pairs, 1e9))
    wait_for(out / "metrics.jsonl", pid)
    os.kill(pid, signal.SIGINT)
    code, said, err = processes.ended()
    assert code == 130 and said == "" and "Traceback" not in err
    assert f"everything is saved; go on with: plait train translation --out {out} --resume" in err
    processes.start(*train(out, pairs, 1e9))
    assert processes.ended()[0] == 0
    assert same(out / "model.safetensors", whole[0] / "model.safetensors") and rows(out) == rows(whole[0])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True)
    except OSError as error:
        pytest.skip(f"no small file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_stops_the_run_and_loses_nothing(small_disk, processes, pairs, whole):
    out, ballast = small_disk / "run", small_disk / "ballast"
    pid = processes.start(*train(out, pairs, 1e-6))
    wait_for(out / "checkpoints" / "last.safetensors", pid)
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65536))
    code, said, err = processes.ended()
    assert code == 2 and said == "" and "Traceback" not in err, err
    assert "the disk is full" in err and "the file there before is untouched: free some space, then go on" in err
    assert 0 < read_tensors(out / "checkpoints" / "last.safetensors")[1]["state"]["step"] < STEPS
    ballast.unlink()
    processes.start(*train(out, pairs, 1e9))
    assert processes.ended()[0] == 0
    assert same(out / "model.safetensors", whole[0] / "model.safetensors") and rows(out) == rows(whole[0])
