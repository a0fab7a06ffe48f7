"""The checkpoints of a run, written while training goes on."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from plait.train.checkpoints import write_tensors


class Keeper:
    """Writes files of tensors one after the other in a thread of its own, each beside its place and then renamed.

    What is written is a copy taken when `write` is called. A fault (a full disk) is raised by the next call, or by `wait`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future | None = None

    def clear(self) -> None:
        """Away with the parts of a write that was killed."""
        for part in self.folder.glob(".*.part"):
            part.unlink(missing_ok=True)

    @property
    def last(self) -> Path:
        return self.folder / "last.safetensors"

    @property
    def best(self) -> Path:
        return self.folder / "best.safetensors"

    def write(self, path: Path, tensors: Mapping[str, Tensor], note: Any) -> None:
        self.wait()  # one copy is held at a time
        copy = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
        self.pending = self.thread.submit(write_tensors, path, copy, note)

    def wait(self) -> None:
        """Until what was begun is on the disk."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def evaluated(self, step: int) -> Path:
        return self.folder / f"step-{step:08}.safetensors"

    def all_evaluated(self) -> list[Path]:
        self.wait()
        return sorted(self.folder.glob("step-*.safetensors"))
