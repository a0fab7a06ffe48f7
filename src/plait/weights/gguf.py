"""GGUF files of versions 2 and 3: keys and places at once, a tensor when it is asked for, quantised ones as float32.

The format is that of docs/gguf.md of the ggml project.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from plait.errors import InputError
from plait.weights.gguf_blocks import BLOCKS, PLAIN, READ, type_name, unpacked
from plait.weights.safetensors_file import INT64, FileBytes, known, overlaps, reason, shown

HEADER_LIMIT = 2**26  # bytes; a vocabulary of 256k tokens with its merges takes about 20 million
MOST_DIMS = 4  # GGML_MAX_DIMS
NESTING = 4  # of arrays in arrays; the format sets no limit, and nobody writes more than two
STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", BOOL: "u1", 10: "<u8", 11: "<i8", 12: "<f8"}


class Place(NamedTuple):
    type: int
    shape: tuple[int, ...]  # in torch's order
    start: int  # from the beginning of the file
    count: int  # bytes


class GgufFile:
    """One GGUF file. `metadata` are its keys with Python's values, arrays as lists; `types` each tensor's type of storage.

    `key_types` says as what types of the format each key is stored: its own and, for an array, that of what it holds. Shapes are in
    torch's order, the reverse of the file's. A model split over several GGUF files is not put together.
    """

    def __init__(self, path: str | Path):
        self._bytes = FileBytes(path)
        self.path = self._bytes.path
        self._faults: list[str] = []
        self.metadata: Mapping[str, Any]
        try:
            with open(self.path, "rb") as file:
                cursor = Cursor(file, self._bytes.size)
                self.metadata, self._places = self._header(cursor)
                self.key_types: Mapping[str, tuple[int, ...]] = cursor.types
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({reason(error)}); check the disk and who may read the file") from None
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            self._faults.append(f"{error}; what follows could not be read")
        if self._faults:
            raise InputError(f"{self.path}: is not a GGUF file that can be read; download it again, or take another file", self._faults)
        self.types: Mapping[str, str] = {name: type_name(place.type) for name, place in self._places.items()}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: place.shape for name, place in self._places.items()}

    def raw(self, name: str) -> Tensor:
        """A tensor's bytes as they are stored, uint8: the packed blocks of a quantised one."""
        place = known(self.path, self._places, name)
        return self._bytes.read(place.start, place.count)

    def read(self, name: str) -> Tensor:
        place, data = known(self.path, self._places, name), self.raw(name)
        if place.type in PLAIN:
            return data.view(PLAIN[place.type][1]).reshape(place.shape)
        return torch.from_numpy(unpacked(data.numpy(), place.type)).reshape(place.shape)

    def _header(self, cursor: "Cursor") -> tuple[dict[str, Any], dict[str, Place]]:
        if cursor.take(4) != b"GGUF":
            raise ValueError("it does not begin with 'GGUF'")
        version = cursor.number("<u4")
        if version not in (2, 3):
            why = "its numbers are big-endian" if version.to_bytes(4, "little")[:2] == b"\0\0" else f"it is of version {version}"
            raise ValueError(f"{why}; versions 2 and 3 are read, little-endian")
        n_tensors, n_keys = cursor.number("<u8"), cursor.number("<u8")
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):  # a count that lies ends at the end of the file: nothing is set aside for it
            key, at = cursor.text(), cursor.at
            if key in metadata:
                self._faults.append(f"the key {shown(key)} stands there twice")
            try:
                metadata[key] = cursor.keyed(key)
            except ValueError as error:
                raise ValueError(f"the key {shown(key)} at byte {at}: {error}") from None
        if (parts := metadata.get("split.count", 1)) not in (0, 1):
            self._faults.append(f"it is one of {shown(parts)} parts; put them together with llama.cpp's `llama-gguf-split --merge`")
        found = [self._entry(cursor) for _ in range(n_tensors)]
        align = metadata.get("general.alignment", 32)
        if type(align) is not int or align < 1 or align & (align - 1):
            raise ValueError(f"general.alignment is {shown(align)}, not a power of two")
        return metadata, self._placed(found, align, -(-cursor.at // align) * align)

    def _entry(self, cursor: "Cursor") -> tuple[str, list[int], int, int]:
        name = cursor.text()
        if (dims := cursor.number("<u4")) > MOST_DIMS:
            raise ValueError(f"{shown(name)} would have {dims} dimensions, {MOST_DIMS} is the most")
        return name, [cursor.number("<u8") for _ in range(dims)], cursor.number("<u4"), cursor.number("<u8")

    def _placed(self, found: list[tuple[str, list[int], int, int]], align: int, begin: int) -> dict[str, Place]:
        places: dict[str, Place] = {}
        unread: dict[str, list[str]] = {}
        for name, ne, of_type, offset in found:
            if name in places:
                self._faults.append(f"the tensor {shown(name)} stands there twice")
            start, count = begin + offset, 0
            if of_type not in PLAIN and of_type not in BLOCKS:
                unread.setdefault(type_name(of_type), []).append(name)
            elif any(size >= INT64 for size in ne) or math.prod(size for size in ne if size) >= INT64 // 16:
                self._faults.append(f"{shown(name)}: sizes {ne} are larger than any tensor")
            else:
                size, per = (PLAIN[of_type][1].itemsize, 1) if of_type in PLAIN else BLOCKS[of_type][1:3]
                if (ne[0] if ne else 1) % per:
                    self._faults.append(
                        f"{shown(name)}: rows of {ne[0] if ne else 1} are no whole blocks of {per}, as {type_name(of_type)} has them"
                    )
                count = math.prod(ne) // per * size
                if offset % align:
                    self._faults.append(f"{shown(name)}: its place {offset} is no multiple of {align}")
                if start + count > self._bytes.size:
                    self._faults.append(f"{shown(name)}: takes bytes {start} to {start + count}, the file has {self._bytes.size}")
            places[name] = Place(of_type, tuple(reversed(ne)), start, count)
        for kind, names in unread.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            self._faults.append(f"{kind} is not read ({', '.join(map(shown, names[:3]))}{more}); {READ} are")
        self._faults += overlaps((place.start, place.count, name) for name, place in places.items())
        return places


class Cursor:
    """The header from front to back; ValueError where the file says something that cannot be."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.end, self.at = file, min(size, HEADER_LIMIT), 0
        self.types: dict[str, tuple[int, ...]] = {}

    def take(self, count: int) -> bytes:
        if count > self.end - self.at or len(data := self.file.read(count)) < count:
            raise ValueError(f"byte {self.at} would be followed by {count} more of the header, which ends before byte {self.end}")
        self.at += count
        return data

    def number(self, code: str) -> int:
        return int.from_bytes(self.take(int(code[-1])), "little")

    def text(self) -> str:
        at = self.at
        try:
            return self.take(self.number("<u8")).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"the text at byte {at} is not UTF-8") from None

    def keyed(self, key: str) -> Any:
        """A key's value, its type kept in `types`."""
        of_type = self.number("<u4")
        if of_type != ARRAY:
            self.types[key] = (of_type,)
            return self.value(of_type)
        of_each = self.number("<u4")
        self.types[key] = (ARRAY, of_each)
        return self.values(of_each, self.number("<u8"), 1)

    def value(self, of_type: int, depth: int = 0) -> Any:
        if of_type == ARRAY:
            return self.values(self.number("<u4"), self.number("<u8"), depth + 1)
        return self.text() if of_type == STRING else self.values(of_type, 1, depth)[0]

    def values(self, of_type: int, count: int, depth: int) -> list[Any]:
        if of_type in SCALARS:
            code = np.dtype(SCALARS[of_type])
            found = np.frombuffer(self.take(count * code.itemsize), code)
            if of_type != BOOL:
                return found.tolist()
            if (found > 1).any():
                raise ValueError("true or false is written as a number other than 1 and 0")
            return found.astype(bool).tolist()
        if of_type not in (STRING, ARRAY):
            raise ValueError(f"there is no type of value {of_type}")
        if depth > NESTING:
            raise ValueError(f"arrays lie in arrays more than {NESTING} deep")
        return [self.value(of_type, depth) for _ in range(count)]
