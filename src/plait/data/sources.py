"""The files a run was trained on, by the sha256 of their bytes: whether they are still what they were."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from plait.errors import InputError


def digests(paths: Sequence[str | Path]) -> dict[str, str]:
    """path -> sha256 of the file as it lies there (not unpacked); InputError names all that cannot be read."""
    found, faults = dict[str, str](), list[str]()
    for path in map(Path, paths):
        try:
            with open(path, "rb") as file:
                found[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            faults.append(f"{path}: no such file")
        except OSError as error:
            faults.append(f"{path}: cannot be read: {error.strerror or error}")
    if faults:
        raise InputError("the data cannot be read", faults)
    return found


def check_unchanged(then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """InputError that names each file which differs from what the run began with."""
    if changed := [f"{path}: changed since this run began" for path, digest in now.items() if then.get(path, digest) != digest]:
        raise InputError("cannot go on with other data: put the old files back, or start a new run with another --out", changed)
