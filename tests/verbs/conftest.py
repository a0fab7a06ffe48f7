"""A small file of pairs, a run trained on it, and processes of the command line that can be killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plait import cli

SMALL = ["--preset", "modern-tiny", "--batch-tokens", "512"]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """160 lines: spaced letters, and the same in capitals from behind."""
    draw, path = random.Random(1), tmp_path_factory.mktemp("data") / "pairs.tsv"
    rows = [[draw.choice("abcdefgh") for _ in range(draw.randint(2, 6))] for _ in range(160)]
    path.write_text("".join(f"{' '.join(row)}\t{' '.join(reversed(row)).upper()}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def plait(capsys):
    """plait(words ...) -> (exit code, stdout, stderr), in this process; a traceback would be an error of the test."""

    def call(*words) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def refused(plait):
    """refused(words, *phrases): exit code 2, nothing on stdout, and every phrase on stderr."""

    def check(words, *phrases) -> str:
        code, out, err = plait(*words)
        assert code == 2, err
        assert out == "" and "Traceback" not in err
        for phrase in phrases:
            assert phrase in err, f"{phrase!r} is not in:\n{err}"
        return err

    return check


@pytest.fixture(scope="session")
def made(pairs, tmp_path_factory) -> Path:
    """A finished run; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "made"
    words = ["train", "translation", "--data", pairs, "--out", out, "--steps", "40", "--evaluations", "4", "--average", "2", *SMALL]
    assert cli.main([str(word) for word in words]) == 0
    return out


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "run"))


SERVER = """
import json, os, sys, traceback
import torch
torch.set_num_threads(1)
import plait.cli, plait.verbs.training, plait.train.curves, matplotlib.figure, matplotlib.backends.backend_agg
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for name, fd in (("out", 1), ("err", 2)):
            os.dup2(os.open(job[name], os.O_CREAT | os.O_WRONLY | os.O_TRUNC), fd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = 1
        try:
            exec(job["before"])
            code = plait.cli.main(job["words"])
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
    sys.stdin.readline()  # until it is asked for, an ended process keeps its number, so that a kill never meets another one
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Processes:
    """Runs the command line in processes of their own, forked from one that has imported torch already (which takes seconds)."""

    def __init__(self, folder: Path):
        self.folder, self.pid = folder, 0
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        with open(folder / "server.err", "w") as err:
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True)
            self.server = subprocess.Popen([sys.executable, "-W", "ignore", "-c", SERVER], env=env, **pipes)  # type: ignore[call-overload]
        assert self.line() == "ready", (folder / "server.err").read_text()

    def line(self) -> str:
        return self.server.stdout.readline().strip()  # type: ignore[union-attr]

    def start(self, *words, before: str = "") -> int:
        """The id of a process that runs `before` (code) and then the command line."""
        job = {"words": [str(word) for word in words], "before": before, "out": str(self.folder / "out"), "err": str(self.folder / "err")}
        self.server.stdin.write(json.dumps(job) + "\n")  # type: ignore[union-attr]
        self.server.stdin.flush()  # type: ignore[union-attr]
        self.pid = int(self.line())
        return self.pid

    def ended(self) -> tuple[int, str, str]:
        """Waits for the process: exit code (negative: the signal that ended it), stdout, stderr."""
        self.server.stdin.write("\n")  # type: ignore[union-attr]
        self.server.stdin.flush()  # type: ignore[union-attr]
        self.pid = 0
        return int(self.line()), (self.folder / "out").read_text(), (self.folder / "err").read_text()


@pytest.fixture(scope="session")
def launcher(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("no processes can be forked and killed on this system")
    made = Processes(tmp_path_factory.mktemp("processes"))
    yield made
    made.server.stdin.close()
    made.server.wait(10)
    made.server.stdout.close()


@pytest.fixture
def processes(launcher):
    yield launcher
    if launcher.pid:  # left by a test that failed
        os.kill(launcher.pid, signal.SIGKILL)
        launcher.ended()
