"""Tagging: a label for each word, learned at the word's first piece."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from plait.data.examples import IGNORED
from plait.tasks.encoding import pieces_of, windows
from plait.tasks.objective import EntryObjective
from plait.text.loaded import LoadedTokenizer


class Tagging(EntryObjective):
    """Cross-entropy where an answer is asked for (Devlin et al. 2019, section 5.3)."""

    head = "tag"


@dataclass(frozen=True)
class Pieced:
    """A sentence as ids without special ones. `firsts[w]` is the place of word w's first piece, None where nothing is left of it.

    `answers` has a tag's number, or IGNORED, for each id. What the tokenizer itself takes for a word of its own ("U.S." as four) has
    its tag too, since a text that is not yet in words will be read so (`tasks.labels.Tagger`).
    """

    ids: list[int]
    answers: list[int]
    firsts: list[int | None]


def pieced(tokenizer: LoadedTokenizer, words: Sequence[str], tags: Sequence[str], numbers: Mapping[str, int]) -> Pieced:
    """The words joined by blanks, as ids; `numbers` are those of the tags."""
    text, starts, at = " ".join(words), list[int](), 0
    for word in words:
        starts.append(at)
        at += len(word) + 1
    pieces = pieces_of(tokenizer, text)
    parts: list[list[int]] = [[] for _ in words]  # of each word: where the tokenizer's own words in it begin
    before = None
    for i, ((start, _), own) in enumerate(zip(pieces.spans, pieces.words, strict=True)):
        part = parts[bisect_right(starts, start) - 1]
        if own is None or own != before or not part:
            part.append(i)
        before = own
    answers = [IGNORED] * len(pieces.ids)
    for places, tag in zip(parts, tags, strict=True):
        for i, part in zip(places, spread(tag, len(places)), strict=True):
            answers[i] = numbers.get(part, IGNORED)
    return Pieced(pieces.ids, answers, [places[0] if places else None for places in parts])


def spread(tag: str, n: int) -> list[str]:
    """The tags of a word's n parts, so that together they are what the word is: of B-PER, B-PER I-PER I-PER."""
    prefix, kind = tag[:1], tag[2:]
    if n < 2 or tag[1:2] != "-" or prefix not in "BIESLU":
        return [tag] * n
    first, last = ("B" if prefix in "BSU" else "I"), {"S": "E", "U": "L", "E": "E", "L": "L"}.get(prefix, "I")
    return [f"{first}-{kind}", *[f"I-{kind}"] * (n - 2), f"{last}-{kind}"]


def rows_of(one: Pieced, tokenizer: LoadedTokenizer, longest: int) -> Iterator[tuple[list[int], list[int]]]:
    """(ids, answers) of the windows that a sentence is read in; each answer is asked for in the window that the Tagger takes it from."""
    before, after = tokenizer.added(1)
    parts = windows(len(one.ids), longest - len(before) - len(after))
    begins = [0, *((left.stop + right.start) // 2 for left, right in pairwise(parts)), len(one.ids)]
    for w, (begin, end) in zip(parts, pairwise(begins), strict=True):
        answers = [one.answers[i] if begin <= i < end else IGNORED for i in w]
        yield [*before, *one.ids[w.start : w.stop], *after], [*[IGNORED] * len(before), *answers, *[IGNORED] * len(after)]
