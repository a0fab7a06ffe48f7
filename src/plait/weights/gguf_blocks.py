"""The types in which a GGUF stores tensors: quantised blocks into float32, and float32 into what is written.

The formats of the blocks are those of ggml-quants.h of the ggml project; `d` is a block's scale and `m` its minimum, as they are called
there.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

CHUNK = 2**14  # blocks unpacked at a time: a few MB of intermediate results, whatever the tensor's size

# Types whose tensors are as torch holds them.
PLAIN = {
    0: ("F32", torch.float32),
    1: ("F16", torch.float16),
    24: ("I8", torch.int8),
    25: ("I16", torch.int16),
    26: ("I32", torch.int32),
    27: ("I64", torch.int64),
    28: ("F64", torch.float64),
    30: ("BF16", torch.bfloat16),
}
# Types that are known and not read, so that an error can name them; 4, 5, 31 to 33 and 36 to 38 were withdrawn.
UNREAD = dict(zip((9, 10, 11, *range(15, 24), 29, 34, 35, 39), (
    "Q8_1 Q2_K Q3_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS IQ1_M TQ1_0 TQ2_0 MXFP4".split()
)))  # fmt: skip


def type_name(of_type: int) -> str:
    if of_type in PLAIN or of_type in BLOCKS:
        return PLAIN[of_type][0] if of_type in PLAIN else BLOCKS[of_type][0]
    return UNREAD.get(of_type, f"the type with number {of_type}, which is not known,")


# ---- blocks into float32: each takes [blocks, bytes] and gives what reshapes to [blocks, elements] ----


def unpacked(data: np.ndarray, of_type: int) -> np.ndarray:
    """The float32 values of a tensor of blocks, flat. Whatever the bits, these are values: a scale may also be infinite."""
    _, size, per, unpack = BLOCKS[of_type]
    blocks = data.reshape(-1, size)
    out = np.empty((len(blocks), per), np.float32)
    with np.errstate(all="ignore"):
        for at in range(0, len(blocks), CHUNK):
            part = blocks[at : at + CHUNK]
            out[at : at + CHUNK] = unpack(part).reshape(len(part), per)
    return out.reshape(-1)


def halves(b: np.ndarray) -> np.ndarray:
    """Pairs of bytes as float16, given as float32."""
    return np.ascontiguousarray(b).view("<f2").astype(np.float32)


def nibbles(b: np.ndarray) -> np.ndarray:
    """The last axis twice as long: all low halves, then all high ones."""
    return np.concatenate([b & 15, b >> 4], axis=-1)


def fifth_bits(b: np.ndarray) -> np.ndarray:
    """Bit j of four bytes, as 16 for element j."""
    return np.unpackbits(b, axis=-1, bitorder="little") << 4


def q4_0(b: np.ndarray) -> np.ndarray:
    return halves(b[:, :2]) * (nibbles(b[:, 2:]).astype(np.float32) - 8)


def q4_1(b: np.ndarray) -> np.ndarray:
    return halves(b[:, :2]) * nibbles(b[:, 4:]) + halves(b[:, 2:4])


def q5_0(b: np.ndarray) -> np.ndarray:
    return halves(b[:, :2]) * ((nibbles(b[:, 6:]) | fifth_bits(b[:, 2:6])).astype(np.float32) - 16)


def q5_1(b: np.ndarray) -> np.ndarray:
    return halves(b[:, :2]) * (nibbles(b[:, 8:]) | fifth_bits(b[:, 4:8])) + halves(b[:, 2:4])


def q8_0(b: np.ndarray) -> np.ndarray:
    return halves(b[:, :2]) * b[:, 2:].view(np.int8)


def scales_of_k(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scale and the minimum of eight groups, [blocks, 8, 1] each: 6 bits apiece in 12 bytes, after two halves to multiply with."""
    low, mid, high = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scale = np.concatenate([low & 63, high & 15 | low >> 6 << 4], axis=1)
    least = np.concatenate([mid & 63, high >> 4 | mid >> 6 << 4], axis=1)
    return (halves(b[:, :2]) * scale)[:, :, None], (halves(b[:, 2:4]) * least)[:, :, None]


def q4_k(b: np.ndarray) -> np.ndarray:
    d, m = scales_of_k(b)
    return d * nibbles(b[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32) - m


def q5_k(b: np.ndarray) -> np.ndarray:
    d, m = scales_of_k(b)
    fifth = b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # byte j has the bits of element j of all eight groups
    return d * (nibbles(b[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32) | fifth << 4) - m


def q6_k(b: np.ndarray) -> np.ndarray:
    low = nibbles(b[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    high = b[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    d = halves(b[:, 208:210]) * b[:, 192:208].view(np.int8)
    return d[:, :, None] * ((low | high << 4).astype(np.float32) - 32).reshape(-1, 16, 16)


# Number -> name, bytes of a block, elements of a block, how it is unpacked.
BLOCKS: dict[int, tuple[str, int, int, Callable[[np.ndarray], np.ndarray]]] = {
    2: ("Q4_0", 18, 32, q4_0),
    3: ("Q4_1", 20, 32, q4_1),
    6: ("Q5_0", 22, 32, q5_0),
    7: ("Q5_1", 24, 32, q5_1),
    8: ("Q8_0", 34, 32, q8_0),
    12: ("Q4_K", 144, 256, q4_k),
    13: ("Q5_K", 176, 256, q5_k),
    14: ("Q6_K", 210, 256, q6_k),
}
READ = ", ".join(name for name, *_ in (*PLAIN.values(), *BLOCKS.values()))
NUMBERS = {name: number for number, (name, *_) in (*PLAIN.items(), *BLOCKS.items())}
WRITTEN = ("F32", "F16", "BF16", "Q8_0")  # what a tensor can be packed as


def packed(t: Tensor, kind: str) -> Tensor:
    """Values as one of `WRITTEN`, as bytes. ValueError where rows are no whole blocks, or a value is too large for the type."""
    flat = t.detach().to(torch.float32).contiguous()
    if kind == "Q8_0":
        if t.shape[-1] % BLOCKS[NUMBERS[kind]][2]:
            raise ValueError(f"rows of {t.shape[-1]} are no whole blocks of {BLOCKS[NUMBERS[kind]][2]}")
        blocks = flat.numpy().reshape(-1, BLOCKS[NUMBERS[kind]][2])
        data = np.concatenate([packed_q8_0(blocks[at : at + CHUNK]) for at in range(0, len(blocks), CHUNK)]).reshape(-1)
        return torch.from_numpy(data)
    narrow = flat.to(PLAIN[NUMBERS[kind]][1])
    if not torch.equal(narrow.isfinite(), flat.isfinite()):
        raise ValueError(f"values up to {flat.abs().max():.3g} are too large for {kind}")
    return narrow.reshape(-1).view(torch.uint8)


def packed_q8_0(x: np.ndarray) -> np.ndarray:
    """[blocks, 32] as [blocks, 34] bytes: d = max|x| / 127 in float16, then x / d (d before its rounding), halves away from zero."""
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(all="ignore"):
        q = x * np.where(d == 0, np.float32(0), np.float32(1) / d)
        stored = d.astype(np.float16)
    if not np.isfinite(stored).all():
        raise ValueError(f"values up to {np.abs(x).max():.3g} are too large for Q8_0")
    q = np.sign(q) * np.floor(np.abs(q) + np.float32(0.5))
    return np.concatenate([stored.astype("<f2").view(np.uint8), q.astype(np.int8).view(np.uint8)], axis=1)
