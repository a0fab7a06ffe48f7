"""Safetensors files and folders of shards: the header is checked in full before a tensor is read; and what all readers share."""

import difflib
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from plait.errors import InputError
from plait.weights.source import Source

HEADER_LIMIT = 100_000_000  # bytes; the limit of the format's own implementation
MOST_DIMS = 64  # what torch's element-wise operations can take
INT64 = 2**63  # sizes from here on torch cannot hold
T = TypeVar("T")

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16, "U32": torch.uint32,
    "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "C64": torch.complex64,
}  # fmt: skip


class Place(NamedTuple):
    """Where in the file a tensor lies, and as what."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # from the beginning of the file
    count: int  # bytes


class SafetensorsFile:
    """One safetensors file; `read` takes a tensor's bytes from the disk when it is asked, in the dtype they are stored in."""

    def __init__(self, path: str | Path):
        self._bytes = FileBytes(path)
        self.path = self._bytes.path
        self.metadata: Mapping[str, Any]
        self._places, self.metadata = self._header()

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: place.shape for name, place in self._places.items()}

    def read(self, name: str) -> Tensor:
        place = known(self.path, self._places, name)
        data = self._bytes.read(place.start, place.count)
        if place.dtype == torch.bool and bool((data > 1).any()):
            raise InputError(f"{self.path}: {shown(name)} is BOOL and has bytes other than 0 and 1: the file is damaged; download it again")
        return data.view(place.dtype).reshape(place.shape)

    def _header(self) -> tuple[dict[str, Place], Mapping[str, Any]]:
        size = self._bytes.size
        if size < 8:
            raise self._broken(f"it has {size} bytes, and the length of its header alone takes 8")
        count = int.from_bytes(self._bytes.raw(0, 8), "little")
        if count > min(size - 8, HEADER_LIMIT):
            raise self._broken(f"its header would have {count} bytes, {size - 8} follow and at most {HEADER_LIMIT} are read")
        try:
            header, twice = parse_json(self._bytes.raw(8, count))
        except ValueError as error:
            raise self._broken(f"its header is not JSON ({error})") from None
        if not isinstance(header, dict):
            raise self._broken(f"its header is {kind(header)}, not an object of tensors")
        metadata = header.pop("__metadata__", {})
        faults = [f"{shown(name)} stands there twice" for name in twice]
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            faults.append("__metadata__ is not an object of strings")
        begin = 8 + count
        places = {}
        for name, entry in header.items():
            found = place_of(entry, begin, size)
            if isinstance(found, Place):
                places[name] = found
            else:
                faults += [f"{shown(name)}: {fault}" for fault in found]
        faults += overlaps((place.start, place.count, name) for name, place in places.items())
        if not faults and (left := size - begin - sum(place.count for place in places.values())):
            faults.append(f"{left} of its {size - begin} bytes of data belong to no tensor")
        if faults:
            raise self._broken("its header does not fit", faults)
        return places, metadata

    def _broken(self, why: str, faults: Iterable[str] = ()) -> InputError:
        return InputError(f"{self.path}: is not a whole safetensors file: {why}; download it again", faults)


def place_of(entry: Any, begin: int, size: int) -> Place | list[str]:
    """A tensor's place by its entry of the header, or all that is wrong with the entry."""
    if not isinstance(entry, dict):
        return [f"is {kind(entry)}, not an object of dtype, shape and data_offsets"]
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    faults = []
    if not isinstance(dtype, str) or dtype not in DTYPES:
        faults.append(f"dtype {shown(dtype)} is none of {', '.join(DTYPES)}")
    faults += shape_faults(shape)
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets)):
        faults.append(f"data_offsets {shown(offsets)} are not two whole numbers")
    elif not 0 <= offsets[0] <= offsets[1] <= size - begin:
        faults.append(f"data_offsets {shown(offsets)} lie outside the {size - begin} bytes of data that are there")
    if faults:
        return faults
    assert isinstance(offsets, list) and isinstance(shape, list) and isinstance(dtype, str)
    there, needed = offsets[1] - offsets[0], math.prod(shape) * DTYPES[dtype].itemsize
    if there != needed:
        return [f"{dtype} of shape {shape} needs {needed} bytes, its data_offsets {offsets} give {there}"]
    return Place(DTYPES[dtype], tuple(shape), begin + offsets[0], there)


