"""Files of torch.save: what torch wrote comes back, and a file that wants to run code does not get to."""

import io
import json
import os
import pickle
import random
import zipfile

import pytest
import torch

from plait.errors import InputError
from plait.weights.torch_file import TorchFile, torch_shards

TENSORS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([True, False]),
    "half": torch.tensor([0.5, float("nan")], dtype=torch.bfloat16),
    "ids": torch.arange(5),
    "none": torch.empty(0, 3),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
}


def message(of, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        of(*arguments)
    return str(caught.value)


def same(source, wanted) -> bool:
    return source.shapes() == {name: tuple(tensor.shape) for name, tensor in wanted.items()} and all(
        source.read(name).dtype == tensor.dtype and torch.equal(source.read(name).nan_to_num(7), tensor.nan_to_num(7))
        for name, tensor in wanted.items()
    )


def repacked(path, method=zipfile.ZIP_STORED, change=lambda name, data: data):
    """The archive written again by Python's own zipfile, its records changed on the way."""
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", method) as new:
        for name, data in records.items():
            new.writestr(name, change(name, data))
    return path


@pytest.mark.parametrize("as_zip", [True, False])
def test_what_torch_saved_comes_back(tmp_path, as_zip):
    torch.save(TENSORS, tmp_path / "x.bin", _use_new_zipfile_serialization=as_zip)
    source = TorchFile(str(tmp_path / "x.bin"))
    assert same(source, TENSORS) and source.metadata == {} and source.path == tmp_path / "x.bin"
    assert "did you mean 'a.weight'" in message(source.read, "a.weigth")


def test_a_models_state_and_what_stands_beside_it(tmp_path):
    model = torch.nn.Linear(2, 3)
    torch.save({"model": model.state_dict(), "epoch": 3, "optimizer": {"state": {}, "lr": 0.1}}, tmp_path / "x")
    source = TorchFile(tmp_path / "x")
    assert same(source, dict(model.state_dict())) and source.metadata == {"epoch": 3, "optimizer": {"state": {}, "lr": 0.1}}
    torch.save({"w": model.weight, "version": "2"}, tmp_path / "x")  # a Parameter, and a value among the tensors
    source = TorchFile(tmp_path / "x")
    assert not source.read("w").requires_grad and type(source.read("w")) is torch.Tensor and source.metadata == {"version": "2"}


def test_views_and_ties_become_tensors_of_their_own(tmp_path):
    x = torch.arange(6.0).reshape(2, 3)
    torch.save({"x": x, "t": x.T, "row": x[1]}, tmp_path / "x")
    source = TorchFile(tmp_path / "x")
    source.read("x").zero_()
    assert source.read("t").is_contiguous() and torch.equal(source.read("t"), x.T) and torch.equal(source.read("row"), x[1])


def test_only_what_is_asked_for_is_read(tmp_path):
    """The data lies in a mapping of the file: what was written behind its back after opening is seen by a read that comes later."""
    torch.save({"a": torch.full((9,), 258, dtype=torch.int16)}, tmp_path / "x")
    source = TorchFile(tmp_path / "x")
    raw, before = (tmp_path / "x").read_bytes(), os.stat(tmp_path / "x")
    with open(tmp_path / "x", "r+b") as file:
        file.seek(raw.index(b"\x02\x01" * 9))
        file.write(b"\x03\x01" * 9)
    os.utime(tmp_path / "x", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.read("a").tolist() == [259] * 9


def test_a_file_that_is_cut_while_it_is_open_is_noticed(tmp_path):
    """Without the check a mapped page that is gone ends the process."""
    torch.save({"a": torch.zeros(99_999)}, tmp_path / "x")
    source = TorchFile(tmp_path / "x")
    os.truncate(tmp_path / "x", 100)
    assert "has changed since it was opened" in message(source.read, "a")


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_code_is_not_run(tmp_path, as_zip, wrapped):
    evil = Evil(tmp_path / "ran")
    torch.save({"a": torch.zeros(2), "b": evil} if wrapped else evil, tmp_path / "x", _use_new_zipfile_serialization=as_zip)
    said = message(TorchFile, tmp_path / "x")
    assert "would run" in said and "mkdir" in said and "was not done" in said and not (tmp_path / "ran").exists()


def test_a_plain_pickle_is_not_run(tmp_path):
    (tmp_path / "x").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    assert "x: " in message(TorchFile, tmp_path / "x") and not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "x").read_bytes())  # it would have run
    assert (tmp_path / "ran").exists()


def test_a_pickle_in_a_zip_of_its_own_is_not_run(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "x")
    evil = pickle.dumps(Evil(tmp_path / "ran"), protocol=2)
    repacked(tmp_path / "x", change=lambda name, data: evil if name.endswith("data.pkl") else data)
    assert "would run" in message(TorchFile, tmp_path / "x") and not (tmp_path / "ran").exists()


def test_a_repacked_archive_is_read_and_a_compressed_one_refused(tmp_path):
    """Compressed data under a mapping would be read as weights."""
    torch.save(TENSORS, tmp_path / "x")
    assert same(TorchFile(repacked(tmp_path / "x")), TENSORS)
    said = message(TorchFile, repacked(tmp_path / "x", zipfile.ZIP_DEFLATED))
    assert "data/0' is compressed" in said and "data.pkl' is compressed" in said


