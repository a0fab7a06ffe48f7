"""What encoders say of texts in labels: of a text or a pair as a whole, and of the words in it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.core.heads import pooled
from plait.core.model import Model
from plait.errors import InputError
from plait.tasks.encoding import Encoder, Pieces, pair_of, windows
from plait.text.loaded import LoadedTokenizer

OUTSIDE = "O"
BEGINS, ENDS, CONTINUES = frozenset("BSU"), frozenset("ESLU"), frozenset("IEL")  # BIO, BIOES, and BILOU, which says L and U for E and S


@dataclass(frozen=True)
class Classified:
    """What a text is. `labels` are those it has, best first: one, or each above a half where a text may have several.

    `scores` holds every label's probability, of a regression its value (and `labels` all of them, in their order).
    """

    labels: tuple[str, ...]
    scores: dict[str, float]

    @property
    def label(self) -> str | None:
        """The best one, None where the text has none."""
        return self.labels[0] if self.labels else None

    @property
    def score(self) -> float | None:
        return self.scores[self.labels[0]] if self.labels else None


class Classifier(Encoder):
    """Labels of texts, or of pairs of texts, from the vector of the first entry (Devlin et al. 2019, section 4.1).

    `problem` is "single" (softmax), "multi" (each label by itself) or "regression" (the scores are the values). With `cut`, the end of
    what is too long is left out, as it was in training.
    """

    def __init__(
        self,
        net: Model,
        tokenizer: LoadedTokenizer,
        max_length: int | None,
        labels: Sequence[str],
        problem: str = "single",
        cut: bool = False,
    ):
        super().__init__(net, tokenizer, max_length)
        self.labels, self.problem, self.cut = labels, problem, cut

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str | tuple[str, str]], first: int = 1) -> list[Classified]:
        """InputError names every text that is longer than the model reads by its number; `first` is that of the first one."""
        read = [self.row(text) for text in texts]
        rows, firsts = [ids for ids, _ in read], [count for _, count in read]
        if faults := [fault for i, row in enumerate(rows, first) if (fault := self.fault(i, row))]:
            raise InputError("some inputs cannot be classified whole", faults)
        found: dict[int, Classified] = {}
        head = self.net.heads["classify"]
        for here, stream in self.batches(rows, firsts):
            scores = head(pooled(head, stream.having(x=self.hidden(stream)))).float().cpu()
            found |= zip(here, (classified(one, self.labels, self.problem) for one in scores), strict=True)
        return [found[i] for i in range(len(rows))]

    def row(self, text: str | tuple[str, str]) -> tuple[list[int], int]:
        """(ids of a text or of a pair, how many of them belong to the first text)"""
        if not isinstance(text, str) and len(text) != 2:
            raise InputError(f"{len(text)} texts in one tuple: a tuple is a pair of texts; give several texts as a list")
        parts = [self.tokenizer.encode(part) for part in ((text,) if isinstance(text, str) else text)]
        ids, count, _ = row_of(self.tokenizer, parts, self.max_length if self.cut else None)
        return ids, count


def classified(scores: Tensor, labels: Sequence[str], problem: str) -> Classified:
    """What a head's scores [labels] mean."""
    if problem == "regression":
        return Classified(tuple(labels), dict(zip(labels, scores.tolist(), strict=True)))
    chances = scores.softmax(-1) if problem == "single" else scores.sigmoid()
    named = dict(zip(labels, chances.tolist(), strict=True))
    ranked = sorted(named, key=named.__getitem__, reverse=True)
    return Classified(tuple(ranked[:1] if problem == "single" else (name for name in ranked if named[name] > 0.5)), named)


