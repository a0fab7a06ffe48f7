"""What needs no Transformer: the answers that a trained model has to beat."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from plait.tasks.scores import plain_words

Say = Callable[[str], None]
LACKING = "no TF-IDF baseline: scikit-learn is not installed (pip install 'plait[baselines]')"
SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")


def word_weights(say: Say) -> Any:
    """scikit-learn's TF-IDF of words and pairs of words; None where it is not installed."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        say(LACKING)
        return None
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")


def classify_baselines(problem: str, texts: Sequence[str], right: np.ndarray, asked: Sequence[str], say: Say) -> dict[str, np.ndarray]:
    """Name -> answers to the texts `asked`, in the form of `right`: what is most frequent (of values, the mean), and TF-IDF with
    logistic regression (of values, ridge regression)."""
    usual = {"single": lambda: np.bincount(right).argmax(), "multi": lambda: right.mean(0) > 0.5, "regression": lambda: right.mean()}[
        problem
    ]()
    found = {"mean" if problem == "regression" else "majority": np.stack([np.asarray(usual)] * len(asked))}
    if (weights := word_weights(say)) is None:
        return found
    from sklearn.linear_model import LogisticRegression, Ridge

    try:
        known = weights.fit_transform(texts)
    except ValueError:  # no text holds a word
        return found
    unknown = weights.transform(asked)
    if problem == "regression":
        return found | {"tfidf_ridge": Ridge().fit(known, right).predict(unknown)}

    def logistic(right: np.ndarray) -> np.ndarray:
        if len(set(right.tolist())) < 2:
            return np.full(len(asked), right[0])
        return LogisticRegression(C=10.0, max_iter=1000).fit(known, right).predict(unknown)

    several = problem == "multi"
    return found | {"tfidf_logistic": np.stack([logistic(one) for one in right.T], 1) if several else logistic(right)}


def picture_baselines(known: Sequence[np.ndarray], right: np.ndarray, asked: Sequence[np.ndarray], say: Say) -> dict[str, np.ndarray]:
    """Name -> classes of the pictures `asked`: the most frequent, and logistic regression on grey pictures made small ([N, values])."""
    found = {"majority": np.full(len(asked), np.bincount(right).argmax())}
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        say(LACKING)
        return found
    fitted = LogisticRegression(C=0.1, max_iter=200).fit(np.stack(known), right)
    return found | {"pixels_logistic": fitted.predict(np.stack(asked))}


def tag_baseline(sentences: Sequence[tuple[Sequence[str], Sequence[str]]], asked: Sequence[Sequence[str]]) -> list[list[str]]:
    """Each word's most frequent tag in the (words, tags) known, of words that are not the most frequent tag of all."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for words, tags in sentences:
        for word, tag in zip(words, tags, strict=True):
            counts[word][tag] += 1
    usual = Counter(tag for one in counts.values() for tag in one.elements()).most_common(1)[0][0]
    best = {word: one.most_common(1)[0][0] for word, one in counts.items()}
    return [[best.get(word, usual) for word in words] for words in asked]


def answer_baseline(question: str, context: str) -> str:
    """The sentence of the context that shares most words with the question."""
    asked = set(plain_words(question))
    sentences = [one.strip() for one in SENTENCE.findall(context) if one.strip()]
    return max(sentences, key=lambda one: len(asked & set(plain_words(one))), default="")


def embed_baseline(known: Sequence[str], say: Say) -> Callable[[Sequence[str], Sequence[str]], np.ndarray] | None:
    """cosines(one, two) [len(one), len(two)] of TF-IDF vectors; None where scikit-learn is not installed."""
    if (weights := word_weights(say)) is None:
        return None
    weights.fit(known)
    return lambda one, two: (weights.transform(one) @ weights.transform(two).T).toarray()
