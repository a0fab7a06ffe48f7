"""Damaged files of every format by the thousand: each reads, or is an `InputError`; nothing else, and no memory taken for it."""

import io
import json
import random
import struct
import sys

import pytest
import torch
from safetensors.torch import save

from plait.errors import InputError
from plait.weights.gguf import GgufFile
from plait.weights.opening import open_source
from plait.weights.safetensors_file import SafetensorsFile, Shards
from plait.weights.torch_file import TorchFile

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False]), "half": torch.ones(4, dtype=torch.bfloat16)}
MEMORY = 300  # MB more at most: a length that is believed would ask for thousands


def of_torch(as_zip: bool) -> bytes:
    held = io.BytesIO()
    torch.save(TENSORS, held, _use_new_zipfile_serialization=as_zip)
    return held.getvalue()


def of_gguf() -> bytes:
    def text(words: bytes) -> bytes:
        return struct.pack("<Q", len(words)) + words

    keys = [
        text(b"general.alignment") + struct.pack("<II", 4, 32),
        text(b"words") + struct.pack("<IIQ", 9, 8, 2) + text(b"one") + text("zwö".encode()),
        text(b"floats") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3),
        text(b"flag") + struct.pack("<IB", 7, 1),
    ]
    # One of F32, one of each kind of block: Q8_0 (34 bytes), Q4_K (144), Q6_K (210); every place a multiple of 32.
    entries = [
        text(b"a") + struct.pack("<IQQIQ", 2, 3, 2, 0, 0),
        text(b"q8") + struct.pack("<IQIQ", 1, 32, 8, 32),
        text(b"q4") + struct.pack("<IQIQ", 1, 256, 12, 96),
        text(b"q6") + struct.pack("<IQIQ", 1, 256, 14, 256),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(keys)) + b"".join(keys) + b"".join(entries)
    return head + bytes(-len(head) % 32) + bytes(range(256)) + bytes(210)


def of_index() -> bytes:
    return json.dumps({"metadata": {"total_size": 34}, "weight_map": dict.fromkeys(TENSORS, "model.safetensors")}).encode()


# What is damaged, who opens it, how often, and how many of its first bytes are damaged more than the rest.
FORMATS = {
    "safetensors": (lambda: save(TENSORS, {"format": "pt"}), SafetensorsFile, 6000, 300),
    "index": (of_index, Shards, 3000, 200),
    "gguf": (of_gguf, GgufFile, 6000, 360),
    "torch zip": (lambda: of_torch(True), TorchFile, 2000, 900),
    "torch old": (lambda: of_torch(False), TorchFile, 2000, 600),
    "any": (of_gguf, open_source, 1000, 16),
}
NUMBERS = [0, 1, 2**31 - 1, 2**32 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1]


def damaged(good: bytes, rng: random.Random, front: int) -> bytes:
    data = bytearray(good)

    def place() -> int:
        return rng.randrange(min(front, len(data)) if rng.random() < 0.8 else len(data))

    what = rng.random()
    if what < 0.15:
        return bytes(data[: place()])
    if what < 0.35:  # a length or an offset gone wild
        at = place()
        data[at : at + 8] = struct.pack("<Q", rng.choice(NUMBERS))
    elif what < 0.45:  # a piece moved to another place
        at, to = place(), place()
        data[to : to + 8] = data[at : at + 8]
    elif what < 0.55:  # digits and brackets, which text formats are made of
        at = place()
        data[at : at + 1] = rng.choice([b"", b"9" * 30, b"[" * 50, b"-", b'"', b"\\ud800", b"../", b"1e999", b"null", b"NaN"])
    else:
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = place()
            data[at] ^= 1 << rng.randrange(8) if rng.random() < 0.5 else rng.randrange(1, 256)
    return bytes(data)


def most_memory() -> float:
    """The most memory this process ever had, in MB; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


@pytest.mark.parametrize("name", FORMATS)
def test_damage_is_an_error_in_words_or_none(tmp_path, name):
    make, opener, times, front = FORMATS[name]
    good, rng, path = make(), random.Random(name), tmp_path / "damaged"
    (tmp_path / "model.safetensors").write_bytes(save(TENSORS))
    path.write_bytes(good)
    opener(path)
    before, read, refused = most_memory(), 0, 0
    for turn in range(times):
        said, raw = str(tmp_path), damaged(good, rng, front)
        with open(path, "r+b") as file:  # over the old one: file systems that write a file emptied first through to the disk are slow
            file.write(raw)
            file.truncate()
        try:
            source = opener(path)
            for tensor, shape in source.shapes().items():
                assert tuple(source.read(tensor).shape) == shape
            read += 1
        except InputError as error:
            refused, said = refused + 1, str(error)
        except BaseException as error:
            raise AssertionError(f"turn {turn}: {error!r} from {raw!r}") from error
        assert said.startswith(str(tmp_path)) and len(said) < 5000 and said.encode()
    assert refused > times / 10 and read > times / 100  # both happen, or the damage is not what it should be
    assert most_memory() - before < MEMORY
