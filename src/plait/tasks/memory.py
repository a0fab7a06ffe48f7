"""A translation memory: the answer of the most similar known source. The baseline that a trained model has to beat."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np


def grams(text: str, longest: int = 4) -> Counter[str]:
    """Counts of the character n-grams of length 1 to `longest`, the text's borders marked."""
    framed = f"\x02{text}\x03"
    return Counter(framed[i : i + n] for n in range(1, longest + 1) for i in range(len(framed) - n + 1))


class TranslationMemory:
    """Retrieves known sources by the cosine of their tf-idf weighted character n-grams (log counts, smoothed idf)."""

    def __init__(self, sources: Sequence[str], targets: Sequence[str]):
        self.sources, self.targets = list(sources), list(targets)
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
        spare = n + (sum(s == leave_out for s in self.sources) if leave_out is not None else 0)
        best = np.argsort(-scores, kind="stable")[:spare] if spare > 1 else [int(scores.argmax())]
        picked = [(float(scores[i]), int(i)) for i in best if leave_out is None or self.sources[i] != leave_out]
        return picked[:n]

    def answer(self, source: str) -> str:
        found = self.nearest(source)
        return self.targets[found[0][1]] if found else source
