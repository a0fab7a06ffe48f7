"""What needs no model."""

import sys

import numpy as np
import pytest

from plait.tasks.baselines import answer_baseline, classify_baselines, embed_baseline, tag_baseline

TEXTS = ["red apple", "green apple", "blue car", "fast car", "fast red car"]


def test_without_scikit_learn_the_most_frequent_label_is_left_and_a_word(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    said: list[str] = []
    found = classify_baselines("single", TEXTS, np.array([0, 0, 1, 1, 1]), ["apple", "x"], said.append)
    assert {name: guess.tolist() for name, guess in found.items()} == {"majority": [1, 1]}
    assert "scikit-learn is not installed" in said[0] and embed_baseline(TEXTS, said.append) is None


def test_words_tell_labels_and_values():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    right = np.array([0, 0, 1, 1, 1])
    asked = ["an apple", "my car"]
    assert classify_baselines("single", TEXTS, right, asked, print)["tfidf_logistic"].tolist() == [0, 1]
    several = np.stack([right == 0, right == 1, right > 5], 1)  # the last label never occurs
    found = classify_baselines("multi", TEXTS, several, asked, print)
    assert found["majority"].tolist() == [[False, True, False]] * 2
    assert found["tfidf_logistic"].tolist() == [[True, False, False], [False, True, False]]
    values = classify_baselines("regression", TEXTS, right * 2.0, asked, print)
    assert values["mean"].tolist() == [1.2, 1.2] and values["tfidf_ridge"][0] < 1 < values["tfidf_ridge"][1]
    assert list(classify_baselines("single", ["!", "?"], np.array([0, 1]), ["!"], print)) == ["majority"]  # no words at all


def test_nearest_words():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    cosines = embed_baseline(TEXTS, print)
    assert cosines is not None and cosines(["apple"], TEXTS).argmax() in (0, 1)


def test_words_have_their_most_frequent_tag():
    known = [(["the", "run"], ["D", "N"]), (["the", "run", "run"], ["D", "V", "V"]), (["a"], ["D"]), (["b"], ["D"])]
    assert tag_baseline(known, [["run", "the", "new"]]) == [["V", "D", "D"]]


def test_the_sentence_with_the_words_of_the_question():
    context = "The cat sat. A dog barked loudly! Nobody came"
    assert answer_baseline("Who barked?", context) == "A dog barked loudly!"
    assert answer_baseline("Who came?", context) == "Nobody came" and answer_baseline("x", "") == ""
