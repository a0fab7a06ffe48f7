"""The checkpoints of a run: written while training goes on, read by whatever ranks go on with it."""

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.errors import InputError
from plait.train.checkpoints import FORMAT, mean_of, read_tensors, write_tensors
from plait.train.parallel import Team
from plait.train.placement import fill


class Keeper:
    """`last`: all that a run needs to go on; `best` and the evaluated ones: weights alone.

    One process writes files one after the other in a thread of its own, each beside its place and then renamed, from a copy that is
    taken when it is asked to; a fault (a full disk) is raised by the next call, or by `wait`. Several ranks write `last` together, as
    shards, and wait for it. A run that went on with other ranks may hold both kinds for a moment: the one of the later step counts.
    """

    def __init__(self, folder: Path, team: Team):
        self.folder, self.team = folder, team
        if team.first:
            folder.mkdir(parents=True, exist_ok=True)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future | None = None

    @property
    def last(self) -> Path:
        return self.folder / "last.safetensors"

    @property
    def best(self) -> Path:
        return self.folder / "best.safetensors"

    def clear(self) -> None:
        """Away with the parts of a write that was killed."""
        for part in self.folder.glob(".*.part") if self.team.first else ():
            if part.is_file():
                part.unlink(missing_ok=True)

    # --- everything

    def save(self, step: int, tensors: Mapping[str, Tensor], alone: Mapping[str, Tensor], note: Any) -> None:
        """`alone` is what only a single process keeps and goes on with: the states of its generators."""
        note = {"format": FORMAT, **note}
        if self.team.size == 1:
            self.behind(self.write_last, copied({**tensors, **alone}), note)
        else:
            from plait.train.shards import Shards

            Shards(self.folder, self.team).write(step, tensors, note)
            if self.team.first:
                self.last.unlink(missing_ok=True)

    def write_last(self, tensors: Mapping[str, Tensor], note: Any) -> None:
        write_tensors(self.last, tensors, note)
        for older in self.folder.glob("step-*/"):
            shutil.rmtree(older)

    def newest(self) -> Path | None:
        """A file, or a folder of shards: a run may go on with other ranks than it had."""
        from plait.train.shards import Shards

        shards = Shards(self.folder, self.team).last
        if shards is None or not self.last.exists():
            return shards or (self.last if self.last.exists() else None)
        step = read_tensors(self.last)[1]["state"]["step"]
        return self.last if step > int(shards.name.removeprefix("step-")) else shards

    def read(self, tensors: Mapping[str, Tensor], alone: Callable[[Mapping[str, Tensor]], None]) -> Any:
        """Fills the tensors in place from the newest, each rank its own part; the note, None where there is none."""
        place = self.newest()
        if place is None:
            return None
        if place.is_dir():
            from plait.train.shards import Shards

            note = Shards(self.folder, self.team).read(place, tensors)
        else:
            there, note = read_tensors(place)
            if not isinstance(note, dict) or note.get("format") != FORMAT:
                found = note.get("format") if isinstance(note, dict) else None
                raise InputError(f"{place}: is a checkpoint of format {found}, this version reads format {FORMAT}: start a new run")
            filled(tensors, there, place)
            if self.team.size == 1:
                alone(there)
        return note

    # --- weights

    def write(self, path: Path, weights: Mapping[str, Tensor], note: Any) -> None:
        """Weights, each in one piece, by the first rank; all ranks must ask."""
        whole = copied(self.team.whole(weights))
        if self.team.first:
            self.behind(write_tensors, path, whole, {"format": FORMAT, **note})

    def evaluated(self, step: int) -> Path:
        return self.folder / f"step-{step:08}.safetensors"

    def all_evaluated(self) -> list[Path]:
        self.wait()
        return sorted(self.folder.glob("step-*.safetensors"))

    def mean(self, last: int) -> dict[str, Tensor] | None:
        """The mean of the last evaluated weights (Vaswani et al. 2017, section 6.1); None where there are none."""
        files = self.all_evaluated()[-last:]
        return mean_of(files) if files else None

    # --- behind

    def behind(self, work: Callable[..., Any], *given: Any) -> None:
        """Done by the thread, once what it does now is done: one copy is held at a time."""
        self.wait()
        self.pending = self.thread.submit(work, *given)

    def wait(self) -> None:
        """Until what was begun is on the disk."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}


@torch.no_grad()
def filled(tensors: Mapping[str, Tensor], there: Mapping[str, Tensor], place: Path) -> None:
    """Each tensor takes the values of the file's one; InputError names all that do not fit."""
    faults = [f"{name}: is not in the checkpoint" for name in tensors if name not in there]
    wrong = [name for name in tensors if name in there and there[name].shape != tensors[name].shape]
    faults += [f"{name}: {list(there[name].shape)} there, {list(tensors[name].shape)} here" for name in wrong]
    if faults:
        raise InputError(f"{place}: is the checkpoint of another model or optimizer", faults)
    for name, tensor in tensors.items():
        fill(tensor, there[name].to(tensor.device))
