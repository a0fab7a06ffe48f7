"""What tasks on rows with right answers share: reading, holding rows out, and what a lesson of theirs is made of."""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from plait.core.model import Model
from plait.data.corpus import Flat
from plait.data.feed import RowFeed
from plait.data.report import Report
from plait.data.split import held_out, source_key
from plait.errors import InputError
from plait.hub.runs import CONFIG, read_config
from plait.tasks.objective import Objective
from plait.text.loaded import LoadedTokenizer
from plait.verbs.eval import Eval
from plait.verbs.lessons.beginning import Beginning
from plait.verbs.lessons.lesson import Lesson, Say, usual_recipe
from plait.verbs.lessons.named import files_of, test_part_of
from plait.verbs.train import Train

SHARE = 0.1  # held out where no --valid is given
MOST = 2000  # rows held out: more would only make evaluations slow
LONGEST = 256  # tokens, where --context does not say
SAMPLED = 2000  # texts whose tokens are counted before a model is chosen


class Placed(Protocol):
    @property
    def where(self) -> str: ...


class Fed(Protocol):
    """Encoded rows: arrays in a dataclass, and the batches made of them."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def feed(self, tokens_per_batch: int, seed: int = 0) -> RowFeed: ...


T = TypeVar("T")
R = TypeVar("R", bound=Placed)
Read = Callable[[Sequence[str]], tuple[list[R], Report]]


@dataclass
class Rows(Generic[R]):
    """Rows to learn from, and to validate on."""

    train: list[R]
    valid: list[R]


def read_rows_of(
    data: Sequence[str],
    valid: Sequence[str],
    seed: int,
    read: Read[R],
    key: Callable[[R], str],
    stratum: Callable[[R], Hashable],
    say: Say,
) -> Rows[R]:
    """Rows of the files. Without files for validation, a tenth of each stratum is held out, all rows of a key on one side."""
    rows, report = read(files_of(data, say))
    say(str(report))
    if valid:
        checks, report = read(files_of(valid, say))
        say(f"for validation, {report}")
        known = {source_key(key(row)) for row in rows}
        if shared := sum(source_key(key(row)) in known for row in checks):
            say(f"warning: {shared:,} of {len(checks):,} rows of --valid stand in --data too: what is measured on them is memory")
        return Rows(rows, checks)
    keys = [source_key(key(row)) for row in rows]
    if len(set(keys)) < 2:
        raise InputError(f"{', '.join(data)}: all rows hold the same text, so none can be held out for validation: give more, or --valid")
    out = held_out(keys, [stratum(row) for row in rows], SHARE, seed, MOST)
    sides = Rows([row for row, held in zip(rows, out) if not held], [row for row, held in zip(rows, out) if held])
    say(f"{len(sides.train):,} rows to learn from, {len(sides.valid):,} held out to validate")
    return sides


def longest_of(verb: Train, start: Beginning) -> int:
    """Tokens of a row, special ones counted."""
    return min(verb.context or LONGEST, start.max_length or verb.context or LONGEST)


def lesson_of(
    start: Beginning,
    longest: int,
    objective: Objective,
    sides: Sequence["Fed"],
    seed: int,
    answers: dict[str, Any],
    measure: Callable[[Model], dict[str, float]] | None = None,
    keep: Callable[[Path], None] = lambda folder: None,
) -> Lesson:
    """`sides` are those to learn from and to validate on; `answers` is what the run's config.json says for answering, and `keep` writes
    what that needs besides the tokenizer."""
    choice = start.choice
    feed, checks = sides[0].feed(choice.batch_tokens, seed), sides[1].feed(8192)

    def kept(folder: Path) -> None:
        start.keep(folder)
        keep(folder)

    return Lesson(
        choice.arch,
        choice.config,
        objective,
        feed,
        list(checks.all()),
        fingerprint(feed, *sides),
        kept,
        usual_recipe(choice.arch, choice.config, start.released),
        {"batch_tokens": choice.batch_tokens, "smoothing": choice.smoothing, "max_length": longest, "answers": answers},
        start.start,
        measure,
        start.tokenizer.decode,
    )


def fingerprint(feed: RowFeed, *sides: "Fed") -> str:
    """Differs when the same (epoch, position) would mean another batch, or validation other rows."""
    digest = hashlib.sha256(feed.fingerprint.encode())
    for held in (getattr(side, f.name) for side in sides for f in fields(side)):
        for array in (held.offsets, held.ids) if isinstance(held, Flat) else (held,):
            digest.update(array.tobytes() if isinstance(array, np.ndarray) else repr(array).encode())
    return digest.hexdigest()[:16]


def counter_of(texts: Sequence[str], longest: int | None = None) -> Callable[[LoadedTokenizer], int]:
    """About how many tokens texts have that are cut to `longest`, from a sample of them: encoding all of them twice would take long."""

    def count(tokenizer: LoadedTokenizer) -> int:
        sample = texts[:: max(1, len(texts) // SAMPLED)]
        lengths = [min(len(ids), longest or len(ids)) for ids in tokenizer.encode_batch(sample)]
        return round(sum(lengths) * len(texts) / len(sample))

    return count


def in_chunks(items: Iterable[T], n: int) -> Iterator[list[T]]:
    """Lists of n of them, the last one perhaps shorter."""
    rest = iter(items)
    while some := list(islice(rest, n)):
        yield some


# ---- plait eval ----


def trained_by(ready: Any) -> Train | None:
    """What the run was trained with; None for a released checkpoint."""
    folder = ready.parts.folder
    if not (folder / CONFIG).exists() or "model_type" in ready.config:
        return None
    saved, known = read_config(folder).get("train"), {f.name for f in fields(Train)}
    if saved is None:  # a released model that was made smaller
        return None
    return Train(**{"out": folder, **{name: value for name, value in saved.items() if name in known}})


def rows_to_score(
    verb: Eval,
    train: Train | None,
    read: Read[R],
    key: Callable[[R], str],
    stratum: Callable[[R], Hashable],
    say: Say,
    divide: Callable[[Train], Rows[R]] | None = None,
) -> tuple[list[R], list[R]]:
    """(rows to score, what the run learned from besides: for baselines, empty where it cannot be had)

    Without --data, what is scored is the test part of the built-in set that the run was trained on, else what training held out, or its
    --valid; `divide` says which rows those are, where `read_rows_of` does not.
    """
    asked = files_of(verb.data, say, "test") or test_part_of(train.data if train else [], say)
    sides: Rows[R] | None = None
    if train is not None and (verb.baselines or not asked):
        try:
            sides = divide(train) if divide else read_rows_of(train.data, train.valid, train.seed, read, key, stratum, lambda _: None)
        except InputError as error:
            if not asked:
                raise
            say(f"no baselines: the training data cannot be read ({'; '.join(error.faults) or error.message})")
    if asked:
        rows, report = read(asked)
        say(str(report))
    elif sides is not None:
        rows = sides.valid
        say(f"no --data: scoring the {len(rows):,} rows that the run was validated on")
    else:
        raise InputError("--data is missing: give files with right answers that the model was not trained on")
    rows = rows[: verb.limit]
    scored = {source_key(key(row)) for row in rows}
    return rows, [row for row in sides.train if source_key(key(row)) not in scored] if sides and verb.baselines else []


def rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in figures.items()}
