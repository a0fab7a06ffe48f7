"""Contestants in processes of their own: one works while the others sleep, one that fails is told of, and none stays behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plait.bench.processes import Worker
from plait.errors import InputError

LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell of processes as Linux does")
CONTESTANT = """
import os, sys, threading, time
print("a library says hello")

class Held:
    def __init__(self, size=0):
        self.kept = bytearray(size)

    def go(self, rows=()):
        print("and goes on")
        return [[id + 1 for id in row] for row in rows]

    def spin(self, seconds):
        end = time.monotonic() + seconds

        def turn():
            while time.monotonic() < end:
                pass

        threading.Thread(target=turn).start()

    def fill(self, size):
        bytearray(b"x") * size
        return os.getpid()

    def fail(self):
        raise ValueError("cannot")

    def die(self):
        print("Aborted: no memory")
        sys.stdout.flush()
        os._exit(7)
"""


@pytest.fixture
def held(tmp_path, monkeypatch):
    (tmp_path / "contestant.py").write_text(CONTESTANT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda **options: Worker("it", "contestant:Held", options, 1, tmp_path / "log")


def test_a_method_is_called_and_what_libraries_print_is_no_answer(held):
    with held() as worker:
        assert worker.ask("go", rows=[[1, 2], [5]])["answer"] == [[2, 3], [6]]
        assert worker.ask("go")["answer"] == [] and worker.ask("go")["seconds"] >= 0
    assert worker.child.poll() is not None
    assert "hello" in worker.log.read_text() and "goes on" in worker.log.read_text()


def test_a_method_that_fails_is_told_and_the_next_is_done(held):
    with held() as worker:
        with pytest.raises(InputError, match="ValueError: cannot"):
            worker.ask("fail")
        assert worker.ask("go", rows=[[1]])["answer"] == [[2]]


def test_a_process_that_dies_is_told_with_its_last_words(held):
    with held() as worker:
        with pytest.raises(InputError, match="it: its process ended with 7: Aborted: no memory"):
            worker.ask("die")
        with pytest.raises(InputError, match="ended with 7"):
            worker.ask("go")


def test_what_cannot_be_made_is_told(held):
    with pytest.raises(InputError, match="unexpected keyword argument 'sizes'"):
        held(sizes=3)


@LINUX
def test_nothing_is_answered_before_all_threads_sleep(held):
    with held() as worker:
        start = time.monotonic()
        assert worker.ask("spin", seconds=0.5)["seconds"] < 0.4
        assert time.monotonic() - start > 0.4


@LINUX
def test_memory_is_of_the_process_alone_and_at_its_most(held):
    with held() as small, held(size=10**8) as large:
        before = small.loaded["peak_bytes"]
        assert before < 10**8 < large.loaded["peak_bytes"]
        filled = small.ask("fill", size=3 * 10**8)
        assert filled["peak_bytes"] > before + 2.9e8 and filled["resident_bytes"] < before + 10**8


@LINUX
def test_processes_end_with_a_parent_that_is_killed(tmp_path, held, monkeypatch):
    """Even one that could not clean up: its pipe closes."""
    lines = (
        "from plait.bench.processes import Worker\nfrom pathlib import Path\nimport time\n"
        f"w = Worker('it', 'contestant:Held', {{}}, 1, Path({str(tmp_path / 'log')!r}))\n"
        "print(w.ask('fill', size=1)['answer'], flush=True)\ntime.sleep(60)"
    )
    src = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([src, str(tmp_path)])}
    with subprocess.Popen([sys.executable, "-c", lines], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
    end = time.monotonic() + 10
    while time.monotonic() < end and Path(f"/proc/{child}/stat").exists() and state_of(child) != "Z":
        time.sleep(0.05)
    assert not Path(f"/proc/{child}/stat").exists() or state_of(child) == "Z"


def state_of(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
