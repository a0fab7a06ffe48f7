"""Checkpoints: one safetensors file each, written whole or not at all, holding everything a run needs to go on exactly."""

import errno
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from plait.errors import InputError

FORMAT = 1  # of the state below; a file of another format is refused, not guessed at


def write_atomically(path: Path, data: bytes) -> None:
    """The file is the old one or the new one at every moment, also after a power cut; a full disk leaves the old one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            kept = "the file there before is untouched" if path.exists() else "nothing was written"
            raise InputError(f"{path}: the disk is full ({len(data) / 1e6:.1f} MB needed); {kept}: free some space, then go on") from None
        raise InputError(f"{path}: cannot be written: {error.strerror}; choose another place with --out") from None
    finally:
        with suppress(OSError):
            beside.unlink()


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Any = None) -> None:
    """`note` is anything JSON can hold; it comes back from `read_tensors`."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    words = json.dumps(note)
    write_atomically(path, save(flat, {"format": "pt", "plait": words, "crc32": checksum(flat, words)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """What `write_tensors` wrote; of a file of others the tensors, and no note. InputError where a bit of it has changed."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if "plait" in about and about.get("crc32") != checksum(tensors, about["plait"]):
            raise ValueError("its checksum differs: the disk or a copy damaged it")
        return tensors, json.loads(about.get("plait", "null"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: is not a whole safetensors file ({error}); take another checkpoint of the run") from None


def checksum(tensors: Mapping[str, Tensor], note: str) -> str:
    """CRC-32 over names and bytes: safetensors itself would not notice a changed weight."""
    crc = zlib.crc32(note.encode())
    for name in sorted(tensors):
        data = tensors[name].reshape(-1).view(torch.uint8).numpy().data
        crc = zlib.crc32(data, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def mean_of(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of the tensors of several files, summed in float64."""
    files = [read_tensors(path)[0] for path in paths]
    return {name: torch.stack([f[name].double() for f in files]).mean(0).to(like.dtype) for name, like in files[0].items()}


def rng_state() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def set_rng_state(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda0" in states:
        torch.cuda.set_rng_state_all([states[f"cuda{i}"] for i in range(torch.cuda.device_count())])


def grouped(**groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named groups of tensors as one flat dictionary, `group/name`; `group_of` takes one out again."""
    return {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


def group_of(tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    return {name.split("/", 1)[1]: tensor for name, tensor in tensors.items() if name.startswith(f"{group}/")}
