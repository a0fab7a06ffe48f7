"""Cleaning of pairs: regular whitespace, no empty sides, no outliers, no repeats; every removal is counted."""

import re
import unicodedata
from collections.abc import Iterable
from statistics import median

from plait.data.pairs import Pair
from plait.data.report import Report
from plait.errors import InputError

BREAKS = re.compile("[\t\n\r\v\f\x1c-\x1f\x85\u2028\u2029]+")
# Added to both lengths before they are compared. "OK" -> "In Ordnung" is five times as long and right; at sixty
# characters a factor of five is a misaligned line.
FLOOR = 12


def clean(
    pairs: Iterable[Pair],
    *,
    max_ratio: float | None = 4.0,
    max_chars: int | None = 2000,
    drop_duplicates: bool = True,
) -> tuple[list[Pair], Report]:
    """The usable pairs in their order, and what was removed.

    Both sides are brought to Unicode's NFC form and stripped; tabs and line breaks inside become one space, runs of spaces
    and no-break spaces stay. `max_ratio` bounds how far the lengths of the sides (in characters, with a floor so that short
    strings survive) may be from the set's own median ratio, so that it needs no scaling for Chinese or for phonemes; None
    switches it off. `max_chars` bounds each side. Only an exact repeat of source and target counts as a duplicate: several
    right answers to one source stay.
    """
    if max_ratio is not None and max_ratio <= 1:
        raise InputError(f"max_ratio={max_ratio} would drop nearly every pair: give a number above 1 (usual: 3 to 9), or None")
    report, kept = Report("cleaned"), []
    seen: set[tuple[str, str]] = set()
    for pair in pairs:
        source, target = regular(pair.source), regular(pair.target)
        if source != pair.source or target != pair.target:
            report.note("whitespace or Unicode form made regular", pair.where)
            pair = Pair(source, target, pair.where)
        if not source or not target:
            report.drop("both sides empty" if source == target else f"empty {'target' if source else 'source'}", pair.where)
        elif max_chars is not None and max(len(source), len(target)) > max_chars:
            report.drop(f"longer than {max_chars} characters", pair.where)
        elif drop_duplicates and (source, target) in seen:
            report.drop("duplicate", pair.where)
        else:
            kept.append(pair)
            if drop_duplicates:
                seen.add((source, target))
    if max_ratio is not None and kept:
        kept = _without_outliers(kept, max_ratio, report)
    report.kept = len(kept)
    return kept, report


def regular(text: str) -> str:
    """The text in NFC, stripped, with tabs and line breaks inside it as one space."""
    text = text.strip()
    if text.isascii() and text.isprintable():
        return text  # the common case, ten times as fast
    return unicodedata.normalize("NFC", BREAKS.sub(" ", text)).strip()


def _without_outliers(pairs: list[Pair], max_ratio: float, report: Report) -> list[Pair]:
    ratios = [(len(pair.target) + FLOOR) / (len(pair.source) + FLOOR) for pair in pairs]
    middle, kept = median(ratios), []
    for pair, ratio in zip(pairs, ratios, strict=True):
        if max(ratio / middle, middle / ratio) > max_ratio:
            report.drop(f"lengths differ more than {max_ratio:g} times the usual ratio", pair.where)
        else:
            kept.append(pair)
    return kept
