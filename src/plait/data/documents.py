"""What a language model reads: documents, as a stream of pieces of text, so that files larger than memory pass through."""

import hashlib
import json
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.columns import Wanted
from plait.data.lines import LineFile
from plait.data.report import Report
from plait.data.tables import columns_there, layout, stream_rows
from plait.errors import InputError

CHUNK = 2**20  # characters of a long text that go through at a time
HELD_OUT = 0.1  # the share of documents, or of the one document, that is held out
ENOUGH = 4_000_000  # characters to validate on: more would only make evaluations slow
FORMS = (("messages",), ("prompt", "completion"), ("text",))  # columns of a table of documents, best first
ALIASES = {"completion": ("response",), "messages": ("conversations",)}


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of a document, as parts (text, whether it is to be learned); `last` ends the document.

    A conversation is its `messages`, which only a tokenizer with a chat template can write out; its text is their JSON.
    """

    parts: tuple[tuple[str, bool], ...]
    where: str
    last: bool = True
    messages: Sequence[Mapping[str, Any]] | None = None

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.parts)


@dataclass
class Texts:
    """Documents of files, in their order, read anew at each iteration; `report` says what was left out of the latest.

    A text file is one document, with `lines` each of its lines. Each row of a table is one: its column `text`; `prompt` and
    `completion`, of which only the second is learned; or `messages`, of which what the assistant says is learned.
    """

    paths: Sequence[str | Path]
    columns: Mapping[str, str] = field(default_factory=dict)
    lines: bool = False
    report: Report = field(default_factory=lambda: Report("read", unit="documents"))

    def __iter__(self) -> Iterator[Piece]:
        self.report = Report("read", unit="documents")
        faults: list[str] = []
        for path in map(Path, self.paths):
            try:
                whole = layout(path) == "text" and not self.lines
                yield from _whole(path, self.report) if whole else _rows(path, self.columns, self.report)
            except InputError as error:
                faults += error.faults or [error.message]
        if faults:
            raise InputError("the data cannot be used", faults)


def _whole(path: Path, report: Report) -> Iterator[Piece]:
    """A text file in pieces that end at line ends; its own line ends, as they stand."""
    file = LineFile(path, keep_ends=True)
    held, size = list[str](), 0
    for _, text in file:
        if text is None:
            continue
        if size + len(text) > CHUNK and held:
            yield Piece((("".join(held), True),), str(path), last=False)
            held, size = [], 0
        held.append(text)
        size += len(text)
    if faults := file.settle(report):
        raise InputError(f"{path}: is not all text", faults)
    if not held:
        raise InputError(f"{path}: is empty")
    report.kept += 1
    yield Piece((("".join(held), True),), str(path))


def _rows(path: Path, columns: Mapping[str, str], report: Report) -> Iterator[Piece]:
    there = {name.strip().lower() for name in (*columns_there(path), *columns)}
    fitting = [form for form in FORMS if set(columns) <= set(form)] or [FORMS[-1]]  # the last says which names are strange
    form = next((form for form in fitting if all({name, *ALIASES.get(name, ())} & there for name in form)), fitting[-1])
    wanted = Wanted(form, (), ALIASES, columns, {"messages": (list,)}, longest=None)
    for row in stream_rows([path], wanted, report):
        if form == ("messages",):
            messages = row.values["messages"]
            yield Piece(((json.dumps(messages), True),), row.where, messages=messages)
        else:
            yield Piece(tuple((row.values[name], name != "prompt") for name in form), row.where)


# ---- a part of them is held out ----


@dataclass
class Survey:
    """What a first pass over the documents found: their number, their size, and what tells them apart."""

    documents: int
    characters: int
    keys: np.ndarray  # uint64, one a document
    plain: bool  # whether all of it is text to be learned


def key_of(piece: Piece) -> int:
    """Of a document, by its first piece."""
    return int.from_bytes(hashlib.blake2b(piece.text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def survey(texts: Iterable[Piece]) -> Survey:
    keys, characters, first, plain = array("Q"), 0, True, True
    for piece in texts:
        if first:
            keys.append(key_of(piece))
        characters += len(piece.text)
        first, plain = piece.last, plain and len(piece.parts) == 1 and piece.messages is None
    return Survey(len(keys), characters, np.frombuffer(keys, np.uint64), plain)


@dataclass(frozen=True)
class Part:
    """Some documents of a stream, or some characters of the only one; `texts` is read anew at each iteration."""

    texts: Iterable[Piece]
    keep: Callable[[int], bool] | None = None
    span: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Piece]:
        if self.span is not None:
            yield from _within(self.texts, *self.span)
            return
        first, kept = True, True
        for piece in self.texts:
            if first and self.keep is not None:
                kept = self.keep(key_of(piece))
            first = piece.last
            if kept:
                yield piece


def _within(pieces: Iterable[Piece], start: int, stop: int) -> Iterator[Piece]:
    at = 0
    for piece in pieces:
        text = piece.text[max(start - at, 0) : max(stop - at, 0)]
        at += len(piece.text)
        if text:
            yield Piece(((text, True),), piece.where, last=at >= stop)


def split(texts: Iterable[Piece], found: Survey, seed: int = 0) -> tuple[Part, Part, str]:
    """(to learn from, held out, how in words): the end of a single text; of many documents those whose text falls on that side.

    Equal documents fall on one side, and which one depends on the text and the seed alone.
    """
    if found.documents == 1:
        cut = found.characters - min(found.characters - int((1 - HELD_OUT) * found.characters), ENOUGH)
        if not 0 < cut < found.characters or not found.plain:
            raise InputError("one document that cannot be cut in two: give more documents, or a file of its own by --valid")
        return Part(texts, span=(0, cut)), Part(texts, span=(cut, found.characters)), f"its last {found.characters - cut:,} characters"
    # Multiplying by an odd number permutes the keys, so that another seed holds out others.
    odd = 2 * int(np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw()) + 1
    places = np.unique(found.keys * np.uint64(odd % 2**64))
    if len(places) < 2:
        raise InputError(f"all {found.documents:,} documents are the same text: nothing would be left to validate on")
    mean = found.characters / found.documents
    held = max(1, min(int(HELD_OUT * len(places)), math.ceil(ENOUGH / max(mean, 1))))
    border = int(places[held])

    def is_held(key: int) -> bool:
        return key * odd % 2**64 < border

    return Part(texts, lambda key: not is_held(key)), Part(texts, is_held), f"{held:,} of {len(places):,} different documents"
