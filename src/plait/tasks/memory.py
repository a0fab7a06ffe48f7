"""A translation memory: the answer of the most similar known source. The baseline that a trained model has to beat."""

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SEPARATOR = "\u241e"  # the sign for a record separator: between a source and the target of its neighbour
SIMILAR = 0.3  # below this cosine a neighbour says nothing


def grams(text: str, shortest: int = 3, longest: int = 5) -> Counter[str]:
    """Counts of the character n-grams of these lengths, the text's borders marked; shorter ones only cost time (docs/log.md)."""
    framed = f"\x02{text}\x03"
    return Counter(framed[i : i + n] for n in range(shortest, longest + 1) for i in range(len(framed) - n + 1))


class TranslationMemory:
    """Retrieves known sources by the cosine of their tf-idf weighted character n-grams (log counts, smoothed idf)."""

    def __init__(self, sources: Sequence[str], targets: Sequence[str]):
        self.sources, self.targets = list(sources), list(targets)
        self.places: dict[str, list[int]] = defaultdict(list)
        for i, source in enumerate(self.sources):
            self.places[source].append(i)
        postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        bags = [grams(source) for source in self.sources]
        for i, bag in enumerate(bags):
            for gram, count in bag.items():
                postings[gram].append((i, 1 + np.log(count)))
        n = len(self.sources)
        self.idf = {gram: np.log((1 + n) / (1 + len(entries))) for gram, entries in postings.items()}
        norms = np.zeros(n)
        self.postings: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for gram, entries in postings.items():
            rows = np.fromiter((i for i, _ in entries), dtype=np.int64, count=len(entries))
            weights = np.fromiter((w for _, w in entries), dtype=np.float64, count=len(entries)) * self.idf[gram]
            norms[rows] += weights**2
            self.postings[gram] = (rows, weights)
        self.norms = np.sqrt(np.maximum(norms, 1e-12))

    def nearest(self, source: str, n: int = 1, leave_out: str | None = None) -> list[tuple[float, int]]:
        """Up to n (similarity, index), best first, the earlier entry first among equals; sources equal to `leave_out` do not count."""
        found = [(gram, count) for gram, count in grams(source).items() if gram in self.postings]
        if not found:
            return []
        rows = np.concatenate([self.postings[gram][0] for gram, _ in found])
        weights = np.concatenate([self.postings[gram][1] * ((1 + np.log(count)) * self.idf[gram]) for gram, count in found])
        own = np.sqrt(sum(((1 + np.log(count)) * self.idf[gram]) ** 2 for gram, count in found))
        scores = np.bincount(rows, weights, minlength=len(self.sources)) / (self.norms * max(own, 1e-12))
        scores[self.places.get(leave_out, []) if leave_out is not None else []] = -1.0
        best = np.argsort(-scores, kind="stable")[:n] if n > 1 else [int(scores.argmax())]
        return [(float(scores[i]), int(i)) for i in best if scores[i] >= 0]

    def extended(self, source: str, leave_out: str | None = None) -> str:
        """The source with its nearest neighbour's target behind it (Bulte & Tezcan 2019), where there is a similar one."""
        found = self.nearest(source, leave_out=leave_out)
        return f"{source} {SEPARATOR} {self.targets[found[0][1]]}" if found and found[0][0] >= SIMILAR else source

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as file:
            json.dump([self.sources, self.targets], file, ensure_ascii=False)

    @classmethod
    def load(cls, path: Path) -> "TranslationMemory":
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return cls(*json.load(file))

    def answer(self, source: str) -> str:
        found = self.nearest(source)
        return self.targets[found[0][1]] if found else source
