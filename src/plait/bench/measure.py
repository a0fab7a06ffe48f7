"""Timing in turn, and what is written down of it."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from plait.train.checkpoints import write_json

FLAGS = ("fma", "avx", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8")
PRODUCT = "matrix product"  # the contestant that measures the limit


class Turns:
    """Contestants timed in turn, A B C A B C ..., so that what disturbs the machine disturbs all of them; the first rounds warm up.

    `rest` seconds of sleep between two turns let the threads of one library stop spinning before the next begins.
    """

    def __init__(self, contestants: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1, rest: float = 0.0):
        self.contestants, self.rounds, self.warmup, self.rest = dict(contestants), rounds, warmup, rest
        self.all: dict[str, list[float]] = {name: [] for name in self.contestants}

    def round(self) -> None:
        for name, work in self.contestants.items():
            if self.rest:
                time.sleep(self.rest)
            start = time.perf_counter()
            work()
            self.note(name, time.perf_counter() - start)

    def note(self, name: str, seconds: float) -> None:
        """A turn that was timed elsewhere: of a loop that cannot be called step by step and calls `round` itself."""
        self.all.setdefault(name, []).append(seconds)

    def run(self) -> "Turns":
        for _ in range(self.warmup + self.rounds):
            self.round()
        return self

    @property
    def times(self) -> dict[str, list[float]]:
        """Seconds of each contestant in each counted round."""
        return {name: seconds[self.warmup : self.warmup + self.rounds] for name, seconds in self.all.items()}


class Product:
    """The product of two square matrices: what the machine reaches with nothing in its way. The best of a few is a turn's figure."""

    def __init__(self, size: int = 1024, repeats: int = 3):
        self.size, self.repeats = size, repeats
        self.a, self.b = torch.randn(size, size), torch.randn(size, size)
        self.rates: list[float] = []

    @torch.inference_mode()
    def __call__(self) -> None:
        best = float("inf")
        for _ in range(self.repeats):
            start = time.perf_counter()
            torch.mm(self.a, self.b)
            best = min(best, time.perf_counter() - start)
        self.rates.append(2 * self.size**3 / best)

    def rate(self, rounds: int) -> float:
        """Operations a second: the median of the last `rounds` turns."""
        return median(self.rates[-rounds:])


def compared(times: Mapping[str, list[float]], ours: str) -> dict[str, dict[str, Any]]:
    """How many times as fast as each of the others `ours` is, from turns of the same round: {name: {median, lowest, highest, rounds}}."""
    found = {}
    for name, seconds in times.items():
        if name == ours or ours not in times:
            continue
        ratios = [theirs / own for theirs, own in zip(seconds, times[ours], strict=True)]
        found[name] = {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios), "rounds": ratios}
    return found


def summary(times: Mapping[str, list[float]], tokens: int, operations: int, rate: float, ours: str) -> dict[str, Any]:
    """What a timed job says: `tokens` and `operations` of one turn, `rate` the measured product rate in operations a second."""
    ratios = compared(times, ours)
    limit = {
        "product_rate": rate,
        "operations_per_token": operations / tokens,
        "tokens_per_second": tokens * rate / operations,
        "what": f"{operations / tokens / 1e6:.1f} M operations a token over {rate / 1e9:.0f} G operations a second of a float32 product",
    }
    contestants = {}
    for name, seconds in times.items():
        speed = tokens / median(seconds)
        row: dict[str, Any] = {"seconds": seconds, "median": median(seconds), "tokens_per_second": speed}
        row["of_limit"] = speed / limit["tokens_per_second"]
        contestants[name] = row
    return {"tokens": tokens, "contestants": contestants, "ratios": ratios, "limit": limit}


def table(title: str, found: Mapping[str, Any], ours: str) -> str:
    """`summary` for a reader."""
    rows = [["", "tokens/s", "ms a turn", "of the limit", f"{ours} is so many times as fast"]]
    for name, row in found["contestants"].items():
        ratio = found["ratios"].get(name)
        times = "" if ratio is None else f"{ratio['median']:.2f}  ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
        rows.append([name, f"{row['tokens_per_second']:,.0f}", f"{1000 * row['median']:,.0f}", f"{100 * row['of_limit']:.0f} %", times])
    limit = found["limit"]
    rows.append(["limit", f"{limit['tokens_per_second']:,.0f}", "", "100 %", limit["what"]])
    return "\n".join([title, *aligned(rows)])


def aligned(rows: list[list[str]]) -> list[str]:
    """First column to the left, the last as it is, figures between to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        middle = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *middle, row[-1]]).rstrip())
    return lines


# ---- where and when ----


def machine() -> dict[str, Any]:
    """The processor with what it can do, and the versions that decide its speed."""
    model, flags = platform.processor() or platform.machine(), []
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in lines.items()}
        model, flags = named.get("model name", model), [flag for flag in FLAGS if flag in named.get("flags", "").split()]
    except OSError:
        pass  # not Linux
    told = {"cpu": model, "flags": flags, "cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    return {**told, "torch": torch.__version__, "torch_uses": torch.backends.cpu.get_cpu_capability()}


def commit() -> dict[str, Any]:
    """Of the source tree that runs; a measurement of changed files says so."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(Path(__file__).parent), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", ":/src"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed": None}


def load_average() -> float | None:
    """Of the last minute: what else ran while this was measured; None where the system does not say."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def record(job: str, threads: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The head of a result file."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    about = {"job": job, "date": now, **commit(), "dtype": "float32", "threads": threads, "load_before": load_average()}
    return {**about, "machine": machine(), "settings": dict(settings)}


def write(found: Mapping[str, Any], out: Path) -> None:
    write_json(out, json.loads(json.dumps(found, default=str)))
