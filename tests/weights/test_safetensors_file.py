"""Safetensors: what the format's own library wrote comes back bit for bit, and a header that lies is an error with all its lies."""

import json
import os
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from plait.errors import InputError
from plait.weights.safetensors_file import DTYPES, SafetensorsFile, Shards

TENSORS = {
    "h.0.weight": torch.arange(6.0).reshape(2, 3),
    "ids": torch.tensor([[1, -(2**62)]]),
    "half": torch.tensor([0.5, float("inf"), -0.0], dtype=torch.float16),
    "brain": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
    "eight": torch.tensor([1.0, 448.0]).to(torch.float8_e4m3fn),
    "mask": torch.tensor([True, False, True]),
    "odd": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "complex": torch.tensor([1 + 2j]),
    "double": torch.tensor(3.5, dtype=torch.float64),
    "none": torch.empty(0, 3),
}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def written(path, header, data: bytes = b""):
    """A file by hand: the header as JSON, or the bytes in its place."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def message(of, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        of(*arguments)
    return str(caught.value)


# ---- one file ----


def test_what_the_formats_library_wrote_comes_back_bit_for_bit(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", {"format": "pt", "ä": "ö"})
    source = SafetensorsFile(str(tmp_path / "x.safetensors"))
    assert source.path == tmp_path / "x.safetensors" and source.metadata == {"format": "pt", "ä": "ö"}
    assert source.shapes() == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    with safe_open(tmp_path / "x.safetensors", "pt") as theirs:
        for name, tensor in TENSORS.items():
            ours = source.read(name)
            assert ours.dtype == tensor.dtype == theirs.get_tensor(name).dtype and ours.shape == tensor.shape
            assert bits(ours) == bits(tensor) == bits(theirs.get_tensor(name))


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_the_one_the_formats_library_reads(tmp_path, name):
    size = DTYPES[name].itemsize
    path = written(tmp_path / "x", {"t": entry(name, [2], [0, 2 * size])}, bytes([1, 0] * size))
    with safe_open(path, "pt") as theirs:
        assert theirs.get_tensor("t").dtype == SafetensorsFile(path).read("t").dtype
        assert bits(theirs.get_tensor("t")) == bits(SafetensorsFile(path).read("t"))


def test_the_order_is_the_files(tmp_path):
    path = written(tmp_path / "x", {"z": entry(offsets=(8, 16)), "a": entry()}, bytes(16))
    assert list(SafetensorsFile(path).shapes()) == ["z", "a"]


def test_only_what_is_asked_for_is_read(tmp_path):
    """Eight gigabytes that are a hole: reading them all would take seconds and the memory to hold them."""
    path = written(tmp_path / "x", {"huge": entry("U8", [2**33], [0, 2**33]), "last": entry("U8", [2], [2**33, 2**33 + 2])})
    with open(path, "r+b") as file:
        at = path.stat().st_size + 2**33
        try:
            file.truncate(at + 2)
        except OSError:
            pytest.skip("the disk has no files with holes")
        file.seek(at)
        file.write(b"\x05\x06")
    source = SafetensorsFile(path)
    assert source.shapes() == {"huge": (2**33,), "last": (2,)} and source.read("last").tolist() == [5, 6]


def test_a_tensor_is_the_callers_own(tmp_path):
    save_file(TENSORS, tmp_path / "x")
    source = SafetensorsFile(tmp_path / "x")
    source.read("h.0.weight").zero_()
    assert torch.equal(source.read("h.0.weight"), TENSORS["h.0.weight"])


def test_a_name_that_is_not_there_brings_the_nearest(tmp_path):
    save_file(TENSORS, tmp_path / "x")
    assert "did you mean 'h.0.weight'" in message(SafetensorsFile(tmp_path / "x").read, "h.0.weigth")
    assert "names all 10" in message(SafetensorsFile(tmp_path / "x").read, "zzzzzzzzzzzzzz")


@pytest.mark.parametrize("change", ["cut", "grown", "gone"])
def test_a_file_that_changes_while_it_is_open_is_noticed(tmp_path, change):
    save_file(TENSORS, tmp_path / "x")
    source = SafetensorsFile(tmp_path / "x")
    if change == "gone":
        os.unlink(tmp_path / "x")
    else:
        os.truncate(tmp_path / "x", 20 if change == "cut" else 9999)
    assert ("cannot be read" if change == "gone" else "has changed") in message(source.read, "h.0.weight")


HUGE = 2**60
WRONG = {
    "empty": (b"", "it has 0 bytes"),
    "short": (b"\x02\0\0", "it has 3 bytes"),
    "huge header": (struct.pack("<Q", HUGE) + b"{}", f"would have {HUGE} bytes, 2 follow"),
    "no json": (struct.pack("<Q", 4) + b"{\"a\"", "not JSON"),
    "bad utf-8": (struct.pack("<Q", 7) + b'{"\xff":1}', "byte 2 is not UTF-8"),
    "deep": (struct.pack("<Q", 200_000) + b"[" * 200_000, "nest too deeply"),
    "a list": (struct.pack("<Q", 2) + b"[]", "is a list"),
    "long number": (struct.pack("<Q", 10_006) + b'{"a":' + b"1" * 10_000 + b"}", "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_broken_beginning_is_an_error_in_words(tmp_path, name):
    raw, words = WRONG[name]
    (tmp_path / "x").write_bytes(raw)
    said = message(SafetensorsFile, tmp_path / "x")
    assert words in said and "download it again" in said


TENSOR_FAULTS = {
    "dtype": (entry("F4_E9", [4]), "'F4_E9' is none of BOOL"),
    "dtype no text": (entry(["F32"]), "['F32'] is none of"),
    "negative": (entry(shape=[-1, -2]), "negative size"),
    "huge": (entry(shape=[2**63]), "larger than any tensor"),
    "product": (entry(shape=[2**40, 2**40]), "larger than any tensor"),
    "empty and huge": (entry(shape=[0, 2**62, 2**62], offsets=[0, 0]), "larger than any tensor"),
    "many sizes": (entry(shape=[1] * 2000), "larger than any tensor"),
    "fraction": (entry(shape=[2.0]), "not a list of whole numbers"),
    "true": (entry(shape=[True, 2]), "not a list of whole numbers"),
    "no shape": ({"dtype": "F32", "data_offsets": [0, 8]}, "shape None"),
    "beyond": (entry(shape=[3], offsets=[0, 12]), "outside the 8 bytes"),
    "backwards": (entry(offsets=[8, 0]), "outside"),
    "before": (entry(offsets=[-8, 0]), "outside"),
    "size": (entry(shape=[1]), "needs 4 bytes, its data_offsets [0, 8] give 8"),
    "three offsets": (entry(offsets=[0, 4, 8]), "not two whole numbers"),
    "no object": ([], "is a list, not an object"),
    "null": (None, "is null, not an object"),
}


@pytest.mark.parametrize("name", TENSOR_FAULTS)
def test_an_entry_that_cannot_be_is_named(tmp_path, name):
    wrong, words = TENSOR_FAULTS[name]
    said = message(SafetensorsFile, written(tmp_path / "x", {"the.tensor": wrong}, bytes(8)))
    assert "'the.tensor': " in said and words in said


def test_all_faults_come_at_once(tmp_path):
    header = {name: wrong for name, (wrong, _) in TENSOR_FAULTS.items()} | {"__metadata__": {"a": 1}}
    with pytest.raises(InputError) as caught:
        SafetensorsFile(written(tmp_path / "x", header, bytes(8)))
    assert len(caught.value.faults) == len(header)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2), "'a' stands there twice"),
        (json.dumps({"a": entry(), "b": entry(offsets=(4, 12))}).encode(), "'b' begins at byte"),
        (json.dumps({"a": entry()}).encode(), "4 of its 12 bytes of data belong to no tensor"),
        (json.dumps({"a": entry(shape=[1], offsets=(8, 12))}).encode(), "8 of its 12 bytes"),
    ],
)
def test_doubles_overlaps_and_gaps_are_found(tmp_path, raw, words):
    assert words in message(SafetensorsFile, written(tmp_path / "x", raw, bytes(12)))


def test_a_boolean_of_two_is_refused(tmp_path):
    path = written(tmp_path / "x", {"mask": entry("BOOL", [3], [0, 3])}, b"\0\1\2")
    assert "'mask' is BOOL" in message(SafetensorsFile(path).read, "mask")


def test_names_of_a_file_cannot_write_to_the_terminal(tmp_path):
    said = message(SafetensorsFile, written(tmp_path / "x", {"\x1b[31m\ud800" + "long" * 999: []}))
    assert "\x1b" not in said and said.encode() and len(said) < 500


def test_what_is_no_file_is_said(tmp_path):
    os.symlink("nowhere", tmp_path / "link")
    assert "there is no such file" in message(SafetensorsFile, tmp_path / "x")
    assert "is a link to a file that is gone" in message(SafetensorsFile, tmp_path / "link")
    assert "is not a file" in message(SafetensorsFile, tmp_path)
    assert "cannot be read" in message(SafetensorsFile, "a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")  # opening one would wait for ever
        assert "is not a file" in message(SafetensorsFile, tmp_path / "pipe")


# ---- shards ----


def sharded(folder, where=None, metadata=None):
    save_file({"a": torch.tensor([1.0]), "b": torch.tensor([2.0])}, folder / "model-1-of-2.safetensors")
    save_file({"c": torch.tensor([3, 4])}, folder / "model-2-of-2.safetensors")
    where = where or {"c": "model-2-of-2.safetensors", "a": "model-1-of-2.safetensors", "b": "model-1-of-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 24} if metadata is None else metadata, "weight_map": where}))
    return index


def test_shards_read_like_one_file(tmp_path):
    source = Shards(sharded(tmp_path))
    assert source.shapes() == {"c": (2,), "a": (1,), "b": (1,)} and list(source.shapes()) == ["c", "a", "b"]
    assert [source.read(name).tolist() for name in "abc"] == [[1.0], [2.0], [3, 4]]
    assert source.metadata == {"total_size": 24} and source.path == tmp_path / "model.safetensors.index.json"
    assert "has no tensor 'd'" in message(source.read, "d")


def test_all_that_is_missing_is_listed(tmp_path):
    index = sharded(tmp_path)
    os.unlink(tmp_path / "model-1-of-2.safetensors")
    os.truncate(tmp_path / "model-2-of-2.safetensors", 9)
    said = message(Shards, index)
    assert "- model-1-of-2.safetensors is missing" in said and "model-2-of-2.safetensors: is not a whole safetensors file" in said


def test_index_and_shards_must_agree(tmp_path):
    said = message(Shards, sharded(tmp_path, {"a": "model-1-of-2.safetensors", "c": "model-1-of-2.safetensors"}))
    assert "model-1-of-2.safetensors has 'b', the index does not" in said
    assert "'c' should be in model-1-of-2.safetensors and is not" in said


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "a\\b", "..\\x", "C:x", "..", ".", "", "x\n", "a\0b", "\ud800"])
def test_an_index_leads_nowhere_else(tmp_path, name):
    (tmp_path / "folder").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "x")
    said = message(Shards, sharded(tmp_path / "folder", {"a": name, "b": "../y"}))
    assert f"{name!r} is not the name of a file beside the index" in said and "'../y' is not" in said


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is not JSON"),
        (b"[]", "has no weight_map"),
        (b'{"weight_map": {}}', "has no weight_map"),
        (b'{"weight_map": [1]}', "has no weight_map"),
        (b'{"weight_map": {"a": 3}}', "the file of 'a' is a number"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "'a' stands there twice"),
        (b'{"weight_map": {"a": "x"}, "metadata": 3}', "metadata is a number"),
        (b"[" * 99_999, "nest too deeply"),
        (b'{"\xff": 1}', "is not UTF-8"),
    ],
)
def test_an_index_that_cannot_be_followed(tmp_path, raw, words):
    (tmp_path / "i.json").write_bytes(raw)
    assert words in message(Shards, tmp_path / "i.json")
