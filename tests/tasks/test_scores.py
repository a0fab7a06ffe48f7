"""Metrics against independent libraries, and worked examples where there is none."""

import random

import numpy as np
import pytest

from plait.tasks.scores import Answers, Confusion, Entities, Ranks, Several, Values, overlap, plain_words, spans, spearman

# ---- texts ----


@pytest.mark.parametrize("seed", range(5))
def test_one_label_each_as_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    draw = np.random.default_rng(seed)
    right, given = draw.integers(0, 3, 40), draw.integers(1, 5, 40)  # labels 5 and 6 occur on neither side, 0 and 4 on one
    counted = Confusion(7)
    for part in np.array_split(np.arange(40), 3):
        counted.add(right[part], given[part])
    assert counted.figures() == pytest.approx(
        {
            "accuracy": 100 * metrics.accuracy_score(right, given),
            "macro_f1": 100 * metrics.f1_score(right, given, average="macro", zero_division=0),
        }
    )
    assert np.array_equal(counted.table[:5, :5], metrics.confusion_matrix(right, given, labels=range(5)))


@pytest.mark.parametrize("seed", range(5))
def test_several_labels_each_as_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    draw = np.random.default_rng(seed)
    right, given = draw.random((30, 4)) < [0.5, 0.2, 0.9, 0.0], draw.random((30, 4)) < [0.5, 0.5, 0.9, 0.0]
    counted = Several(4)
    for part in np.array_split(np.arange(30), 4):
        counted.add(right[part], given[part])
    assert counted.figures() == pytest.approx(
        {
            "exact": 100 * metrics.accuracy_score(right, given),
            "micro_f1": 100 * metrics.f1_score(right, given, average="micro", zero_division=0),
            "macro_f1": 100 * metrics.f1_score(right, given, average="macro", zero_division=0),
        }
    )


def test_values_as_numpy():
    draw = np.random.default_rng(0)
    right = draw.normal(3, 2, 50)
    given = right + draw.normal(0, 1, 50)
    counted = Values()
    for part in np.array_split(np.arange(50), 4):
        counted.add(right[part], given[part])
    wanted = {"rmse": np.sqrt(np.mean((right - given) ** 2)), "pearson": np.corrcoef(right, given)[0, 1]}
    assert counted.figures() == pytest.approx(wanted)


# ---- words ----


def tags_of(draw, n, prefixes):
    return [draw.choice(["O", *[f"{p}-{kind}" for p in prefixes for kind in ("PER", "LOC")]]) for _ in range(n)]


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
@pytest.mark.parametrize("seed", range(20))
def test_entities_as_seqeval_counts_them_whatever_the_order_of_tags(prefixes, seed):
    labelling = pytest.importorskip("seqeval.metrics.sequence_labeling", reason="seqeval is not installed")
    draw = random.Random(seed)
    right = [tags_of(draw, draw.randint(1, 12), prefixes) for _ in range(6)]
    given = [[tag if draw.random() < 0.7 else draw.choice(tags_of(draw, 1, prefixes)) for tag in row] for row in right]
    counted = Entities(["O", "B-PER"])
    for r, g in zip(right, given, strict=True):
        assert spans(r) == {(kind, start, end + 1) for kind, start, end in labelling.get_entities(r)}
        counted.add(r, g)
    figures = counted.figures()
    for name in ("f1", "precision", "recall"):
        assert figures[name] == pytest.approx(100 * getattr(labelling, f"{name}_score")(right, given)), name
    assert figures["accuracy"] == pytest.approx(100 * labelling.accuracy_score(right, given))


def test_bilou_is_bioes_by_other_letters():
    other = str.maketrans("ES", "LU")
    for seed in range(20):
        tags = tags_of(random.Random(seed), 12, "BIES")
        assert spans([tag[0].translate(other) + tag[1:] for tag in tags]) == spans(tags)


def test_parts_of_speech_have_an_accuracy_alone():
    counted = Entities(["NOUN", "VERB"])
    counted.add(["NOUN", "NOUN", "VERB"], ["NOUN", "VERB", "VERB"])
    assert counted.figures() == pytest.approx({"accuracy": 200 / 3}) and counted.by_kind() == {}


# ---- answers ----


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Cat, sat!", ["cat", "sat"]),
        ("an  apple a day", ["apple", "day"]),
        ("U.S.A.", ["usa"]),
        ("another theme", ["another", "theme"]),
        ("the", []),
        ("“quoted” — dash", ["“quoted”", "—", "dash"]),  # string.punctuation is ASCII alone
    ],
)
def test_answers_are_compared_without_articles_capitals_and_punctuation(text, words):
    assert plain_words(text) == words


def test_overlap_is_f1_of_words_counted_as_often_as_they_occur():
    assert overlap("the cat cat dog", "cat dog dog bird") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert overlap("The cat", "a cat.") == 1 and overlap("dog", "cat") == 0
    assert overlap("", "") == 1 and overlap("", "cat") == 0 and overlap("the", "") == 1


def test_the_nearest_right_answer_counts_and_none_is_an_answer_too():
    counted = Answers()
    counted.add("the Nile river", ["Nile", "the river Nile", "Nile River"])
    counted.add("", [])
    counted.add("Nile", [])
    counted.add("blue Nile", ["Nile"])
    assert counted.figures() == pytest.approx({"exact_match": 50, "f1": 100 * (1 + 1 + 0 + 2 / 3) / 4})


# ---- rankings ----


def test_recall_counts_who_stands_before():
    counted = Ranks((1, 3))
    for rank in (0, 1, 2, 3):
        counted.add(rank)
    assert counted.figures() == {"recall@1": 25, "recall@3": 75}


def test_spearman_as_scipy_ties_included():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    draw = np.random.default_rng(0)
    for _ in range(5):
        a, b = draw.integers(0, 6, 30), draw.normal(size=30).round(1)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert spearman([1, 1], [1, 2]) == 0
