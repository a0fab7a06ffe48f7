"""What needs no Transformer: the answers that a trained model has to beat."""

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from plait.tasks.scores import plain_words

Say = Callable[[str], None]
LACKING = "no linear baseline: scikit-learn is not installed (pip install 'plait[baselines]')"
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
    found = usual(problem, right, len(asked))
    if (weights := word_weights(say)) is None:
        return found
    try:
        known = weights.fit_transform(texts)
    except ValueError:  # no text holds a word
        return found
    return found | linear("tfidf", problem, known, right, weights.transform(asked), 10.0)


def picture_baselines(
    problem: str, known: Sequence[np.ndarray], right: np.ndarray, asked: Sequence[np.ndarray], say: Say
) -> dict[str, np.ndarray]:
    """The same of pictures, each a vector of few values: what is most frequent, and logistic (ridge) regression on those values."""
    found = usual(problem, right, len(asked))
    try:
        return found | linear("pixels", problem, np.stack(known), right, np.stack(asked), 0.1)
    except ImportError:
        say(LACKING)
        return found


def usual(problem: str, right: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Name -> n times what is most frequent, or the mean of values."""
    kinds = {"single": lambda: np.bincount(right).argmax(), "multi": lambda: right.mean(0) > 0.5, "regression": lambda: right.mean()}
    return {"mean" if problem == "regression" else "majority": np.stack([np.asarray(kinds[problem]())] * n)}


def linear(name: str, problem: str, known: Any, right: np.ndarray, asked: Any, freedom: float) -> dict[str, np.ndarray]:
    """Name -> answers to the rows `asked` of a linear model of the rows `known`; `freedom` is C of scikit-learn's logistic regression."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

    if problem == "regression":
        return {f"{name}_ridge": Ridge().fit(known, right).predict(asked)}

    def logistic(right: np.ndarray) -> np.ndarray:
        if len(set(right.tolist())) < 2:
            return np.full(asked.shape[0], right[0])
        with warnings.catch_warnings():  # nearly the best is good enough to be compared with
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(C=freedom, max_iter=1000).fit(known, right).predict(asked)

    return {f"{name}_logistic": np.stack([logistic(one) for one in right.T], 1) if problem == "multi" else logistic(right)}


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
