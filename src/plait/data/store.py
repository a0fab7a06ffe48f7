"""Documents as token ids: in memory, or where they are larger than it should hold in files that are read as they are needed."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import IO
from uuid import uuid4

import numpy as np

from plait.data.corpus import Flat
from plait.data.documents import Piece
from plait.data.packing import Documents
from plait.errors import InputError
from plait.text.chat import render_chat
from plait.text.loaded import LoadedTokenizer

IN_MEMORY = 2**30  # bytes of files up to which their ids are held in memory (about half as many)
PACKED = 5  # times that text shrinks when it is packed
AT_ONCE = 2**22  # characters encoded at a time
ARRAYS = ("ids", "lengths", "scored")
ABOUT = "about.json"


def too_large(paths: Iterable[str | Path]) -> bool:
    """Whether the ids of these files should lie on disk."""
    sizes = ((path.stat().st_size, path.suffix in (".gz", ".parquet")) for path in map(Path, paths))
    return sum(size * (PACKED if packed else 1) for size, packed in sizes) > IN_MEMORY


def stored(pieces: Iterable[Piece], tokenizer: LoadedTokenizer, folder: Path | None, key: str = "", ends: bool = True) -> Documents:
    """The documents as ids, with what begins and ends a text unless not `ends`; without a folder in memory, else in files of it.

    A folder that holds documents of the same `key` (what they were made from) is used as it is. A new one appears whole or not at all.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
    if folder is None:
        held = [io.BytesIO() for _ in ARRAYS]
        _write(encoded(pieces, tokenizer, ends), dtype, held)
        return _documents(*(np.frombuffer(part.getbuffer(), kind) for part, kind in zip(held, _kinds(dtype), strict=True)))
    key = hashlib.sha256(f"{key} {tokenizer.backend.to_str()}".encode()).hexdigest()
    if not _is_of(folder, key):
        beside = folder.with_name(f".{folder.name}.{uuid4().hex}.part")  # each rank of a job its own, on whatever machine
        try:
            beside.mkdir(parents=True)
            files = [open(beside / name, "wb") for name in ARRAYS]  # noqa: SIM115 - closed below
            try:
                _write(encoded(pieces, tokenizer, ends), dtype, files)
            finally:
                for file in files:
                    file.close()
            (beside / ABOUT).write_text(json.dumps({"key": key, "dtype": dtype.name}), "utf-8")
            if not _is_of(folder, key):  # another rank may have been quicker
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(beside, folder)
        except OSError as error:
            raise InputError(f"{folder}: the encoded data cannot be written: {error.strerror or error}; choose another --out") from None
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return _documents(*(np.memmap(folder / name, kind, "r") for name, kind in zip(ARRAYS, _kinds(dtype), strict=True)))


def _is_of(folder: Path, key: str) -> bool:
    return (folder / ABOUT).exists() and json.loads((folder / ABOUT).read_text("utf-8")).get("key") == key


def _kinds(dtype: np.dtype) -> tuple[np.dtype, np.dtype, np.dtype]:
    return dtype, np.dtype(np.int64), np.dtype(bool)


def _documents(ids: np.ndarray, lengths: np.ndarray, scored: np.ndarray) -> Documents:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Documents(Flat(ids, offsets), None if scored.all() else scored)


def _write(encoded: Iterable[tuple[list[int], list[bool], bool]], dtype: np.dtype, files: Sequence[IO[bytes]]) -> None:
    ids_file, lengths_file, scored_file = files
    length = 0
    for ids, scored, last in encoded:
        ids_file.write(np.asarray(ids, dtype).tobytes())
        scored_file.write(np.asarray(scored, bool).tobytes())
        length += len(ids)
        if last:
            lengths_file.write(np.int64(length).tobytes())
            length = 0


def encoded(pieces: Iterable[Piece], tokenizer: LoadedTokenizer, ends: bool = True) -> Iterator[tuple[list[int], list[bool], bool]]:
    """(ids, which of them are learned, whether they end a document) of each piece, with the tokens that stand around a text.

    What is learned after a prompt is encoded together with it where the prompt's own ids stay what they are, for that is how the
    model will read it; else by itself. A text so long that it comes in pieces is encoded piece by piece.
    """
    before, after = tokenizer.added() if ends else ([], [])
    if ends and after[-1:] != [tokenizer.eos_id]:
        after = [*after, tokenizer.eos_id]
    first, faults = True, list[str]()
    for group in _groups(pieces):
        plain = [piece.parts[0][0] for piece in group if len(piece.parts) == 1 and piece.messages is None]
        texts = iter(tokenizer.encode_batch(plain))
        for piece in group:
            if piece.messages is not None:
                try:
                    yield *_joined(turns(piece.messages, tokenizer), tokenizer.encode_marked), True
                except InputError as error:
                    faults.append(f"{piece.where}: {error.message}{''.join(f'; {fault}' for fault in error.faults)}")
                continue
            if len(piece.parts) == 1:
                ids = next(texts)
                scored = [piece.parts[0][1]] * len(ids)
            else:
                ids, scored = _joined(piece.parts, tokenizer.encode)
            if first:
                ids, scored = [*before, *ids], [*[piece.parts[0][1]] * len(before), *scored]
            if piece.last:
                ids, scored = [*ids, *after], [*scored, *[True] * len(after)]
            yield ids, scored, piece.last
            first = piece.last
    if faults:
        raise InputError("these conversations cannot be written out", faults)


def _groups(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    group, size = list[Piece](), 0
    for piece in pieces:
        group.append(piece)
        size += len(piece.text) + 64
        if size > AT_ONCE:
            yield group
            group, size = [], 0
    yield group


def _joined(parts: Sequence[tuple[str, bool]], encode) -> tuple[list[int], list[bool]]:
    ids, scored = list[int](), list[bool]()
    for (text, learned), so_far in zip(parts, accumulate(text for text, _ in parts), strict=True):
        together = encode(so_far)
        ids = together if together[: len(ids)] == ids else ids + encode(text)
        scored += [learned] * (len(ids) - len(scored))
    return ids, scored


def turns(messages: Sequence, tokenizer: LoadedTokenizer) -> list[tuple[str, bool]]:
    """A conversation as the chat template writes it, in parts: what the assistant says is learned, all before it is read."""

    def rendered(n: int, prompt: bool) -> str:
        return render_chat(tokenizer.chat_template, messages[:n], roles=tokenizer.special.roles, add_generation_prompt=prompt)

    whole = rendered(len(messages), False)
    parts, at = list[tuple[str, bool]](), 0
    for number, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        begin, end = rendered(number, True), rendered(number + 1, False)
        if not whole.startswith(begin) or not whole.startswith(end) or not at <= len(begin) < len(end):
            raise InputError("the chat template writes a conversation other than its beginning: give prompt and completion instead")
        parts += [(whole[at : len(begin)], False), (whole[len(begin) : len(end)], True)]
        at = len(end)
    if not parts:
        raise InputError("no message of the assistant, so nothing to learn")
    return [*parts, *([(whole[at:], False)] if whole[at:] else [])]