def row_of(tokenizer: LoadedTokenizer, parts: Sequence[list[int]], longest: int | None = None) -> tuple[list[int], int, bool]:
    """(one text or two as the model reads them, how many ids belong to the first one, whether they were cut to `longest`)

    Of two the end of the longer one is left out, of both where each has more than half of the room.
    """
    room = sum(map(len, parts)) if longest is None else max(longest - sum(map(len, tokenizer.added(len(parts)))), 0)
    cut = sum(map(len, parts)) > room
    if len(parts) == 2:
        one = parts[0][: max(room - len(parts[1]), (room + 1) // 2)]
        return *pair_of(tokenizer, one, parts[1][: room - len(one)]), cut
    ids = tokenizer.wrap(parts[0][:room])
    return ids, len(ids), cut


@dataclass(frozen=True)
class Entity:
    """A stretch of a text, characters [start, end), with its label; `score` is the mean probability of its words' labels."""

    text: str
    label: str
    score: float
    start: int
    end: int


class Tagger(Encoder):
    """Labels of words, joined to entities (Devlin et al. 2019, section 5.3): a word has the label of its first piece, as in training.

    A text longer than the model goes through overlapping windows, and each piece is judged where it has most text on both sides.
    """

    def __init__(self, net: Model, tokenizer: LoadedTokenizer, max_length: int | None, labels: Sequence[str]):
        super().__init__(net, tokenizer, max_length)
        self.labels = labels

    def __call__(self, texts: Sequence[str]) -> list[list[Entity]]:
        """The entities of each text, in order; where no label stands for none (parts of speech), every word is one."""
        pieces = [self.pieces(text) for text in texts]
        tables, apart = self.probabilities([one.ids for one in pieces]), OUTSIDE not in self.labels
        return [entities(text, self.words(one, table), apart) for text, one, table in zip(texts, pieces, tables, strict=True)]

    def probabilities(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Of texts as ids without special ones: the probabilities [L, labels] of each id's labels."""
        before, after = self.tokenizer.added(1)
        parts = [(i, w) for i, ids in enumerate(texts) for w in windows(len(ids), self.max_length - len(before) - len(after))]
        scores = self.scores([[*before, *texts[i][w.start : w.stop], *after] for i, w in parts])
        tables = [torch.empty(len(ids), len(self.labels)) for ids in texts]
        stop = 0
        for (i, w), one in zip(parts, scores, strict=True):
            own = (stop + w.start) // 2 if w.start else 0  # from the middle of what it shares with the window before
            tables[i][own : w.stop] = one[len(before) + own - w.start : len(before) + len(w)].softmax(-1)
            stop = w.stop
        return tables

    def words(self, pieces: Pieces, table: Tensor) -> list[Entity]:
        """Each word with the label of its first piece; the text is left out, and labels are still the scheme's (B-PER)."""
        found: list[Entity] = []
        before = None
        chances, best = table.max(-1) if len(table) else (table, table)
        for (start, end), word, chance, label in zip(pieces.spans, pieces.words, chances.tolist(), best.tolist(), strict=True):
            if word is not None and word == before:
                found[-1] = Entity("", found[-1].label, found[-1].score, found[-1].start, end)
            else:
                found.append(Entity("", self.labels[int(label)], chance, start, end))
            before = word
        return found


def entities(text: str, words: Iterable[Entity], apart: bool = False) -> list[Entity]:
    """Neighbouring words of one label as one entity, by the prefixes of whichever scheme the labels follow.

    B-, S- and U- begin an entity, E-, L-, S- and U- end it; I-, or a label without a prefix, continues one of the same kind or begins.
    With `apart` nothing is joined.
    """
    groups: list[tuple[str, list[Entity]]] = []
    open_kind = None  # that of an entity which the next word may continue
    for word in words:
        prefix, kind = (word.label[0], word.label[2:]) if word.label[1:2] == "-" and word.label[0] in "BIESLU" else ("I", word.label)
        if word.label == OUTSIDE:
            open_kind = None
            continue
        if kind == open_kind and prefix not in BEGINS:
            groups[-1][1].append(word)
        else:
            groups.append((kind, [word]))
        open_kind = None if apart or prefix in ENDS else kind
    spans = [(kind, sum(word.score for word in group) / len(group), group[0].start, group[-1].end) for kind, group in groups]
    return [Entity(text[start:end], kind, score, start, end) for kind, score, start, end in spans]
