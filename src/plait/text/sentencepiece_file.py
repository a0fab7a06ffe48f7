"""SentencePiece model files: a reader of the few protobuf fields that matter, and the same tokenizer in `tokenizers`.

Fields are those of sentencepiece_model.proto (ModelProto, TrainerSpec, NormalizerSpec).
"""

import base64
import math
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from plait.errors import InputError

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # SentencePiece.Type
UNIGRAM, BPE, WORD, CHAR = 1, 2, 3, 4  # TrainerSpec.ModelType
SPACE = "▁"
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # how a protobuf field is written


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece model: pieces as (text, score, type), id = position, and what is done to a text before."""

    pieces: list[tuple[str, float, int]]
    kind: int = UNIGRAM
    charsmap: bytes = b""
    prefix: bool = True  # a space before the first word
    squeeze: bool = True  # no spaces at the ends, one where there were several
    byte_fallback: bool = False

    @property
    def unk(self) -> int:
        return next(id for id, piece in enumerate(self.pieces) if piece[2] == UNKNOWN)


def read_sentencepiece(path: str | Path) -> Pieces:
    """The model in a `.model` or `.spm` file; InputError with all that is wrong with it."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}; expected a SentencePiece model") from None
    return parse_sentencepiece(data, str(path))


def parse_sentencepiece(data: bytes, where: str) -> Pieces:
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(data):
            if number == 1:
                pieces.append(_piece(_bytes(value, 1), len(pieces)))
            elif number == 2:
                trainer.update(_fields(_bytes(value, 2)))
            elif number == 3:
                normalizer.update(_fields(_bytes(value, 3)))
        charsmap = _bytes(normalizer.get(2, b""), 2)
    except _Broken as error:
        raise InputError(f"{where}: is no SentencePiece model, or a broken one: {error}") from None
    kind = trainer.get(3, UNIGRAM)
    faults = piece_faults(pieces)
    if kind not in (UNIGRAM, BPE):
        name = {WORD: "word", CHAR: "char"}.get(kind, repr(kind)) if isinstance(kind, int) else "nothing"
        faults.append(f"it is of the kind {name}; expected unigram or bpe")
    if trainer.get(24, 0):
        faults.append("its spaces stand after words (treat_whitespace_as_suffix), which is not supported")
    if not normalizer.get(5, 1):
        faults.append("its spaces are not written as ▁ (escape_whitespaces=false), which is not supported")
    faults += charsmap_faults(charsmap)
    if faults:
        raise InputError(f"{where}: this SentencePiece model cannot be used", faults)
    return Pieces(pieces, kind, charsmap, bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)), bool(trainer.get(35, 0)))


class _Broken(Exception):
    pass


def _bytes(value: Any, number: int) -> bytes:
    if not isinstance(value, bytes):
        raise _Broken(f"field {number} holds a number; expected bytes")
    return value


def _piece(data: bytes, id: int) -> tuple[str, float, int]:
    fields = dict(_fields(data))
    text, score, type = fields.get(1, b""), fields.get(2, 0.0), fields.get(3, NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, float) or not isinstance(type, int):
        raise _Broken(f"piece {id} has a text, score or type of the wrong kind")
    try:
        return text.decode(), score, type
    except UnicodeDecodeError:
        raise _Broken(f"piece {id} is not UTF-8") from None


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field: int for varint and 64 bits, float for 32 bits, bytes for the rest."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, how = key >> 3, key & 7
        if number == 0:
            raise _Broken(f"field number 0 at byte {at}")
        if how == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if how == BYTES:
            size, at = _varint(data, at)
        elif how in (FIXED32, FIXED64):
            size = 4 if how == FIXED32 else 8
        else:
            raise _Broken(f"wire type {how} at byte {at}")
        if at + size > end:
            raise _Broken(f"a field of {size} bytes begins at byte {at} of {end}: the file is cut short")
        raw, at = data[at : at + size], at + size
        yield number, raw if how == BYTES else array("f", raw)[0] if how == FIXED32 else int.from_bytes(raw, "little")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _Broken("it ends amid a number: the file is cut short")
        byte = data[at]
        value, at = value | (byte & 0x7F) << shift, at + 1
        if byte < 0x80:
            return value, at
    raise _Broken(f"a number of more than 10 bytes at byte {at}")


def piece_faults(pieces: list[tuple[str, float, int]]) -> list[str]:
    """What is wrong with the vocabulary itself."""
    faults = [] if pieces else ["it has no pieces"]
    first: dict[str, int] = {}
    for id, (text, score, type) in enumerate(pieces):
        if not text:
            faults.append(f"piece {id} is empty")
        elif first.setdefault(text, id) != id:
            faults.append(f"piece {id} {text!r} is also piece {first[text]}")
        if not math.isfinite(score):
            faults.append(f"piece {id} {text!r} has the score {score}")
        if type not in range(1, 7):
            faults.append(f"piece {id} {text!r} is of the unknown type {type}")
        if type == BYTE and not re.fullmatch("<0x[0-9A-F]{2}>", text):
            faults.append(f"piece {id} {text!r} is called a byte; expected <0x00> to <0xFF>")
    unknown = [id for id, piece in enumerate(pieces) if piece[2] == UNKNOWN]
    if pieces and len(unknown) != 1:
        faults.append(f"{len(unknown)} pieces stand for the unknown; expected 1")
    return faults