class Shards:
    """Files that are one model, as an index of Hugging Face's layout lists them; what index and shards say must agree.

    Every shard is opened at once, for its header; `path` is the index, `metadata` what the index says beside its map.
    """

    def __init__(self, index: str | Path, open_one: Callable[[Path], Source] = SafetensorsFile):
        found = FileBytes(index)
        self.path = found.path
        where, self.metadata = self._index(found)
        faults, self._of, shapes = [], {}, {}
        files: dict[str, Source] = {}
        for shard in dict.fromkeys(where.values()):
            if not os.path.lexists(self.path.parent / shard):
                faults.append(f"{shard} is missing")
                continue
            try:
                files[shard] = open_one(self.path.parent / shard)
            except InputError as error:
                faults += [error.message, *error.faults]
                continue
            shapes[shard] = files[shard].shapes()
            faults += [f"{shard} has {shown(name)}, the index does not" for name in shapes[shard] if name not in where]
        for name, shard in where.items():
            if shard in files and name not in shapes[shard]:
                faults.append(f"{shown(name)} should be in {shard} and is not")
            elif shard in files:
                self._of[name] = files[shard]
        if faults:
            raise InputError(
                f"{self.path}: the index and its shards do not fit; download what is missing or differs into the folder", faults
            )
        self._shapes = {name: shapes[shard][name] for name, shard in where.items()}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return dict(self._shapes)

    def read(self, name: str) -> Tensor:
        return known(self.path, self._of, name).read(name)

    def _index(self, found: "FileBytes") -> tuple[dict[str, str], Mapping[str, Any]]:
        advice = "download the index again"
        if found.size > HEADER_LIMIT:
            raise InputError(f"{self.path}: has {found.size} bytes, an index at most {HEADER_LIMIT}; {advice}")
        try:
            index, twice = parse_json(found.raw(0, found.size))
        except ValueError as error:
            raise InputError(f"{self.path}: is not JSON ({error}); {advice}") from None
        where = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(where, dict) or not where:
            raise InputError(f"{self.path}: has no weight_map from the names of tensors to the files they are in; {advice}")
        faults = [f"{shown(name)} stands there twice" for name in twice]
        metadata = index.get("metadata", {})
        if not isinstance(metadata, dict):
            faults.append(f"metadata is {kind(metadata)}, not an object")
        shards = dict.fromkeys(shard if isinstance(shard, str) else json.dumps(shard) for shard in where.values())
        faults += [f"{shown(shard)} is not the name of a file beside the index" for shard in shards if not is_plain(shard)]
        faults += [f"the file of {shown(name)} is {kind(shard)}, not a name" for name, shard in where.items() if not isinstance(shard, str)]
        if faults:
            raise InputError(f"{self.path}: is not an index that can be followed; {advice}", faults)
        return where, metadata


# ---- what all readers share ----


class FileBytes:
    """A file's bytes by their place. Nothing stays open or mapped: a mapped file that shrinks later would kill the process."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            about = os.stat(self.path)
        except FileNotFoundError:
            gone = "is a link to a file that is gone" if self.path.is_symlink() else "there is no such file"
            raise InputError(f"{self.path}: {gone}; give the path of a file of weights, or download it") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise InputError(f"{str(self.path)!r}: cannot be read ({reason(error)}); give the path of a file of weights") from None
        if not stat.S_ISREG(about.st_mode):
            raise InputError(f"{self.path}: is not a file; give the path of a file of weights")
        self.size, self._seen = about.st_size, (about.st_size, about.st_mtime_ns)

    def read(self, start: int, count: int) -> Tensor:
        """`count` bytes as uint8, in memory of their own; the caller has made sure that they lie within `size`."""
        try:
            data = torch.empty(count, dtype=torch.uint8)
        except RuntimeError:
            raise InputError(
                f"{self.path}: a tensor of {count / 1e9:.1f} GB does not fit into memory; free some, or use another machine"
            ) from None
        view = data.numpy().data
        try:
            with open(self.path, "rb", buffering=0) as file:
                about = os.fstat(file.fileno())
                if (about.st_size, about.st_mtime_ns) != self._seen:
                    raise InputError(f"{self.path}: has changed since it was opened; open it again")
                file.seek(start)
                while len(view) and (got := file.readinto(view)):
                    view = view[got:]
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({reason(error)}); check the disk and who may read the file") from None
        if len(view):
            raise InputError(f"{self.path}: ends {len(view)} bytes too early; download it again")
        return data

    def raw(self, start: int, count: int) -> bytes:
        return self.read(start, count).numpy().tobytes()


def parse_json(data: bytes) -> tuple[Any, list[str]]:
    """The value, and the names that one object of it holds twice. ValueError says what is wrong, however the bytes are broken."""
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.extend(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        return found

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=once), twice
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise ValueError("its brackets nest too deeply") from None


def shape_faults(shape: Any) -> list[str]:
    """What keeps a list from being a tensor's shape."""
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        return [f"shape {shown(shape)} is not a list of whole numbers"]
    if any(size < 0 for size in shape):
        return [f"shape {shown(shape)} has a negative size"]
    # Without the zeros: [0, 2**62, 2**62] has no elements, and strides that overflow.
    if len(shape) > MOST_DIMS or any(size >= INT64 for size in shape) or math.prod(size for size in shape if size) >= INT64 // 16:
        return [f"shape {shown(shape)} is larger than any tensor"]
    return []


def overlaps(spans: Iterable[tuple[int, int, str]]) -> list[str]:
    """A fault for each (start, count, name) that begins before another has ended."""
    faults, end, before = [], 0, ""
    for start, count, name in sorted(spans):
        if start < end and count:
            faults.append(f"{shown(name)} begins at byte {start}, {shown(before)} ends only at {end}: they overlap")
        if start + count > end:
            end, before = start + count, name
    return faults


def known(path: Path, table: Mapping[str, T], name: str) -> T:
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, 3)
    hint = f"did you mean {', '.join(map(shown, near))}" if near else f"`shapes()` names all {len(table)}"
    raise InputError(f"{path}: has no tensor {shown(name)}; {hint}")


def is_plain(name: str) -> bool:
    """Whether it names a file of the same folder on every system: no folders, no `..`, no drive."""
    plain = {PurePosixPath(name).name, PureWindowsPath(name).name, name}
    return len(plain) == 1 and name not in ("", ".", "..") and name.isprintable() and ":" not in name


def shown(value: Any) -> str:
    """A value of a file for a message: escaped where a terminal could not print it, and short."""
    try:
        text = repr(value)
    except RecursionError:
        return kind(value)
    return text if len(text) <= 120 else f"{text[:90]}...{text[-20:]}"


def kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
