"""CTranslate2's model.bin, versions 2 to 6: names and places at once, a tensor when it is asked for, all weights as float32.

The layout is what `ModelSpec.save` of the ctranslate2 package writes; what changed between the versions is in its `models/model.cc`.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plait.errors import InputError
from plait.weights.gguf import Cursor
from plait.weights.safetensors_file import FileBytes, known, reason, shape_faults, shown

VERSIONS = range(2, 7)  # 3 brought aliases, 4 dtypes by number
DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
BY_SIZE = {4: torch.float32, 2: torch.int16, 1: torch.int8}  # before version 4
QUANTISED = (torch.int8, torch.int16)
SCALE = "_scale"  # `x/weight` was multiplied by `x/weight_scale`, one number a row (int8) or one for all (int16), and rounded


class Place(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # from the beginning of the file
    count: int  # bytes


class Ctranslate2File:
    """One model.bin; quantised weights and those of half precision become float32 when read.

    `metadata` has the kind of model (`spec`, its `revision`), the file's `version`, and every scalar of the file: they are settings
    (`encoder/num_heads`). `aliases` says which names stand for another's tensor: they are tensors like the others. Scales are not.
    """

    def __init__(self, path: str | Path):
        self._bytes = FileBytes(path)
        self.path = self._bytes.path
        self.metadata: Mapping[str, Any]
        try:
            with open(self.path, "rb") as file:
                places, self._scales, self.aliases, about = self._header(_Walk(file, self._bytes.size))
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({reason(error)}); check the disk and who may read the file") from None
        except ValueError as error:
            raise InputError(
                f"{self.path}: is not a CTranslate2 model that can be read: {error}; copy it again, or convert the model anew"
            ) from None
        self._places = {name: place for name, place in places.items() if place.shape}
        self.metadata = {**about, **{name: self._stored(place).item() for name, place in places.items() if not place.shape}}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: place.shape for name, place in self._places.items()}

    def read(self, name: str) -> Tensor:
        found = self._stored(known(self.path, self._places, name))
        if name in self._scales:
            scale = self._stored(self._scales[name]).float()
            return found.float() / scale.reshape(-1, *[1] * (found.dim() - 1))
        return found.float() if found.is_floating_point() else found

    def _stored(self, place: Place) -> Tensor:
        return self._bytes.read(place.start, place.count).view(place.dtype).reshape(place.shape)

    def _header(self, walk: "_Walk") -> tuple[dict[str, Place], dict[str, Place], dict[str, str], dict[str, Any]]:
        version = walk.number("<u4")
        if version not in VERSIONS:
            raise ValueError(f"it says that it is of version {version}, and {VERSIONS[0]} to {VERSIONS[-1]} are read")
        metadata = {"spec": walk.text(), "revision": walk.number("<u4"), "version": version}
        places: dict[str, Place] = {}
        for _ in range(walk.number("<u4")):  # a count that lies ends at the end of the file: nothing is set aside for it
            name, at = walk.text(), walk.at
            if name in places:
                raise ValueError(f"{shown(name)} stands there twice")
            try:
                places[name] = walk.place(version)
            except ValueError as error:
                raise ValueError(f"{shown(name)} at byte {at}: {error}") from None
        aliases: dict[str, str] = {}
        for _ in range(walk.number("<u4") if version >= 3 else 0):
            alias, name = walk.text(), walk.text()
            if alias in places or name not in places:
                wrong = "is there itself" if alias in places else "that is not there"
                raise ValueError(f"{shown(alias)} stands for {shown(name)}, and {wrong}")
            places[alias], aliases[alias] = places[name], name
        if walk.at < walk.end:
            raise ValueError(f"{walk.end - walk.at} bytes follow where it should end")
        scales = {}
        for name, place in places.items():
            scale = places.get(name + SCALE) or places.get(aliases.get(name, name) + SCALE)  # the package writes no alias of a scale
            if scale is not None and place.shape and place.dtype in QUANTISED:
                scales[name] = scale
        for name, scale in scales.items():
            rows = places[name].shape[:1]
            if not scale.dtype.is_floating_point or scale.shape not in ((), (1,), rows):
                raise ValueError(f"{shown(name + SCALE)} {list(scale.shape)} is no scale of {shown(name)} {list(places[name].shape)}")
        kept = {name: place for name, place in places.items() if not (name.endswith(SCALE) and name.removesuffix(SCALE) in scales)}
        return kept, scales, aliases, metadata


class _Walk(Cursor):
    """The file from front to back, stepping over the tensors' bytes; ValueError where it says something that cannot be."""

    def __init__(self, file: Any, size: int):
        super().__init__(file, size)
        self.end = size  # the header lies between the tensors, up to the end of the file

    def text(self) -> str:
        at, data = self.at, self.take(self.number("<u2"))
        try:
            if data[-1:] == b"\0":
                return data[:-1].decode("utf-8")
        except UnicodeDecodeError:
            pass
        raise ValueError(f"the text at byte {at} is not UTF-8 with a zero at its end")

    def place(self, version: int) -> Place:
        shape = [self.number("<u4") for _ in range(self.number("<u1"))]
        if faults := shape_faults(shape):
            raise ValueError(faults[0])
        number, count = self.number("<u1"), self.number("<u4")
        dtype = dict(enumerate(DTYPES)).get(number) if version >= 4 else BY_SIZE.get(number)
        if dtype is None:
            raise ValueError(f"there is no dtype {number}" if version >= 4 else f"no dtype has {number} bytes")
        count *= 1 if version >= 4 else number
        if count != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"shape {shape} does not fit its {count} bytes of {str(dtype).removeprefix('torch.')}")
        if count > self.end - self.at:
            raise ValueError(f"its {count} bytes begin at {self.at}, and the file ends at {self.end}")
        self.at = self.file.seek(self.at + count)
        return Place(dtype, tuple(shape), self.at - count, count)
