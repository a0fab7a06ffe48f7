"""Checkpoint files: whole or not there, and damage is noticed."""

import errno
import json
import os

import pytest
import torch
from safetensors.torch import save_file

from plait.errors import InputError
from plait.train import checkpoints as ck

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([1, 2], dtype=torch.int64),
    "half": torch.tensor([0.5], dtype=torch.bfloat16),
    "none": torch.empty(0, 3),
    "scalar": torch.tensor(3.5),
}


def same(found: dict, wanted: dict) -> bool:
    return list(found) == list(wanted) and all(found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in wanted.items())


def test_what_was_written_comes_back(tmp_path):
    note = {"step": 3, "best": 1e-17, "words": "ä"}
    ck.write_tensors(tmp_path / "deep" / "x.safetensors", TENSORS, note)
    found, said = ck.read_tensors(tmp_path / "deep" / "x.safetensors")
    assert same({n: found[n] for n in TENSORS}, TENSORS) and len(found) == len(TENSORS) and said == note
    assert os.listdir(tmp_path / "deep") == ["x.safetensors"]


def test_transposed_and_shared_memory_is_written_as_it_reads(tmp_path):
    x = torch.arange(6.0).reshape(2, 3)
    ck.write_tensors(tmp_path / "x", {"t": x.T, "row": x[1]})
    found, note = ck.read_tensors(tmp_path / "x")
    assert torch.equal(found["t"], x.T) and torch.equal(found["row"], x[1]) and note is None


def test_a_file_of_others_has_no_note(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "x")
    found, note = ck.read_tensors(tmp_path / "x")
    assert torch.equal(found["w"], torch.ones(2)) and note is None


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_file_cut_short_is_refused(tmp_path, share):
    path = tmp_path / "x.safetensors"
    ck.write_tensors(path, TENSORS, {"step": 1})
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=r"x\.safetensors: is not a whole safetensors file"):
        ck.read_tensors(path)


def test_any_flipped_bit_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "x.safetensors"
    ck.write_tensors(path, TENSORS, {"step": 1})
    data = path.read_bytes()
    caught = 0
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        try:
            found, note = ck.read_tensors(path)
        except InputError:
            caught += 1
            continue
        named = b'"plait"' in path.read_bytes()  # the name under which the note stands, else it is a file of others
        assert not named or (same({n: found.get(n, torch.tensor(0)) for n in TENSORS}, TENSORS) and note == {"step": 1}), at
    assert caught > 0.8 * len(data)  # the rest is padding of the header and names of its own fields


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        ck.read_tensors(tmp_path / "x")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, code):
    path = tmp_path / "x"
    ck.write_atomically(path, b"old")

    def full(fd):
        raise OSError(code, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"the disk is full \(0.0 MB needed\); the file there before is untouched: free some space"):
        ck.write_atomically(path, b"new" * 1000)
    with pytest.raises(InputError, match="nothing was written"):
        ck.write_atomically(tmp_path / "y", b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("blow", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_whatever_stops_a_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch, blow, where):
    path = tmp_path / "x"
    ck.write_atomically(path, b"old")

    def stop(*_):
        assert path.read_bytes() == b"old"  # until the new one is whole
        raise blow

    monkeypatch.setattr(os, where, stop)
    with pytest.raises(blow):
        ck.write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written: .*; choose another place with --out"):
        ck.write_atomically(tmp_path / "file" / "x", b"new")


def test_groups_come_apart_again():
    flat = ck.grouped(model={"a/b": torch.ones(1), "c": torch.zeros(1)}, rng={"c": torch.ones(2)})
    assert sorted(flat) == ["model/a/b", "model/c", "rng/c"]
    assert sorted(ck.group_of(flat, "model")) == ["a/b", "c"] and list(ck.group_of(flat, "rng")) == ["c"]
    assert ck.group_of(flat, "mod") == {}


def test_the_generator_goes_on_where_it_was():
    states = ck.rng_state()
    drawn = torch.rand(5)
    torch.rand(100)
    ck.set_rng_state(states)
    assert torch.equal(torch.rand(5), drawn)


def test_the_mean_of_files(tmp_path):
    rows = [torch.randn(4, dtype=torch.float32) for _ in range(3)]
    paths = [tmp_path / str(i) for i in range(3)]
    for path, row in zip(paths, rows, strict=True):
        ck.write_tensors(path, {"w": row})
    wanted = ((rows[0].double() + rows[1].double() + rows[2].double()) / 3).float()
    assert torch.equal(ck.mean_of(paths)["w"], wanted) and ck.mean_of(paths)["w"].dtype == torch.float32


def test_json_is_readable_and_ends_its_line(tmp_path):
    ck.write_json(tmp_path / "x.json", {"name": "ä"})
    text = (tmp_path / "x.json").read_text("utf-8")
    assert json.loads(text) == {"name": "ä"} and "ä" in text and text.endswith("}\n")
