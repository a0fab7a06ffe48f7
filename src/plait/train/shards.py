"""Checkpoints of models that are spread over ranks: a folder of safetensors, to which every rank writes what it holds.

They are written and read by torch.distributed.checkpoint in its safetensors form: which part of which tensor a file holds stands in the
file's own header, as JSON, and nothing is pickled. (Its default form has a `.metadata` that is, and reading it could run anything.)
Another number of ranks, or another layout, reads the parts it needs.
"""

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from plait.errors import InputError
from plait.train.checkpoints import write_json
from plait.train.parallel import Team

NOTE = "note.json"
CHUNK = 2**24  # bytes read at a time


class Shards:
    """The checkpoints `folder/step-00000120` and so on: the last one stays until the next is whole and has its name."""

    def __init__(self, folder: Path, team: Team):
        self.folder, self.team = folder, team

    @property
    def last(self) -> Path | None:
        """The newest whole checkpoint."""
        return max((found for found in self.folder.glob("step-*") if (found / NOTE).is_file()), default=None)

    def write(self, step: int, tensors: Mapping[str, Tensor], note: Any) -> Path:
        """What is not spread is written once. `note` is anything JSON can hold. All ranks call this, and come back when it is done."""
        place = self.folder / f"step-{step:08}"
        part = place.with_name(f".{place.name}.part")
        with _explained(f"{place}: could not be written, the checkpoint before is kept"):
            if self.team.first:
                for old in self.folder.glob(".step-*.part"):  # of a write that was killed
                    shutil.rmtree(old)
                part.mkdir(parents=True)
            self.team.barrier()
            _save(tensors, part, self.team)
            mine = {file.name: checksum(file) for file in part.glob(f"shard-{self.team.rank + 1:05}-*")}
            files = {name: crc for one in self.team.gathered(mine) for name, crc in one.items()}
            if self.team.first:
                write_json(part / NOTE, {"note": note, "crc32": files})
                if place.exists():  # the same step again, after a resume from an older checkpoint
                    shutil.rmtree(place)
                os.replace(part, place)
                for old in self.folder.glob("step-*/"):
                    if old != place:
                        shutil.rmtree(old)
        self.team.barrier()
        return place

    def read(self, place: Path, tensors: Mapping[str, Tensor]) -> Any:
        """Fills the tensors in place, each rank its own parts, whatever ranks wrote them; gives the note."""
        note = _checked(place, self.team)
        there = {name: found.size for name, found in _described(place).items()}
        faults = [f"{name}: is not in the checkpoint" for name in tensors if name not in there]
        faults += [f"{name}: is not in this run" for name in there if name not in tensors]
        wrong = {name for name, t in tensors.items() if name in there and there[name] != (t.shape or (1,))}
        faults += [f"{name}: {list(there[name])} there, {list(tensors[name].shape)} here" for name in sorted(wrong)]
        if faults:
            raise InputError(f"{place}: is the checkpoint of another model or optimizer", faults)
        _load(tensors, place, self.team)
        return note


def joined(place: Path) -> tuple[dict[str, Tensor], Any]:
    """All tensors of a checkpoint, each in one piece, and its note. Needs no ranks: what is exported goes through here."""
    alone = Team(device=torch.device("cpu"))
    note = _checked(place, alone)
    tensors = {name: torch.empty(found.size, dtype=found.properties.dtype) for name, found in _described(place).items()}
    _load(tensors, place, alone)
    return tensors, note


def checksum(file: Path) -> str:
    crc = 0
    with open(file, "rb") as data:
        while chunk := data.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return f"{crc:08x}"


def _checked(place: Path, team: Team) -> Any:
    """The note of a checkpoint whose files are what was written; each rank looks at some of them."""
    try:
        about = json.loads((place / NOTE).read_text("utf-8"))
        names = sorted(about["crc32"])
        found = {name: checksum(place / name) for name in names[team.rank :: team.size]}
        faults = [f"{name}: its checksum differs: the disk or a copy damaged it" for name in found if found[name] != about["crc32"][name]]
    except OSError as error:
        faults = [f"{error.filename}: {error.strerror}"]
    except (ValueError, KeyError, TypeError):
        faults = [f"{NOTE}: is damaged"]
    faults = [fault for one in team.gathered(faults) for fault in one]
    if faults:
        raise InputError(f"{place}: is not a whole checkpoint; take another one of the run", faults)
    return about["note"]


# ---- torch.distributed.checkpoint, in safetensors ----


def _flat(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Single numbers as vectors of one: the reader cannot cut what has no dimension."""
    return {name: t.detach().view(1) if t.ndim == 0 else t.detach() for name, t in tensors.items()}


def _save(tensors: Mapping[str, Tensor], part: Path, team: Team) -> None:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # said of every single process
        checkpoint.save(_flat(tensors), storage_writer=HuggingFaceStorageWriter(str(part), save_distributed=True), no_dist=team.size == 1)


def _load(tensors: Mapping[str, Tensor], place: Path, team: Team) -> None:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    with _explained(f"{place}: could not be read"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # said of every single process
        checkpoint.load(_flat(tensors), storage_reader=HuggingFaceStorageReader(str(place)), no_dist=team.size == 1)


def _described(place: Path) -> Any:
    """Size and dtype of each tensor, from the headers of all files."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return HuggingFaceStorageReader(str(place)).read_metadata().state_dict_metadata


@contextmanager
def _explained(what: str) -> Iterator[None]:
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"{what}: {error}") from None
    except CheckpointException as error:
        faults = [f"rank {rank}: {fault[0]}" for rank, fault in error.failures.items()]
        raise InputError(what, faults) from None
