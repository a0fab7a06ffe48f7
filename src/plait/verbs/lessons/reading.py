"""Texts for language models and masked language models: read, a part held out, and encoded in memory or on disk."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.data.columns import columns_of
from plait.data.documents import Piece, Survey, Texts, split, survey
from plait.data.packing import Documents
from plait.data.sources import check_unchanged, digests
from plait.data.store import stored, too_large
from plait.errors import InputError
from plait.hub.runs import read_config
from plait.text.loaded import LoadedTokenizer
from plait.verbs.eval import Eval
from plait.verbs.lessons.lesson import Say
from plait.verbs.lessons.named import files_of, test_part_of
from plait.verbs.lessons.rows import trained_by
from plait.verbs.train import Train

SAMPLE = 200_000_000  # characters that a tokenizer is trained on at most: the first of them


@dataclass
class Read:
    """Documents to learn from and to validate on, as streams; `files` are the sha256 of what they were read from."""

    verb: Train
    train: Iterable[Piece]
    valid: Iterable[Piece]
    files: dict[str, str]
    large: bool
    ends: bool  # whether a text has tokens of its own around it, which a row of the data then keeps
    single: bool

    def sample(self) -> Iterator[str]:
        """Texts of the training part that a new tokenizer is made from."""
        left = SAMPLE
        for piece in self.train:
            if piece.messages is not None:
                raise InputError(f"{piece.where}: conversations need a chat template, which a new tokenizer has not: begin from --model")
            yield piece.text
            if (left := left - len(piece.text)) < 0:
                return

    def encoded(self, tokenizer: LoadedTokenizer) -> tuple[Documents, Documents]:
        """(to learn from, to validate on); where the data are large, in the run's folder `data`."""
        how = [self.files, self.verb.documents, self.verb.columns, self.verb.seed]

        def part(name: str, pieces: Iterable[Piece]) -> Documents:
            key = hashlib.sha256(repr([name, *how]).encode()).hexdigest()
            return stored(pieces, tokenizer, self.verb.out / "data" / name if self.large else None, key, self.ends)

        return part("train", self.train), part("valid", self.valid)


def read(verb: Train, saved: Mapping[str, Any] | None, say: Say, ends: bool = True) -> Read:
    """What `--data` and `--valid` hold; of a run that goes on, the same files as before."""
    data, checked_on = files_of(verb.data, say), files_of(verb.valid, say)
    files = digests([*data, *checked_on])
    if saved is not None:
        check_unchanged(saved.get("files", {}), files)
    texts = Texts(data, columns_of(verb.columns), verb.documents == "line")
    found = survey(texts)
    say(str(texts.report))
    if checked_on:
        train, valid = texts, Texts(checked_on, columns_of(verb.columns), verb.documents == "line")
        checked = survey(valid)
        if shared := len(np.intersect1d(found.keys, checked.keys)):
            say(f"warning: {shared:,} documents of --valid stand in --data too: the validation loss will flatter")
        held = f"{checked.documents:,} documents, {checked.characters:,} characters of --valid"
    else:
        train, valid, held = split(texts, found, verb.seed)
    say(f"{told(found)}; to validate on: {held}")
    return Read(verb, train, valid, files, too_large(files), ends, found.documents == 1)


def told(found: Survey) -> str:
    kind = "one document" if found.documents == 1 else f"{found.documents:,} documents"
    return f"{kind}, {found.characters:,} characters"


def to_score(verb: Eval, ready: Any, say: Say) -> tuple[list[Piece], Iterable[Piece], Train | None]:
    """(documents to score, what the run learned from besides: for baselines, empty where it cannot be had, how the run was trained)

    Without --data, what is scored is the test part of the built-in set that the run was trained on, else what training held out, or its
    --valid.
    """
    trained, sides = trained_by(ready), None
    data = files_of(verb.data, say, "test") or test_part_of(trained.data if trained else [], say)
    if trained is not None and (verb.baselines or not data):
        try:
            sides = read(trained, None, lambda _: None)
        except InputError as error:
            if not data:
                raise
            say(f"no baselines: the training data cannot be read ({'; '.join(error.faults) or error.message})")
    if not data and sides is None:
        raise InputError("--data is missing: give files that the model was not trained on")
    how = (columns_of(trained.columns), trained.documents == "line") if trained else ()
    asked: Iterable[Piece] = Texts(data, *how) if data else sides.valid  # type: ignore[union-attr]
    kept, n = list[Piece](), 0
    for piece in asked:
        if n == verb.limit:
            break
        kept.append(piece)
        n += piece.last
    return kept, sides.train if sides is not None else (), trained


def context_of(ready: Any, trained: Train | None) -> int:
    """How many tokens the model reads at a time: as many as in training, or as it may be given."""
    if trained is not None:
        return read_config(trained.out)["context"]
    return min(ready.max_length or 2048, 2048)


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in figures.items()}
