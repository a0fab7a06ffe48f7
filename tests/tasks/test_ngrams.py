"""Interpolated n-grams against the formula written out by hand, and as probabilities."""

import math

import numpy as np
import pytest

from plait.data.corpus import Flat
from plait.tasks.ngrams import NGrams

DRAW = np.random.default_rng(0)
KNOWN = [DRAW.integers(0, 4, n).tolist() for n in (30, 1, 12, 50)]
ASKED = [DRAW.integers(0, 6, n).tolist() for n in (9, 1, 20)]  # with tokens that were never seen


def by_hand(history: tuple, token: int, n: int) -> float:
    """Witten & Bell's interpolation, counted anew each time."""
    if n == 0:
        return 1 / 6
    lower = by_hand(history[1:] if len(history) == n - 1 else history, token, n - 1) if n > 1 else 1 / 6
    if len(history) < n - 1:
        return lower
    after = [text[i + n - 1] for text in KNOWN for i in range(len(text) - n + 1) if tuple(text[i : i + n - 1]) == history]
    if not after:
        return lower
    return (after.count(token) + len(set(after)) * lower) / (len(after) + len(set(after)))


@pytest.mark.parametrize("order", [1, 2, 4])
def test_as_by_hand(order):
    found = NGrams(Flat.of(KNOWN), 4, 6).nats(Flat.of(ASKED), order)
    wanted = [-math.log(by_hand(tuple(text[max(0, i - order + 1) : i]), text[i], order)) for text in ASKED for i in range(len(text))]
    assert found == pytest.approx(wanted, rel=1e-12)


def test_what_may_follow_adds_up_to_one():
    grams = NGrams(Flat.of(KNOWN), 3, 6)
    for history in ([0, 1], [3, 3], [5, 0], [5, 5]):
        assert np.exp(-grams.nats(Flat.of([[*history, token] for token in range(6)])))[2::3].sum() == pytest.approx(1)