def charsmap_faults(data: bytes) -> list[str]:
    """What is wrong with a precompiled character map; the library that uses it crashes on a wrong one, or later on a text.

    It is a double-array trie (darts-clone: 32-bit units, in blocks of 256) and a blob of replacements, each ended by a NUL.
    """
    if not data:
        return []
    size = int.from_bytes(data[:4], "little")
    if size % 1024 or size == 0 or 4 + size > len(data):
        return [f"its character map says {size} bytes of {len(data)} are its trie; expected a multiple of 1024"]
    units, blob = array("I", data[4 : 4 + size]), data[4 + size :]
    try:
        blob.decode()
    except UnicodeDecodeError:
        return ["its character map's replacements are not UTF-8"]
    if blob[-1:] != b"\0":
        return ["its character map's replacements do not end"]
    children: dict[int, list[int]] = {}
    for place, unit in enumerate(units):
        if 0 < unit & 0x800000FF < 256:  # a label, not a value
            children.setdefault(place ^ (unit & 0xFF), []).append(place)
    start = _offset(units[0])
    todo, seen = [start], {start}
    while todo:
        base = todo.pop()
        if base >= len(units):
            return [f"its character map points at unit {base} of {len(units)}"]
        for place in children.get(base, ()):
            below = place ^ _offset(units[place])
            if units[place] >> 8 & 1:
                value = units[below] & 0x7FFFFFFF if below < len(units) else len(blob)
                if value >= len(blob) or blob[value] & 0xC0 == 0x80:
                    return [f"its character map points at byte {value} of {len(blob)} bytes of replacements"]
            if below not in seen:
                seen.add(below)
                todo.append(below)
    return []


def normalizer_faults(step: Any) -> list[str]:
    """What is wrong with the character maps in the normalizer of a tokenizer.json."""
    if not isinstance(step, dict):
        return []
    faults = [fault for inner in step.get("normalizers") or () for fault in normalizer_faults(inner)]
    if step.get("type") == "Precompiled":
        try:
            faults += charsmap_faults(base64.b64decode(step["precompiled_charsmap"], validate=True))
        except (KeyError, TypeError, ValueError):
            faults.append("its character map (precompiled_charsmap) is not in base64")
    return faults


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 0x200) >> 6)


def build_sentencepiece(model: Pieces, extra: list[str] | None = None, *, prefix_normalizers: tuple[Any, ...] = ()) -> tokenizers.Tokenizer:
    """The tokenizer of `tokenizers` that gives the ids of SentencePiece itself; `extra` are special tokens after the last piece.

    `prefix_normalizers` run before the model's own.
    """
    steps: list[Any] = list(prefix_normalizers)
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.squeeze:  # of U+0020 only: tabs and such that the map left alone are characters like others
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.prefix:
        steps.append(normalizers.Prepend(" "))
    steps.append(normalizers.Replace(" ", SPACE))
    extra = extra or []
    backend = tokenizers.Tokenizer(_bpe(model, extra) if model.kind == BPE else _unigram(model, extra))
    backend.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
    splits: list[Any] = []
    user = sorted((text for text, _, type in model.pieces if type == USER), key=len, reverse=True)
    if user:
        splits.append(pre_tokenizers.Split(Regex("|".join(map(_quoted, user))), "isolated"))
    hidden = [text for text, _, type in model.pieces if type in (CONTROL, UNKNOWN, UNUSED) and len(text) > 1]
    hidden += ["<0x"] * any(type == BYTE for _, _, type in model.pieces)
    if model.kind == UNIGRAM and hidden:
        # Text never yields these pieces. The library's unigram model does not know that, so none of them may come to it whole.
        guard = "|".join(f"{_quoted(text[0])}(?={_quoted(text[1:])})" for text in (*hidden, *extra))
        splits.append(pre_tokenizers.Split(Regex(guard), "merged_with_previous"))
    if splits:
        backend.pre_tokenizer = pre_tokenizers.Sequence(splits)  # type: ignore[assignment]
    last: list[Any] = [decoders.Strip(" ", 1, 0)] if model.prefix else []
    bytes_back = [decoders.ByteFallback()] if model.byte_fallback else []
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), *bytes_back, decoders.Fuse(), *last])  # type: ignore[assignment]
    control = [text for text, _, type in model.pieces if type in (CONTROL, UNKNOWN)]
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in (*control, *extra)])
    return backend


def _quoted(text: str) -> str:
    """For Oniguruma, which has no quoting of its own: each character by its code."""
    return "".join(f"\\x{{{ord(character):X}}}" for character in text)


def _unigram(model: Pieces, extra: list[str]) -> models.Unigram:
    vocab = [(text, score) for text, score, _ in model.pieces]
    return models.Unigram([*vocab, *((text, 0.0) for text in extra)], unk_id=model.unk, byte_fallback=model.byte_fallback)


def _bpe(model: Pieces, extra: list[str]) -> models.BPE:
    """Merges in the order of the scores: SentencePiece joins the neighbours whose joint piece has the best one."""
    ids = {text: id for id, (text, _, _) in enumerate(model.pieces)}
    usable = {text for text, _, type in model.pieces if type in (NORMAL, USER, UNUSED)}
    merges = [
        (-score, ids[left], ids[right], left, right)
        for text, score, type in model.pieces
        if type == NORMAL
        for cut in range(1, len(text))
        if (left := text[:cut]) in usable and (right := text[cut:]) in usable
    ]
    merges.sort(key=lambda merge: merge[:3])
    ids |= {text: len(model.pieces) + place for place, text in enumerate(extra)}
    return models.BPE(
        vocab=ids,
        merges=[(left, right) for *_, left, right in merges],
        unk_token=model.pieces[model.unk][0],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=any(type == USER for _, _, type in model.pieces),  # the split isolates those
    )
