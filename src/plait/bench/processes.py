"""Contestants in processes of their own, which stay alive: a library is loaded once, and works only while it is asked to.

In one process the threads of one library wait actively while the next works, and its memory cannot be told from the others'. Here the
parent asks one process at a time, and the next one only when all threads of the last are asleep: how a library waits between its own
steps is left as it comes, since that is part of its speed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from plait.errors import InputError

PATIENCE = 2.0  # seconds to wait for threads that spin on: more than the 0.2 of Intel's OpenMP


class Worker:
    """The parent's end of a process that holds one object: `ask` calls a method of it, and nothing else runs there.

    `make` is MODULE:NAME of what is called with `options` (JSON) to make the object. InputError, with what the process said last, where
    it fails or dies.
    """

    def __init__(self, name: str, make: str, options: Mapping[str, Any], threads: int, log: Path):
        self.name, self.log = name, log
        src = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [src, os.environ.get("PYTHONPATH")]))
        # OpenMP, torch's and MKL's threads too, reads its variable once; libraries with threads of another kind get an option.
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        words = [sys.executable, "-m", "plait.bench.processes", json.dumps({"make": make, "options": options})]
        with log.open("wb") as errors:
            self.child = subprocess.Popen(
                words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
            )
        try:
            self.loaded = self.heard()
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, **options: Any) -> dict[str, Any]:
        """{answer, seconds, peak_bytes, resident_bytes} of a call of the object's method."""
        assert self.child.stdin is not None
        try:
            self.child.stdin.write(json.dumps({"do": method, **options}) + "\n")
            self.child.stdin.flush()
        except OSError:
            raise self.failed() from None
        return self.heard()

    def heard(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            raise self.failed()
        if "error" in (said := json.loads(line)):
            raise InputError(said["error"])
        self.asleep()
        return said

    def failed(self) -> InputError:
        code = self.child.wait()
        last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        return InputError(f"{self.name}: its process ended with {code}: {(last or ['it said nothing'])[0][:300]}")

    def asleep(self) -> bool:
        """Waits until no thread of the process runs; where the system does not tell of threads, long enough for most to stop spinning."""
        tasks, end, quiet = Path(f"/proc/{self.child.pid}/task"), time.monotonic() + PATIENCE, 0
        if not tasks.exists():
            time.sleep(0.3)
            return True
        while quiet < 3 and time.monotonic() < end:
            time.sleep(0.005)
            quiet = 0 if any(state(task) == "R" for task in tasks.iterdir()) else quiet + 1
        return quiet == 3

    def close(self) -> None:
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(OSError):  # what it was to be told cannot be told any more
                    pipe.close()
        try:
            self.child.wait(1.0)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Steps:
    """What a process holds that trains: it takes `steps` steps when asked to, and tells the mean loss of each and the seconds of all."""

    def go(self, steps: int) -> dict[str, Any]:
        start = time.perf_counter()
        return {"losses": [self.step() for _ in range(steps)], "seconds": time.perf_counter() - start}

    def step(self) -> float:
        raise NotImplementedError


def state(task: Path) -> str:
    """Of a thread, as Linux writes it: R runs or would."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "X"  # it has ended meanwhile


# ---- in the process ----


def memory() -> dict[str, int]:
    """Of this process: the most that it had resident since it began, and what it has now."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return {name: int(lines[key].split()[0]) * 1024 for name, key in (("peak_bytes", "VmHWM"), ("resident_bytes", "VmRSS"))}
    except (OSError, KeyError):
        pass  # not Linux
    try:
        import resource

        return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
    except ImportError:
        return {}


def main(words: list[str]) -> None:
    """Makes the object, then does what each line of stdin asks, until there is no more: when the parent closes it, or has died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    spec = json.loads(words[0])

    def done(call: Any, options: Mapping[str, Any]) -> Any:
        """The call's result, told with its time and memory; None where it failed, which is told too."""
        start = time.perf_counter()
        try:
            found = call(**options)
            said: dict[str, Any] = {"seconds": time.perf_counter() - start, **memory()}
            plain = isinstance(found, int | float | str | list | dict | None)
            out.write(json.dumps({"answer": found if plain else None, **said}) + "\n")
        except InputError as error:
            found = None
            out.write(json.dumps({"error": str(error)}) + "\n")
        except Exception as error:
            traceback.print_exc()
            found = None
            out.write(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}) + "\n")
        out.flush()
        return found

    def made(**options: Any) -> Any:
        module, _, name = spec["make"].partition(":")
        return getattr(import_module(module), name)(**options)

    if (held := done(made, spec["options"])) is not None:
        for line in sys.stdin:
            asked = json.loads(line)
            done(getattr(held, asked.pop("do")), asked)
    out.flush()
    os._exit(0)  # libraries with threads of their own take their time to end, or never do


if __name__ == "__main__":
    main(sys.argv[1:])
