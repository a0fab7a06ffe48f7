"""Train and validation sets that share no source, and stay the same when rows are added or reordered."""

import hashlib
import math
import unicodedata
from collections.abc import Hashable, Iterable, Sequence

from plait.data.pairs import Pair
from plait.errors import InputError


def source_key(source: str) -> str:
    """What makes two sources the same for a split: NFC, case folded, whitespace runs as one space."""
    return " ".join(unicodedata.normalize("NFC", source).casefold().split())


def _place(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on the source and the seed alone."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split_by_source(pairs: list[Pair], valid: float | int = 0.02, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """(train, valid): `valid` is a fraction below 1 of the distinct sources, or a whole number of them.

    A source falls on a side by its sha256, so all its answers stay together and a row added later moves no other
    (with a whole number, few). Both sides get at least one source. InputError for fewer than two distinct sources.
    """
    keys = [source_key(pair.source) for pair in pairs]
    distinct = sorted((_place(key, seed), key) for key in set(keys))
    if len(distinct) < 2:
        raise InputError(
            f"{len(pairs)} pairs with {len(distinct)} distinct sources cannot be split: at least 2 distinct sources are needed,"
            " one to learn from and one to measure on; give more data, or a file of its own for validation"
        )
    whole = isinstance(valid, int)
    if not math.isfinite(valid) or valid <= 0 or (not whole and valid >= 1):
        raise InputError(f"valid={valid}: expected a fraction between 0 and 1 (such as 0.02), or a whole number of sources")
    if whole and valid >= len(distinct):
        raise InputError(f"valid={valid} of {len(distinct)} distinct sources leaves none to train on: at most {len(distinct) - 1}")
    n = int(valid) if whole else sum(place < valid for place, _ in distinct)
    held_out = {key for _, key in distinct[: min(max(n, 1), len(distinct) - 1)]}
    train = [pair for pair, key in zip(pairs, keys, strict=True) if key not in held_out]
    return train, [pair for pair, key in zip(pairs, keys, strict=True) if key in held_out]


def held_out(keys: Sequence[str], strata: Sequence[Hashable], share: float, seed: int = 0, most: int | None = None) -> list[bool]:
    """Which rows are held out: of each stratum (such as a label) `share` of its distinct keys, by their sha256; about `most` at most.

    All rows of a key are on one side, with the stratum of its first row. A stratum with a single key is all learned from; if that
    leaves nothing to hold out, one key is.
    """
    first: dict[str, Hashable] = {}
    for key, stratum in zip(map(source_key, keys), strata, strict=True):
        first.setdefault(key, stratum)
    share = min(share, most / len(first)) if most else share
    grouped: dict[Hashable, list[str]] = {}
    for key in sorted(first, key=lambda key: (_place(key, seed), key)):
        grouped.setdefault(first[key], []).append(key)
    held = {key for group in grouped.values() if len(group) > 1 for key in group[: max(1, round(share * len(group)))]}
    held = held or {next(iter(grouped.values()))[0]}
    return [source_key(key) in held for key in keys]


def check_disjoint(train: Iterable[Pair], valid: Iterable[Pair]) -> int:
    """How many distinct sources of `valid` also stand in `train`: what is measured on them is memory."""
    return len({source_key(pair.source) for pair in train} & {source_key(pair.source) for pair in valid})


def answers(pairs: Iterable[Pair]) -> dict[str, list[str]]:
    """Each source with its distinct right answers, both in the order of their first appearance."""
    grouped: dict[str, dict[str, None]] = {}
    for pair in pairs:
        grouped.setdefault(pair.source, {})[pair.target] = None
    return {source: list(targets) for source, targets in grouped.items()}
