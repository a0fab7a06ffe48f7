"""What a run says while it works: metrics.jsonl always, and on stderr a live bar (or plain lines where there is no terminal)."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from plait.errors import InputError
from plait.train.checkpoints import write_atomically


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, flushed at once, so that a killed run keeps all but the line being written."""

    def __init__(self, path: Path):
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue  # the half line of a killed run
        return rows

    def cut_after(self, step: int) -> None:
        """A resumed run writes the steps after its checkpoint anew."""
        rows = [row for row in self.rows() if row.get("step", 0) <= step]
        if self.path.exists():
            write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def add(self, row: dict[str, Any]) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written: {error.strerror}; the last checkpoint is whole: free space, then --resume"
            ) from None


def duration(seconds: float) -> str:
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Reporter:
    """Progress for people: a bar with loss, tokens a second and time left; a line every `every` seconds when it is not a terminal."""

    def __init__(self, quiet: bool = False, every: float = 15.0):
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.every, self.last = every, 0.0
        self.bar: Progress | None = None
        self.live = self.console.is_terminal and not quiet

    def __enter__(self) -> "Reporter":
        if self.live:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"), TimeElapsedColumn())
            bar = self.bar = Progress(*columns, TextColumn("{task.fields[more]}"), console=self.console)
            self.task = bar.add_task("training", total=1.0, more="")
            bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def progress(self, step: int, progress: float, seconds: float, loss: float, speed: float, unit: str = "tokens") -> None:
        """`progress` in [0, 1]; `seconds` spent so far; `speed` in units a second."""
        left = duration(seconds * (1 - progress) / progress) if progress > 0 else "?"
        more = f"step {step}  loss {loss:.3f}  {speed:,.0f} {unit}/s  {left} left"
        if self.bar is not None:
            self.bar.update(self.task, completed=progress, more=more)
        elif time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            self.say(f"{100 * progress:5.1f}%  {duration(seconds)}  {more}")


def process_age() -> float:
    """Seconds since this process started, imports included; what `--minutes` counts from."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - ticks / _clock_ticks()
    except (OSError, ValueError, IndexError):
        return time.perf_counter() - _imported


def _clock_ticks() -> int:
    import os

    return os.sysconf("SC_CLK_TCK")


_imported = time.perf_counter()
