"""Error rates against their definition, BLEU and chrF against sacreBLEU's own front."""

from functools import cache

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.tasks.metrics import edits, nearest_edits, score

WORDS = st.text("abc", max_size=7)


def defined(a, b):
    """The recursive definition of the distance."""

    @cache
    def d(i, j):
        if not i or not j:
            return i + j
        return min(d(i - 1, j) + 1, d(i, j - 1) + 1, d(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return d(len(a), len(b))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(WORDS, WORDS)
def test_edits_are_the_definition(a, b):
    assert edits(a, b) == defined(a, b) == edits(list(b), list(a))


@given(WORDS, st.lists(WORDS, min_size=1, max_size=4))
@settings(deadline=None, derandomize=True)
def test_the_nearest_right_answer_counts(answer, right):
    found, length = nearest_edits(answer, right)
    assert found == min(defined(answer, r) for r in right)
    assert length in {len(r) for r in right if defined(answer, r) == found}


ANSWERS = ["the cat sat on the mat", "a dog", "x", "good morning to you all"]
RIGHT = [["the cat sat on a mat"], ["a dog", "one dog", "the dog"], ["y z"], ["good morning to you", "good morning to you all"]]


def test_bleu_and_chrf_are_sacrebleus():
    figures, signatures = score(ANSWERS, RIGHT)
    columns = [[r[i] if i < len(r) else None for r in RIGHT] for i in range(3)]
    assert figures["bleu"] == pytest.approx(sacrebleu.corpus_bleu(ANSWERS, columns).score, abs=1e-12)
    assert figures["chrf"] == pytest.approx(sacrebleu.corpus_chrf(ANSWERS, columns).score, abs=1e-12)
    single = [r[:1] for r in RIGHT]
    assert score(ANSWERS, single)[0]["bleu"] == pytest.approx(sacrebleu.corpus_bleu(ANSWERS, [[r[0] for r in RIGHT]]).score, abs=1e-12)
    assert 0 < score(ANSWERS, single)[0]["bleu"] < figures["bleu"] < 100
    assert all(f"version:{sacrebleu.__version__}" in signature for signature in signatures.values())
    assert "nrefs:var" in signatures["bleu"] and "tok:13a" in signatures["bleu"] and "nc:6" in signatures["chrf"]


def test_error_rates_by_hand():
    figures, _ = score(ANSWERS, RIGHT)
    assert figures["exact_match"] == 50.0 and figures["sequence_error_rate"] == 50.0
    # one word of six; none of two; two edits of two; none of five
    assert figures["symbol_error_rate"] == pytest.approx(100 * 3 / (6 + 2 + 2 + 5))


def test_several_right_answers_do_not_pay_twice():
    assert score(["K AE T"], [["K AE T", "K AA T"]])[0]["symbol_error_rate"] == 0.0
    assert score(["K AA T"], [["K AE T", "K AA T"]])[0]["exact_match"] == 100.0


def test_empty_answers_are_all_wrong():
    figures, _ = score(["", ""], [["a b"], ["c"]])
    assert figures["symbol_error_rate"] == 100.0 and figures["exact_match"] == 0.0 and figures["chrf"] == 0.0


@pytest.mark.parametrize(("answers", "right"), [([], []), (["a"], []), (["a"], [["a"], ["b"]])])
def test_counts_must_agree(answers, right):
    with pytest.raises(ValueError, match="there must be one for each"):
        score(answers, right)
