"""How good labels, entities, answers and rankings are. Each is counted as it comes, in memory that does not grow with the data.

Shares (accuracy, F1, exact match, recall) are in percent, as BLEU and chrF are.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from plait.tasks.labels import OUTSIDE, Entity, entities

# ---- texts ----


class Confusion:
    """One label each: `table[r, g]` texts of label r were given the label g."""

    def __init__(self, n: int):
        self.table = np.zeros((n, n), np.int64)

    def add(self, right: np.ndarray, given: np.ndarray) -> None:
        np.add.at(self.table, (right, given), 1)

    def figures(self) -> dict[str, float]:
        """`macro_f1` is the mean over the labels that occur, as right ones or as given ones."""
        both, right, given = np.diag(self.table), self.table.sum(1), self.table.sum(0)
        seen = right + given > 0
        return {"accuracy": percent(both.sum(), self.table.sum()), "macro_f1": mean(f1(both, right, given)[seen])}


class Several:
    """Any number of labels each: `exact` is the share of texts with all of them right and no other."""

    def __init__(self, n: int):
        self.both, self.right, self.given = (np.zeros(n, np.int64) for _ in range(3))
        self.exact = self.n = 0

    def add(self, right: np.ndarray, given: np.ndarray) -> None:
        """Both [B, labels] bool."""
        self.both, self.right, self.given = self.both + (right & given).sum(0), self.right + right.sum(0), self.given + given.sum(0)
        self.exact, self.n = self.exact + int((right == given).all(1).sum()), self.n + len(right)

    def figures(self) -> dict[str, float]:
        micro = f1(self.both.sum(), self.right.sum(), self.given.sum())
        return {"exact": percent(self.exact, self.n), "micro_f1": float(micro), "macro_f1": mean(f1(self.both, self.right, self.given))}


class Values:
    """Numbers: the root of the mean squared error, in the data's own unit, and Pearson's correlation."""

    def __init__(self):
        self.n, self.squares, self.sums, self.products = 0, 0.0, np.zeros(2), np.zeros((2, 2))

    def add(self, right: np.ndarray, given: np.ndarray) -> None:
        both = np.stack([right, given]).astype(np.float64)
        self.n, self.squares = self.n + len(right), self.squares + float(((both[0] - both[1]) ** 2).sum())
        self.sums, self.products = self.sums + both.sum(1), self.products + both @ both.T

    def figures(self) -> dict[str, float]:
        n = max(self.n, 1)
        spread = self.products / n - np.outer(self.sums, self.sums) / n**2
        scale = np.sqrt(max(spread[0, 0], 0.0) * max(spread[1, 1], 0.0))
        return {"rmse": float(np.sqrt(self.squares / n)), "pearson": float(spread[0, 1] / scale) if scale else 0.0}


# ---- words ----


class Entities:
    """Tags of words: entities count where their words and their kind are exactly right (Tjong Kim Sang & De Meulder 2003, section 2.3).

    Where no tag stands for none (parts of speech), only the accuracy of words is meant.
    """

    def __init__(self, labels: Sequence[str]):
        self.whole = OUTSIDE in labels
        self.words = self.correct = 0
        self.both, self.right, self.given = Counter[str](), Counter[str](), Counter[str]()

    def add(self, right: Sequence[str], given: Sequence[str]) -> None:
        """The tags of one sentence."""
        self.words, self.correct = self.words + len(right), self.correct + sum(r == g for r, g in zip(right, given, strict=True))
        wanted, found = spans(right), spans(given)
        for counter, which in ((self.both, wanted & found), (self.right, wanted), (self.given, found)):
            counter.update(kind for kind, _, _ in which)

    def figures(self) -> dict[str, float]:
        accuracy = {"accuracy": percent(self.correct, self.words)}
        if not self.whole:
            return accuracy
        both, right, given = self.both.total(), self.right.total(), self.given.total()
        return {"f1": float(f1(both, right, given)), "precision": percent(both, given), "recall": percent(both, right)} | accuracy

    def by_kind(self) -> dict[str, float]:
        """F1 of each kind of entity."""
        kinds = sorted(self.right | self.given) if self.whole else []
        return {kind: float(f1(self.both[kind], self.right[kind], self.given[kind])) for kind in kinds}


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(kind, first word, word behind the last) of each entity; what follows no scheme is read as conlleval reads it."""
    return {(e.label, e.start, e.end) for e in entities("", [Entity("", tag, 0.0, i, i + 1) for i, tag in enumerate(tags)])}


# ---- answers ----

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain_words(text: str) -> list[str]:
    """Words of an answer without capitals, ASCII punctuation and English articles (Rajpurkar et al. 2016, section 6.1)."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def overlap(answer: str, right: str) -> float:
    """F1 of the words of two answers; of no answer, whether both are none."""
    a, b = plain_words(answer), plain_words(right)
    return float(f1((Counter(a) & Counter(b)).total(), len(b), len(a))) / 100 if a and b else float(a == b)


class Answers:
    """Answers against the nearest of several right ones; a question without one has only the empty answer."""

    def __init__(self):
        self.n, self.exact, self.words = 0, 0, 0.0

    def add(self, answer: str, right: Sequence[str]) -> None:
        right = right or [""]
        self.n += 1
        self.exact += any(plain_words(answer) == plain_words(one) for one in right)
        self.words += max(overlap(answer, one) for one in right)

    def figures(self) -> dict[str, float]:
        return {"exact_match": percent(self.exact, self.n), "f1": percent(self.words, self.n)}


# ---- rankings ----


class Ranks:
    """Recall at k: the share of queries with a right text among the k nearest."""

    def __init__(self, ks: Sequence[int] = (1, 5, 10)):
        self.ks, self.n, self.within = ks, 0, Counter[int]()

    def add(self, rank: int) -> None:
        """How many texts are nearer than the nearest right one."""
        self.n += 1
        self.within.update(k for k in self.ks if rank < k)

    def figures(self) -> dict[str, float]:
        return {f"recall@{k}": percent(self.within[k], self.n) for k in self.ks}


def spearman(a: Iterable[float], b: Iterable[float]) -> float:
    """Correlation of the places of two lists of numbers in their orders; equal numbers share the mean of their places."""
    one, two = (places(np.asarray(list(x), np.float64)) for x in (a, b))
    one, two = one - one.mean(), two - two.mean()
    scale = np.sqrt((one**2).sum() * (two**2).sum())
    return float((one * two).sum() / scale) if scale else 0.0


def places(values: np.ndarray) -> np.ndarray:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


# ---- shares ----


def f1(both: np.ndarray | int, right: np.ndarray | int, given: np.ndarray | int) -> np.ndarray:
    """Of what was both right and given; 0 where nothing was either."""
    return 200.0 * np.asarray(both) / np.maximum(np.asarray(right) + np.asarray(given), 1)


def percent(part: float, whole: float) -> float:
    return 100.0 * float(part) / float(max(whole, 1))


def mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
