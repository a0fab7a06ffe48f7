"""CTranslate2's model.bin as the ctranslate2 package writes it, the older versions, quantised weights, and damaged files."""

import random
import struct

import numpy as np
import pytest
import torch

from plait.errors import InputError
from plait.weights.ctranslate2_file import Ctranslate2File
from plait.weights.opening import open_source


def text(words: str) -> bytes:
    return struct.pack("<H", len(words.encode()) + 1) + words.encode() + b"\0"


def variable(name: str, values: np.ndarray, version: int) -> bytes:
    kinds = ["float32", "int8", "int16", "int32", "float16"]
    head = text(name) + struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
    size = (kinds.index(str(values.dtype)), values.nbytes) if version >= 4 else (values.itemsize, values.size)
    return head + struct.pack("<BI", *size) + values.tobytes()


def written(variables: dict[str, np.ndarray], version: int = 6, aliases: tuple[tuple[str, str], ...] = (), tail: bytes = b"") -> bytes:
    data = struct.pack("<I", version) + text("TransformerSpec") + struct.pack("<II", 7, len(variables))
    data += b"".join(variable(name, values, version) for name, values in variables.items())
    if version >= 3:
        data += struct.pack("<I", len(aliases)) + b"".join(text(a) + text(b) for a, b in aliases)
    return data + tail


RNG = np.random.default_rng(1)
PLAIN = {"a/weight": RNG.normal(size=(3, 4)).astype("f"), "a/bias": RNG.normal(size=3).astype("f"), "n/table": np.arange(6, dtype="int16")}


@pytest.mark.parametrize("version", [2, 3, 4, 6])
def test_every_version_reads(tmp_path, version):
    (tmp_path / "model.bin").write_bytes(written(PLAIN, version, (("b/weight", "a/weight"),)))
    source = open_source(tmp_path)
    assert isinstance(source, Ctranslate2File)
    assert source.metadata == {"spec": "TransformerSpec", "revision": 7, "version": version}
    assert [*source.shapes()] == [*PLAIN, *["b/weight"] * (version >= 3)]
    for name, values in PLAIN.items():
        np.testing.assert_array_equal(source.read(name), values)
    if version >= 3:
        assert torch.equal(source.read("b/weight"), source.read("a/weight")) and source.aliases == {"b/weight": "a/weight"}


def test_scalars_are_settings_and_scales_are_no_tensors(tmp_path):
    scale = np.array([2.0, 4.0], "f")
    values = {"w": np.array([[2, 4], [8, 16]], "int8"), "w_scale": scale, "v": np.array([100, -50], "int16"), "v_scale": np.float32(10)}
    values |= {"half": np.array([1.5, 2.25], "float16"), "heads": np.int16(8), "table_scale": scale}
    (tmp_path / "x.bin").write_bytes(written({name: np.asarray(v) for name, v in values.items()}))
    source = open_source(tmp_path / "x.bin")
    assert source.shapes() == {"w": (2, 2), "v": (2,), "half": (2,), "table_scale": (2,)}
    assert source.metadata["heads"] == 8
    assert source.read("w").tolist() == [[1, 2], [2, 4]] and source.read("v").tolist() == [10, -5]
    assert source.read("half").dtype == torch.float32 and source.read("half").tolist() == [1.5, 2.25]


@pytest.mark.parametrize("quantisation", [None, "int8", "int16", "float16", "bfloat16"])
def test_what_the_package_writes(tmp_path, quantisation):
    specs = pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed (pip install 'plait[bench]')").specs
    spec, given = specs.TransformerSpec.from_config(1, 2), {}

    def fill(layer, name, value):
        if value is None:
            setattr(layer, name.split("/")[-1], RNG.normal(size=(6, 4)).astype("f"))

    spec._visit(fill)
    spec.encoder.embeddings[0].weight = spec.decoder.embeddings.weight  # written once, with an alias
    for name, value in spec.variables(ordered=True):
        given[name] = np.array(value.numpy() if hasattr(value, "numpy") else value)
    for side in (spec.register_source_vocabulary, spec.register_target_vocabulary):
        side([str(i) for i in range(6)])
    spec.validate()
    spec.optimize(quantisation)
    spec.save(str(tmp_path))
    source = open_source(tmp_path)
    assert {**source.shapes(), **{n: () for n in source.metadata if "/" in n}} == {n: v.shape for n, v in given.items()}
    assert source.aliases
    step = {"int8": 1 / 254, "int16": 1 / 2**11, "float16": 2**-11, "bfloat16": 2**-8}.get(quantisation, 0)
    for name in source.shapes():
        np.testing.assert_allclose(source.read(name), given[name], rtol=0, atol=1.01 * step * np.abs(given[name]).max())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (struct.pack("<I", 1) + bytes(40), "version 1"),
        (written(PLAIN, tail=b"xy"), "2 bytes follow"),
        (written(PLAIN)[:-8], "ends at"),
        (written(PLAIN, aliases=(("c", "nothing"),)), "not there"),
        (written(PLAIN, aliases=(("a/bias", "a/weight"),)), "is there itself"),
        (written({"w": np.zeros((2, 2), "int8"), "w_scale": np.ones(3, "f")}), "no scale"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, data, said):
    (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(InputError, match=said):
        Ctranslate2File(tmp_path / "model.bin")


def test_damage_is_an_error_in_words_or_none(tmp_path):
    quantised = {"w": np.ones((2, 3), "int8"), "w_scale": np.ones(2, "f"), "n": np.asarray(np.int16(3))}
    good, path, rng = written(PLAIN | quantised, aliases=(("b", "w"), ("c", "a/bias"))), tmp_path / "model.bin", random.Random(0)
    damaged = [good[:at] for at in range(len(good))]
    for _ in range(2000):
        data = bytearray(good)
        at = rng.randrange(len(data))
        if rng.random() < 0.3:  # a length gone wild
            data[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2**16 - 1, 2**31, 2**32 - 1]))
        else:
            data[at] ^= 1 << rng.randrange(8)
        damaged.append(bytes(data))
    read = 0
    path.touch()
    for data in damaged:
        with open(path, "r+b") as file:  # over the old one, which some disks do faster
            file.write(data)
            file.truncate()
        try:
            source = Ctranslate2File(path)
            assert all(tuple(source.read(name).shape) == shape for name, shape in source.shapes().items()), data
            read += 1
            said = str(path)
        except InputError as error:
            said = str(error)
        assert said.startswith(str(path)) and len(said) < 1000
    assert 300 < read < 2000  # both happen, or the damage is not what it should be
