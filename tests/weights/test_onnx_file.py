"""ONNX initialisers against the onnx package: every type in both forms, values in files beside, and damaged files."""

import random
import struct

import numpy as np
import pytest

from plait.errors import InputError
from plait.weights.onnx_file import OnnxFile
from plait.weights.opening import open_source

onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install onnx)")

TYPES = "FLOAT DOUBLE INT32 INT64 INT8 UINT8 INT16 UINT16 UINT32 UINT64 BOOL FLOAT16 BFLOAT16".split()
SHAPES = {"onnx::MatMul_7": (2, 2), "onnx::MatMul_9": (2, 2), "onnx::MatMul_11": (2, 2), "a.bias": (4,), "b.bias": (4,)}
RNG = np.random.default_rng(2)


def tensors():
    """Each type with its values in the field for them, and in raw_data."""
    for name in TYPES:
        kind = getattr(onnx.TensorProto, name)
        low = 0 if name == "BOOL" or name.startswith("U") else -100
        values = RNG.integers(low, 2 if name == "BOOL" else 100, 6).tolist()
        typed = onnx.helper.make_tensor(name.lower(), kind, (2, 3), values)
        yield typed
        yield onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(typed), name.lower() + ".raw")
    yield onnx.helper.make_tensor("scalar", onnx.TensorProto.INT64, (), [-(2**40)])
    yield onnx.helper.make_tensor("none", onnx.TensorProto.FLOAT, (0, 4), [])


def model(initialisers):
    node = onnx.helper.make_node("Identity", ["float"], ["y"])
    return onnx.helper.make_model(onnx.helper.make_graph([node], "graph", [], [], list(initialisers)))


def same(source, given):
    assert source.shapes() == {t.name: tuple(t.dims) for t in given}
    for t in given:
        found, wanted = source.read(t.name), onnx.numpy_helper.to_array(t)
        assert found.element_size() == wanted.itemsize and found.shape == wanted.shape
        np.testing.assert_array_equal(found.double(), wanted.astype("f8"), err_msg=t.name)


def test_every_type_in_both_forms(tmp_path):
    given = list(tensors())
    onnx.save(model(given), tmp_path / "model.onnx")
    same(open_source(tmp_path), given)


def test_values_in_a_file_beside(tmp_path):
    given = [t for t in tensors() if t.name.endswith(".raw")]
    beside = dict(save_as_external_data=True, location="values", size_threshold=0)
    onnx.save_model(model(given), tmp_path / "x.onnx", **beside)
    given = [t for t in tensors() if t.name.endswith(".raw")]  # saving has emptied the others
    source = OnnxFile(tmp_path / "x.onnx")
    assert {place.file.path.name for place in source._places.values()} == {"values"}
    assert source.shapes() == {t.name: tuple(t.dims) for t in given}
    again = onnx.load(tmp_path / "x.onnx")
    same(source, list(again.graph.initializer))
    (tmp_path / "values").write_bytes(b"short")
    with pytest.raises(InputError, match="has 5"):
        OnnxFile(tmp_path / "x.onnx")
    (tmp_path / "values").unlink()
    with pytest.raises(InputError, match="no such file"):
        OnnxFile(tmp_path / "x.onnx")


def external(location, **more):
    t = onnx.TensorProto(name="w", data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        t.external_data.add(key=key, value=value)
    return t


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (lambda: external("../secret"), "not the name of a file beside"),
        (lambda: external("x.onnx", offset="-1"), "not two whole numbers"),
        (lambda: external("x.onnx", length="99999999"), "ends? at byte|end at byte"),
        (lambda: onnx.TensorProto(name="w", data_type=1, dims=[3], raw_data=bytes(8)), "does not fit the 8 bytes"),
        (lambda: onnx.TensorProto(name="w", data_type=1, dims=[2**62, 2**62]), "larger than any tensor"),
        (lambda: onnx.TensorProto(name="w", data_type=8, dims=[1], string_data=[b"a"]), "STRING is not read"),
        (lambda: onnx.TensorProto(name="w", data_type=1, dims=[2], int64_data=[1, 2]), "in the fields"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, tensor, said):
    onnx.save(model([tensor()]), tmp_path / "x.onnx")
    with pytest.raises(InputError, match=said):
        OnnxFile(tmp_path / "x.onnx")


def test_damage_is_an_error_in_words_or_none(tmp_path):
    good, path, rng = model(tensors()).SerializeToString(), tmp_path / "x.onnx", random.Random(0)
    damaged = [good[:at] for at in range(0, len(good), 3)]
    for _ in range(1500):
        data = bytearray(good)
        at = rng.randrange(len(data))
        if rng.random() < 0.3:  # a length gone wild
            data[at : at + 4] = rng.choice([b"\xff" * 4, b"\x80" * 4, bytes(4), struct.pack("<I", rng.randrange(2**32))])
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
            source = OnnxFile(path)
            for name, shape in source.shapes().items():
                assert tuple(source.read(name).shape) == shape, data
            read += 1
            said = str(path)
        except InputError as error:
            said = str(error)
        assert said.startswith(str(path)) and len(said) < 5000
    assert 150 < read < len(damaged) - 500  # both happen, or the damage is not what it should be


def test_products_tell_the_names_of_weights(tmp_path):
    """As an exporter leaves x W + b: the weight nameless, the sum in either order; not every product has a bias."""
    given = [onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, shape, [0.0] * 4) for name, shape in SHAPES.items()]
    nodes = [("MatMul", "x", "onnx::MatMul_7", "p"), ("Add", "a.bias", "p", "q"), ("MatMul", "q", "onnx::MatMul_9", "r")]
    nodes += [("Add", "r", "b.bias", "s"), ("MatMul", "s", "onnx::MatMul_11", "t"), ("Add", "t", "x", "u"), ("MatMul", "u", "t", "v")]
    nodes += [("Add", "v", "b.bias", "w")]
    made = [onnx.helper.make_node(kind, [a, b], [out]) for kind, a, b, out in nodes]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(made, "graph", [], [], given)), tmp_path / "x.onnx")
    assert OnnxFile(tmp_path / "x.onnx").biases() == {"onnx::MatMul_7": "a.bias", "onnx::MatMul_9": "b.bias"}
