"""The initialisers of an ONNX file: names and places at once, a tensor when it is asked for. Of the graph, only what is multiplied by what.

Numbers of fields and types are those of onnx.proto; the wire format is protobuf's, of which a walk over length-delimited fields is all
that is needed.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from plait.errors import InputError
from plait.weights.safetensors_file import FileBytes, is_plain, known, reason, shape_faults, shown

# TensorProto.DataType: torch's dtype, and the field that holds its values where raw_data does not.
FLOATS, INTS, LONGS, DOUBLES, UNSIGNED = 4, 5, 7, 10, 11
DTYPES = {
    1: (torch.float32, FLOATS), 2: (torch.uint8, INTS), 3: (torch.int8, INTS), 4: (torch.uint16, INTS), 5: (torch.int16, INTS),
    6: (torch.int32, INTS), 7: (torch.int64, LONGS), 9: (torch.bool, INTS), 10: (torch.float16, INTS), 11: (torch.float64, DOUBLES),
    12: (torch.uint32, UNSIGNED), 13: (torch.uint64, UNSIGNED), 14: (torch.complex64, FLOATS), 16: (torch.bfloat16, INTS),
    17: (torch.float8_e4m3fn, INTS), 19: (torch.float8_e5m2, INTS),
}  # fmt: skip
UNREAD = {8: "STRING", 15: "COMPLEX128", 18: "FLOAT8E4M3FNUZ", 20: "FLOAT8E5M2FNUZ", 21: "UINT4", 22: "INT4", 23: "FLOAT4E2M1"}
VARINTS = (INTS, LONGS, UNSIGNED)
GRAPH, NODE, INITIALIZER = 7, 1, 5  # of ModelProto; of GraphProto
INPUT, OUTPUT, KIND = 1, 2, 4  # of NodeProto
DIMS, TYPE, NAME, RAW, EXTERNAL, LOCATION = 1, 2, 8, 9, 13, 14  # of TensorProto
LONGEST = 4096  # bytes of a name


class Place(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: FileBytes
    spans: tuple[tuple[int, int], ...]  # (start, bytes), one after another
    varints: bool


class OnnxFile:
    """One ONNX file with what it keeps in files beside it. A tensor is read in the dtype it is stored in; `metadata` is empty.

    Exporters may rename what they transposed or merged (`onnx::MatMul_123`): only names that were kept are those of the model, which
    for a weight its bias may tell (`biases`).
    """

    metadata: Mapping[str, Any] = {}

    def __init__(self, path: str | Path):
        self._bytes = FileBytes(path)
        self.path = self._bytes.path
        self._beside: dict[str, FileBytes] = {}
        self._places: dict[str, Place] = {}
        faults: list[str] = []
        try:
            with open(self.path, "rb") as file:
                walk = Walk(file)
                graphs = [span for field, span in walk.fields((0, self._bytes.size)) if field == GRAPH and isinstance(span, tuple)]
                found = [walk.entry(span) for graph in graphs for field, span in walk.fields(graph) if field == INITIALIZER]
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({reason(error)}); check the disk and who may read the file") from None
        except ValueError as error:
            raise self._broken([str(error)]) from None
        if not graphs:
            raise self._broken(["it has no graph"])
        for entry in found:
            try:
                self._places[entry.name] = self._placed(entry)
            except InputError as error:
                faults += [error.message, *error.faults]
            except ValueError as error:
                faults.append(f"{shown(entry.name)}: {error}")
        if faults:
            raise self._broken(faults)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: place.shape for name, place in self._places.items()}

    def read(self, name: str) -> Tensor:
        dtype, shape, file, spans, varints = known(self.path, self._places, name)
        data = torch.cat([file.read(*span) for span in spans]) if len(spans) != 1 else file.read(*spans[0])
        if varints:
            try:
                data = torch.from_numpy(narrowed(data.numpy(), math.prod(shape), dtype))
            except ValueError as error:
                raise self._broken([f"{shown(name)}: {error}"]) from None
        if dtype == torch.bool and bool((data > 1).any()):
            raise self._broken([f"{shown(name)} is BOOL and has bytes other than 0 and 1"])
        return data.view(dtype).reshape(shape)

    def biases(self) -> dict[str, str]:
        """Weight -> bias of each product x W + b of the graph, where both are tensors of the file; W is [d_in, d_out]."""
        try:
            with open(self.path, "rb") as file:
                walk = Walk(file)
                graphs = [span for field, span in walk.fields((0, self._bytes.size)) if field == GRAPH]
                nodes = [walk.node(span) for graph in graphs for field, span in walk.fields(_message(graph)) if field == NODE]
        except (OSError, ValueError) as error:
            raise self._broken([str(error)]) from None
        products = {out: name for kind, inputs, (out, *_) in nodes if kind == "MatMul" for name in inputs[1:] if name in self._places}
        found = {}
        for kind, inputs, _ in nodes:
            weights = [products[name] for name in inputs if name in products]
            biases = [name for name in inputs if name in self._places]
            if kind == "Add" and len(weights) == len(biases) == 1:
                found[weights[0]] = biases[0]
        return found

    def _placed(self, entry: "Entry") -> Place:
        if entry.name in self._places:
            raise ValueError("stands there twice")
        if faults := shape_faults(entry.dims):
            raise ValueError(faults[0])
        if entry.type not in DTYPES:
            raise ValueError(f"{UNREAD.get(entry.type, f'type {entry.type}')} is not read")
        dtype, typed = DTYPES[entry.type]
        count, file = math.prod(entry.dims) * dtype.itemsize, self._bytes
        used = [field for field, spans in entry.data.items() if any(size for _, size in spans)]
        if entry.external is not None:
            if used:
                raise ValueError("its values lie in this file and in another")
            file, spans = self._external(entry.external, count)
        elif set(used) - {RAW, typed} or len(used) > 1:
            raise ValueError(f"its values lie in the fields {used}, and those of its type in {typed} or raw_data, which is {RAW}")
        else:
            spans = tuple(entry.data[used[0]]) if used else ()
        there, varints = sum(size for _, size in spans), used == [typed] and typed in VARINTS
        # A varint takes one byte at least and ten at most.
        if not (count // dtype.itemsize <= there <= count // dtype.itemsize * 10 if varints else there == count):
            raise ValueError(f"shape {entry.dims} of {str(dtype).removeprefix('torch.')} does not fit the {there} bytes that it has")
        return Place(dtype, tuple(entry.dims), file, spans or ((0, 0),), varints)

    def _external(self, said: dict[str, str], count: int) -> tuple[FileBytes, tuple[tuple[int, int], ...]]:
        name = said.get("location", "")
        if not is_plain(name):
            raise ValueError(f"its values should lie in {shown(name)}, which is not the name of a file beside this one")
        numbers = [said.get("offset", "0"), said.get("length", str(count))]
        if not all(text.isascii() and text.isdigit() and len(text) < 20 for text in numbers):
            raise ValueError(f"its values lie in {name} at {shown(numbers)}, which are not two whole numbers")
        start, size = map(int, numbers)
        if name not in self._beside:
            self._beside[name] = FileBytes(self.path.parent / name)
        if start + size > self._beside[name].size:
            raise ValueError(f"its values end at byte {start + size} of {name}, which has {self._beside[name].size}")
        return self._beside[name], ((start, size),)

    def _broken(self, faults: list[str]) -> InputError:
        return InputError(
            f"{self.path}: is not an ONNX file that can be read; export it again, or copy it with the files beside it", faults
        )


class Entry(NamedTuple):
    """A TensorProto as it stands there, nothing checked."""

    name: str
    dims: list[int]
    type: int
    data: dict[int, list[tuple[int, int]]]  # by field
    external: dict[str, str] | None


Value = int | tuple[int, int]  # of a field: a number, or (start, bytes) of what lies in the file


class Walk:
    """Protobuf messages in a file; ValueError where the bytes cannot be one. Nothing is set aside for a length before it is checked."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def fields(self, span: tuple[int, int]) -> Iterator[tuple[int, Value]]:
        """(number, value) of each field of the message in these bytes; numbers of fixed width are given as their place."""
        at, end = span[0], sum(span)
        while at < end:
            tag, at = self.varint(at, end)
            kind = tag & 7
            if kind == 0:
                begin = at
                number, at = self.varint(at, end)
                yield tag >> 3, (begin, at - begin) if tag >> 3 in VARINTS else number
                continue
            if kind == 2:
                size, at = self.varint(at, end)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
            else:
                raise ValueError(f"the field at byte {at} is of a kind {kind} that there is not")
            if size > end - at:
                raise ValueError(f"the {size} bytes from {at} on end behind {end}, where what holds them ends")
            yield tag >> 3, (at, size)
            at += size

    def varint(self, at: int, end: int) -> tuple[int, int]:
        self.file.seek(at)
        data, value = self.file.read(min(10, end - at)), 0
        for k, byte in enumerate(data):
            value |= (byte & 127) << 7 * k
            if byte < 128:
                return value & 2**64 - 1, at + k + 1
        raise ValueError(f"the number at byte {at} does not end")

    def entry(self, span: Value) -> Entry:
        """One TensorProto."""
        name, dims, kind, data, external, outside = "", [], 0, {}, {}, False
        for field, value in self.fields(_message(span)):
            if field == DIMS:
                dims += [value] if isinstance(value, int) else self.numbers(value)
            elif field == TYPE and isinstance(value, int):
                kind = value
            elif field == LOCATION:
                outside = value == 1
            elif field == NAME:
                name = self.text(value)
            elif field == EXTERNAL:
                pair = {number: self.text(part) for number, part in self.fields(_message(value)) if number in (1, 2)}
                external[pair.get(1, "")] = pair.get(2, "")
            elif field in (RAW, FLOATS, DOUBLES, *VARINTS):
                data.setdefault(field, []).append(_message(value))
        return Entry(name, dims, kind, data, external if outside else None)

    def node(self, span: Value) -> tuple[str, list[str], list[str]]:
        """(what it computes, names of its inputs, of its outputs) of one NodeProto."""
        said: dict[int, list[str]] = {INPUT: [], OUTPUT: [], KIND: []}
        for field, value in self.fields(_message(span)):
            if field in said:
                said[field].append(self.text(value))
        return "".join(said[KIND]), said[INPUT], said[OUTPUT] or [""]

    def numbers(self, span: tuple[int, int]) -> list[int]:
        """Packed numbers; a shape has few, so many are a fault."""
        at, end, found = span[0], sum(span), []
        while at < end and len(found) < 100:
            number, at = self.varint(at, end)
            found.append(number)
        return found

    def text(self, value: Value) -> str:
        start, size = _message(value)
        if size > LONGEST:
            raise ValueError(f"the text at byte {start} is {size} bytes long, {LONGEST} is the most")
        self.file.seek(start)
        try:
            return self.file.read(size).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"the text at byte {start} is not UTF-8") from None


def _message(value: Value) -> tuple[int, int]:
    if isinstance(value, int):
        raise ValueError(f"a number, {value}, stands where a text or a message should")
    return value


def narrowed(data: np.ndarray, count: int, dtype: torch.dtype) -> np.ndarray:
    """`count` varints as the bytes of that many values of `dtype`: of each its lowest bytes."""
    ends = np.flatnonzero(data < 128)
    if len(ends) != count or (len(data) and ends[-1] != len(data) - 1):
        raise ValueError(f"{len(ends)} numbers are there, and {count} in its shape")
    starts = np.concatenate([[0], ends[:-1] + 1]) if count else ends
    lengths = ends - starts + 1
    if count and lengths.max() > 10:
        raise ValueError("one of its numbers does not end")
    values = np.zeros(count, np.uint64)
    for k in range(int(lengths.max()) if count else 0):
        longer = lengths > k
        values[longer] |= (data[starts[longer] + k] & 127).astype(np.uint64) << np.uint64(7 * k)
    return np.ascontiguousarray(values.astype("<u8").view(np.uint8).reshape(count, 8)[:, : dtype.itemsize]).reshape(-1)
