"""Files below a folder or in a zip archive, found by name and read when they are asked for."""

import hashlib
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath

from plait.errors import InputError

LARGEST = 2**30  # bytes of one unpacked file: what says that it holds more is a bomb, or no picture
PARTS = {
    "train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
LISTS = frozenset(".txt .json .jsonl .ndjson .csv .tsv .tab .parquet .pq .gz".split())  # files that name others


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a zip archive, or with a slash at the end of its name a folder there."""

    archive: Path
    name: str

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"

    def read(self) -> bytes:
        try:
            opened = _opened(self.archive)
            if (size := opened.getinfo(self.name).file_size) > LARGEST:
                raise InputError(f"{self}: unpacks to {size:,} bytes, more than {LARGEST:,}")
            return opened.read(self.name)
        except (OSError, KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:  # encrypted too
            raise InputError(f"{self}: cannot be unpacked: {error}") from None

    @contextmanager
    def unpacked(self) -> Iterator[Path]:
        """The file, or the folder with the files in it, on disk for as long as it is needed."""
        with tempfile.TemporaryDirectory(prefix="plait-") as folder:
            if not self.name.endswith("/"):
                path = Path(folder) / PurePosixPath(self.name).name
                path.write_bytes(self.read())
                yield path
                return
            for name in _opened(self.archive).namelist():
                if name.startswith(self.name) and "/" not in name[len(self.name) :] and name != self.name:
                    (Path(folder) / name[len(self.name) :]).write_bytes(Member(self.archive, name).read())
            yield Path(folder)


Source = Path | bytes | Member  # of a picture or a clip: a file, the bytes of a table's cell, a file in an archive


def suffix_of(source: Source | str) -> str:
    """ ".png" and the like of a source or of a name, in small letters; of bytes nothing is known."""
    return "" if isinstance(source, bytes) else os.path.splitext(source if isinstance(source, str) else source.name)[1].lower()


class Tree:
    """The files below a folder or in a zip archive, but for hidden ones. `names` are relative to it, with slashes, in natural order."""

    def __init__(self, place: str | Path):
        self.place = Path(place)
        if not self.place.exists():
            raise InputError(f"{self.place}: no such file or folder")
        self.zipped = not self.place.is_dir()
        if self.zipped and not zipfile.is_zipfile(self.place):
            raise InputError(f"{self.place}: is neither a folder nor a whole zip archive")

    @cached_property
    def names(self) -> list[str]:
        if self.zipped:
            try:
                found = [name for name in _opened(self.place).namelist() if not name.endswith("/")]
            except (OSError, zipfile.BadZipFile) as error:
                raise InputError(f"{self.place}: is no whole zip archive: {error}") from None
        else:
            found = list(_below(self.place))
        return sorted((name for name in found if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))), key=natural)

    @cached_property
    def _members(self) -> frozenset[str]:
        return frozenset(self.names)

    def find(self, name: str) -> Path | Member | None:
        """The file of this name, which may lead upwards (`../pictures/a.jpg`) and, on disk, be absolute."""
        if not name or "\0" in name:
            return None
        if not self.zipped:
            path = self.place / name
            try:
                return path if path.is_file() else None
            except OSError:  # a name that is too long
                return None
        plain = os.path.normpath(name.replace("\\", "/")).replace(os.sep, "/")
        return Member(self.place, plain) if plain in self._members else None

    def source(self, name: str) -> Path | Member:
        """A file, or with a slash at its end a folder, that `names` told of."""
        return Member(self.place, name) if self.zipped else self.place / name

    def where(self, name: str) -> str:
        return str(self.source(name))

    @contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        """A file for readers that want a path; messages about it name its place in the archive."""
        source = self.source(name)
        if isinstance(source, Path):
            yield source
            return
        with source.unpacked() as path:
            try:
                yield path
            except InputError as error:
                there = str(path)
                raise InputError(error.message.replace(there, str(source)), [f.replace(there, str(source)) for f in error.faults]) from None


def natural(name: str) -> list[tuple[int, str]]:
    """To sort by: frame2 before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def root_of(names: list[str]) -> str:
    """The folders that all names lie in ("set/pictures/"); archives often hold one folder with everything."""
    folders = [name.split("/")[:-1] for name in names]
    shared = next((i for i, level in enumerate(zip(*folders)) if len(set(level)) > 1), min(map(len, folders), default=0))
    return "".join(f"{folder}/" for folder in folders[0][:shared]) if names else ""


def part_of(name: str) -> str | None:
    """Which part of a set a file belongs to by its folders (`train/`, `val2017/`), or by a word of a list's name (`instances_val.json`)."""
    *words, file = name.split("/")
    if suffix_of(file) in LISTS:
        words += re.split(r"[^A-Za-z]+", file.rpartition(".")[0])
    return next((PARTS[word] for word in (re.sub(r"\d+$", "", word.lower()) for word in words) if word in PARTS), None)


def _below(place: Path) -> Iterator[str]:
    """Names of all files; links are followed, but no folder is entered twice."""
    seen = set[str]()
    for folder, folders, files in os.walk(place, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(folder, file).relative_to(place).as_posix() for file in files)


def _opened(path: Path) -> zipfile.ZipFile:
    # Of each process its own: what was open before a fork shares its place in the file with the parent.
    return _archive(path, path.stat().st_mtime_ns, os.getpid())


@lru_cache(maxsize=8)
def _archive(path: Path, changed: int, process: int) -> zipfile.ZipFile:
    """Reading from several threads is safe: ZipFile locks its file."""
    return zipfile.ZipFile(path)


def stamp_of(source: Source) -> str:
    """Differs where the content does, as far as can be told without reading it all: by name and size, in an archive by checksum."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, Member):
        return f"{source}:{'' if source.name.endswith('/') else _opened(source.archive).getinfo(source.name).CRC}"
    return f"{source}:{source.stat().st_size if source.is_file() else ''}"


@contextmanager
def on_disk(source: Source) -> Iterator[Path]:
    """The source as a file (or folder) for as long as it is needed."""
    if isinstance(source, Path):
        yield source
    elif isinstance(source, Member):
        with source.unpacked() as path:
            yield path
    else:
        with tempfile.TemporaryDirectory(prefix="plait-") as folder:
            (path := Path(folder) / "clip").write_bytes(source)
            yield path
