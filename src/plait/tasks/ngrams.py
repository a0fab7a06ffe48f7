"""What a language model has to beat: n-grams, interpolated down to the frequencies of single tokens."""

import numpy as np

from plait.data.corpus import Flat


class NGrams:
    """Of each order n up to `order`, how often a token followed each n - 1 tokens; they never reach over the beginning of a text.

    p_n(w | h) = (c(h, w) + t(h) p_{n-1}(w | h')) / (c(h) + t(h)) with t(h) the number of different tokens seen after h (Witten & Bell
    1991, method C, as Chen & Goodman 1999, section 2.4, interpolate it); p_0 is the same for all of the vocabulary.
    """

    def __init__(self, texts: Flat, order: int, vocabulary: int):
        self.order, self.vocabulary = order, vocabulary
        self.contexts: list[np.ndarray] = []  # of each length of a context: the sorted keys that tell which there are
        self.grams: list[tuple[np.ndarray, np.ndarray]] = []  # keys of a context with a token, and how often it was seen
        self.totals: list[tuple[np.ndarray, np.ndarray]] = []  # of each context: c(h) and t(h)
        for n, (_, keys, there) in enumerate(self._walk(texts, learn=True)):
            grams, counts = np.unique(keys[there], return_counts=True)
            contexts, size = grams // vocabulary, len(self.contexts[n - 1]) if n else 1
            seen = np.bincount(contexts, counts, size), np.bincount(contexts, minlength=size)
            self.grams.append((grams, counts))
            self.totals.append(seen)

    def _walk(self, texts: Flat, learn: bool = False):
        """For n = 1, 2 ...: (context of each token, key of context and token, whether there is such a context)."""
        ids = np.asarray(texts.ids, np.int64)
        depth = np.arange(len(ids)) - np.repeat(texts.offsets[:-1], texts.lengths)  # tokens before it in its text
        context, there = np.zeros(len(ids), np.int64), np.ones(len(ids), bool)
        for n in range(1, self.order + 1):
            if n > 1:
                before = np.concatenate([np.zeros(n - 1, np.int64), ids[: len(ids) - n + 1]])[: len(ids)]
                key, there = context * self.vocabulary + before, there & (depth >= n - 1)
                if learn:
                    self.contexts.append(np.unique(key[there]))
                context, known = looked_up(self.contexts[n - 2], key)
                there = there & known
            yield context, context * self.vocabulary + ids, there

    def nats(self, texts: Flat, highest: int | None = None) -> np.ndarray:
        """-log p of every id of the texts, by n-grams up to `highest`."""
        p = np.full(len(texts.ids), 1 / self.vocabulary)
        for n, (context, keys, there) in enumerate(self._walk(texts)):
            if n == (highest or self.order):
                break
            at, seen = looked_up(self.grams[n][0], keys)
            count = np.where(seen, self.grams[n][1][at], 0)
            total, kinds = (numbers[context] for numbers in self.totals[n])
            p = np.where(there, (count + kinds * p) / (total + kinds), p)
        return -np.log(p)


def looked_up(known: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place of each key among the sorted known ones, whether it is there)"""
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return (at, known[at] == keys) if len(known) else (np.zeros_like(keys), np.zeros(len(keys), bool))
