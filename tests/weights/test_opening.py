"""One door to all readers: what a file is, what a folder lacks."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import save_file

from plait.errors import InputError
from plait.weights.gguf import GgufFile
from plait.weights.opening import open_source
from plait.weights.safetensors_file import SafetensorsFile, Shards
from plait.weights.torch_file import TorchFile

TENSORS = {"a": torch.tensor([1.0, 2.0])}


def safetensors(path):
    save_file(TENSORS, path)


def torch_zip(path):
    torch.save(TENSORS, path)


def torch_old(path):
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)


def gguf(path):
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"a" + struct.pack("<IQIQ", 1, 2, 0, 0)
    path.write_bytes(head + bytes(-len(head) % 32) + struct.pack("<2f", 1, 2))


def index(ending, writer):
    def write(path):
        path.write_text(json.dumps({"weight_map": {"a": f"model-1-of-1{ending}"}}))
        writer(path.parent / f"model-1-of-1{ending}")

    return write


FILES = {
    "model.safetensors": (safetensors, SafetensorsFile),
    "model.safetensors.index.json": (index(".safetensors", safetensors), Shards),
    "pytorch_model.bin": (torch_zip, TorchFile),
    "pytorch_model.bin.index.json": (index(".bin", torch_old), Shards),
    "anything.gguf": (gguf, GgufFile),
}


def message(path) -> str:
    with pytest.raises(InputError) as caught:
        open_source(path)
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("by", ["folder", "file", "text"])
def test_a_file_and_its_folder_open_the_same(tmp_path, name, by):
    write, kind = FILES[name]
    write(tmp_path / name)
    source = open_source({"folder": tmp_path, "file": tmp_path / name, "text": str(tmp_path / name)}[by])
    assert type(source) is kind and source.path == tmp_path / name
    assert source.shapes() == {"a": (2,)} and source.read("a").tolist() == [1.0, 2.0]


def test_a_folder_takes_the_first_of_the_layout(tmp_path):
    for name, (write, kind) in reversed(FILES.items()):
        write(tmp_path / name)
        assert type(open_source(tmp_path)) is kind


@pytest.mark.parametrize(
    ("write", "kind"), [(safetensors, SafetensorsFile), (torch_zip, TorchFile), (torch_old, TorchFile), (gguf, GgufFile)]
)
@pytest.mark.parametrize("name", ["5f0c", "x.bin", "x.pt", "x.pth"])
def test_the_first_bytes_say_what_a_file_is(tmp_path, write, kind, name):
    """Caches name files after their checksums, and `.bin` is what everybody calls everything."""
    write(tmp_path / name)
    assert type(open_source(tmp_path / name)) is kind


def test_every_length_of_a_header_is_known_for_one(tmp_path):
    for length in range(60, 60 + 256):  # one of them begins with a pickle's first byte
        head = b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'.ljust(length)
        (tmp_path / "x").write_bytes(struct.pack("<Q", length) + head + b"\7")
        assert open_source(tmp_path / "x").read("a").item() == 7


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "x"])
def test_a_pickle_by_any_name_is_not_run(tmp_path, name):
    torch.save(Evil(tmp_path / "ran"), tmp_path / name)
    said = message(tmp_path / name)
    assert not (tmp_path / "ran").exists() and ("is not a whole safetensors file" in said) == (name == "model.safetensors")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "and nothing else with weights; download one of them into it"),
        (["config.json"], "and nothing else with weights"),
        (["a.gguf", "b.gguf"], "has 2 GGUF files"),
        (["model-00001-of-00002.safetensors"], "its shards need their index: download model.safetensors.index.json or"),
        (["diffusion_pytorch_model.safetensors"], "give the path of one of its files of weights\n  - diffusion"),
        (["x.pth"], "- x.pth"),
    ],
)
def test_what_a_folder_lacks_is_said(tmp_path, names, words):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    said = message(tmp_path)
    assert words in said and (len(names) != 2 or "- b.gguf" in said)
    assert "GGUF" in said or "has none of model.safetensors, model.safetensors.index.json, pytorch_model.bin, " in said


def test_a_link_to_nothing_is_not_stepped_over(tmp_path):
    os.symlink("gone", tmp_path / "model.safetensors")
    torch_zip(tmp_path / "pytorch_model.bin")
    assert "model.safetensors: is a link to a file that is gone" in message(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "x.gguf", "model.safetensors.index.json"])
def test_a_pointer_of_git_lfs_is_known_for_one(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert "git lfs pull" in message(tmp_path) and "git lfs pull" in message(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("x", b"", "it begins with b''"),
        ("x.json", b'{"a": 1}', "is no file of weights that can be read"),
        ("x.html", b"<!DOCTYPE html>", "b'<!DOCTYPE ht'"),
        ("x.gguf", b"GGUX", "does not begin with 'GGUF'"),
        ("x.safetensors", b"", "it has 0 bytes"),
        ("x.bin", b"hello", "is not a whole file of torch.save"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, name, raw, words):
    (tmp_path / name).write_bytes(raw)
    assert words in message(tmp_path / name)


def test_what_is_not_there_is_said(tmp_path):
    assert "there is no such file" in message(tmp_path / "x")
    assert "cannot be read" in message("a\0b")
