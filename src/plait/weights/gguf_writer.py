"""Writing GGUF files, version 3: what the reader reads, written again, has the same bytes."""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from plait.weights.gguf import ARRAY, BOOL, SCALARS, STRING
from plait.weights.gguf_blocks import BLOCKS, NUMBERS, PLAIN

U32, I32, F32, U64, I64 = 4, 5, 6, 10, 11


class Stored(NamedTuple):
    """A tensor as a GGUF holds it: the name of its type, its shape in torch's order, its bytes as uint8."""

    type: str
    shape: tuple[int, ...]
    data: Tensor


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Stored], key_types: Mapping[str, tuple[int, ...]] | None = None
) -> None:
    """One file. `key_types` are those of a file that was read (`GgufFile.key_types`); other keys get the type that llama.cpp gives them.

    OSError comes through: the caller knows what to say of a full disk.
    """
    types = key_types or {}
    align = metadata.get("general.alignment", 32)
    keys = [_text(key) + _typed(value, types.get(key) or type_of(value)) for key, value in metadata.items()]
    entries, at = [], 0
    for name, (kind, shape, data) in tensors.items():
        assert data.numel() == _size(kind, shape), f"{name}: {data.numel()} bytes for {kind} of {shape}"
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        entries.append(_text(name) + dims + struct.pack("<IQ", NUMBERS[kind], at))
        at += data.numel() + -data.numel() % align
    head = b"".join([b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata)), *keys, *entries])
    with open(path, "wb") as file:
        file.write(head + bytes(-len(head) % align))
        for _, _, data in tensors.values():
            file.write(data.numpy().data)
            file.write(bytes(-data.numel() % align))


def type_of(value: Any) -> tuple[int, ...]:
    """The types of the format as which a value is written: as llama.cpp has them, numbers in 32 bits, in arrays signed."""
    if isinstance(value, list):
        inner = {type_of(one) for one in value} or {(STRING,)}
        ((of_each, *_),) = inner if len(inner) == 1 else [(I32 if inner <= {(U32,), (I32,)} else F32,)]
        return ARRAY, I32 if of_each == U32 else of_each
    if isinstance(value, bool):
        return (BOOL,)
    if isinstance(value, int):
        return (U32 if 0 <= value < 2**32 else I32 if -(2**31) <= value < 0 else U64 if value > 0 else I64,)
    return (STRING,) if isinstance(value, str) else (F32,)


def _typed(value: Any, kinds: tuple[int, ...]) -> bytes:
    if kinds[0] != ARRAY:
        return struct.pack("<I", kinds[0]) + _plain([value], kinds[0])
    return struct.pack("<IIQ", ARRAY, kinds[1], len(value)) + _plain(value, kinds[1])


def _plain(values: Iterable[Any], kind: int) -> bytes:
    """The values one after another. Arrays in arrays are written by what they hold: nobody is known to store one."""
    if kind == STRING:
        return b"".join(map(_text, values))
    if kind == ARRAY:
        return b"".join(_typed(value, type_of(value))[4:] for value in values)
    return np.asarray(list(values)).astype(SCALARS[kind]).tobytes()


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _size(kind: str, shape: tuple[int, ...]) -> int:
    number, count = NUMBERS[kind], int(np.prod(shape, dtype=object)) if shape else 1
    return count * PLAIN[number][1].itemsize if number in PLAIN else count // BLOCKS[number][2] * BLOCKS[number][1]