def test_a_record_that_is_too_short_is_not_filled_from_its_neighbour(tmp_path):
    torch.save(TENSORS, tmp_path / "x")
    repacked(tmp_path / "x", change=lambda name, data: data[:-4] if name.endswith("data/0") else data)
    assert "'a.weight' should have 24 bytes" in message(TorchFile, tmp_path / "x")


def test_a_few_bytes_spread_over_a_huge_shape_are_not_unfolded(tmp_path):
    torch.save({"bomb": torch.zeros(1).expand(2**40), "ok": torch.ones(2)}, tmp_path / "x")
    source = TorchFile(tmp_path / "x")
    assert source.shapes()["bomb"] == (2**40,) and source.read("ok").tolist() == [1, 1]
    assert "has only 4 bytes in the file" in message(source.read, "bomb")


def test_a_boolean_of_two_is_refused(tmp_path):
    torch.save({"mask": torch.tensor([2, 1], dtype=torch.uint8).view(torch.bool)}, tmp_path / "x")
    assert "'mask' is boolean" in message(TorchFile(tmp_path / "x").read, "mask")


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (torch.zeros(2), "it holds a Tensor, not a dictionary"),
        ({}, "an empty dictionary"),
        ({"a": 1, "b": "x"}, "a dictionary of 'a', 'b'"),
        ([torch.zeros(1)], "a list"),
        ({0: torch.zeros(1)}, "not texts"),
        ({"model": {"a": torch.zeros(1)}, "ema": {"a": torch.zeros(1)}}, "several models"),
        ({"a": torch.eye(2).to_sparse(), "b": torch.zeros(1), "c": torch.empty(2, device="meta")}, "'a' is stored as torch.sparse_coo"),
        ({"a": torch.eye(2).to_sparse(), "b": torch.zeros(1), "c": torch.empty(2, device="meta")}, "'c' has no values"),
    ],
)
def test_what_is_no_dictionary_of_tensors_is_said(tmp_path, held, words):
    torch.save(held, tmp_path / "x")
    assert words in message(TorchFile, tmp_path / "x")


KEY = b"K\x01s."
TUPLES = {
    "deep key": b"}" + b")" + b"\x85" * 300_000 + KEY,  # hashing it overflows the stack of C
    "shared key": b"}" + b")" + b"q\x00h\x00\x86" * 90 + KEY,  # hashing it would take 2**90 steps
    "shared above a mark": b"}" + b")" + b"q\x000(h\x00h\x00t" * 90 + KEY,
}


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("name", TUPLES)
def test_tuples_that_cannot_be_hashed_are_not_built(tmp_path, name, as_zip):
    raw = b"\x80\x02" + TUPLES[name]
    if as_zip:
        torch.save({"a": torch.zeros(2)}, tmp_path / "x")
        repacked(tmp_path / "x", change=lambda name, data: raw if name.endswith("data.pkl") else data)
    else:
        (tmp_path / "x").write_bytes(raw)
    assert "it builds a tuple of more than 4096 parts" in message(TorchFile, tmp_path / "x")


@pytest.mark.parametrize("as_zip", [True, False])
def test_what_checkpoints_hold_beside_tensors_is_let_through(tmp_path, as_zip):
    held = {"random": random.Random(0).getstate(), "sizes": torch.Size([1, 2]), "list": [(1, (2, ()))] * 9999, ("a", 1): {2: {3.5}}}
    torch.save({"model": TENSORS, **held}, tmp_path / "x", _use_new_zipfile_serialization=as_zip)
    source = TorchFile(tmp_path / "x")
    assert same(source, TENSORS) and source.metadata == {str(key): value for key, value in held.items()}


def test_torchscript_is_refused_by_name(tmp_path):
    torch.save(TENSORS, tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "x", "a") as archive:
        archive.writestr(archive.namelist()[0].split("/")[0] + "/constants.pkl", b"")
    assert "is TorchScript" in message(TorchFile, tmp_path / "x")


@pytest.mark.parametrize("raw", [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02.", b"text\n", b"(dp0\nS'a'\n."])
def test_what_torch_cannot_read_is_an_error_in_words(tmp_path, raw):
    (tmp_path / "x").write_bytes(raw)
    assert "is not a whole file of torch.save" in message(TorchFile, tmp_path / "x")


@pytest.mark.parametrize("as_zip", [True, False])
def test_every_truncation_is_noticed(tmp_path, as_zip):
    held = io.BytesIO()
    torch.save(TENSORS, held, _use_new_zipfile_serialization=as_zip)
    for cut in range(0, len(held.getvalue()), 41):
        (tmp_path / "x").write_bytes(held.getvalue()[:cut])
        assert message(TorchFile, tmp_path / "x").startswith(f"{tmp_path / 'x'}: ")


def test_shards(tmp_path):
    torch.save({"a": torch.tensor([1.0])}, tmp_path / "pytorch_model-1-of-2.bin")
    torch.save({"b": torch.tensor([2.0])}, tmp_path / "pytorch_model-2-of-2.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"b": "pytorch_model-2-of-2.bin", "a": "pytorch_model-1-of-2.bin"}}))
    source = torch_shards(index)
    assert source.shapes() == {"b": (1,), "a": (1,)} and source.read("a").tolist() == [1.0] and source.read("b").tolist() == [2.0]
    torch.save({"b": Evil(tmp_path / "ran")}, tmp_path / "pytorch_model-2-of-2.bin")
    os.unlink(tmp_path / "pytorch_model-1-of-2.bin")
    said = message(torch_shards, index)
    assert "1-of-2.bin is missing" in said and "would run" in said and not (tmp_path / "ran").exists()
