"""Pairs as groups: every pair once an epoch, its positive in its anchor's place, the same groups at the same place of the order."""

import random

import numpy as np
import pytest
import torch

from plait.data.corpus import Flat
from plait.tasks.contrast import Contrast, groups_of
from plait.tasks.encoding import Pooling
from plait.verbs.lessons.embed import GROUP, Grouped, Together, ranked


def pairs(n, seed=0):
    """Pair i is the ids i+1 ... on all sides, every third with a negative."""
    draw = random.Random(seed)
    side = [[i + 1] * draw.randint(1, 9) for i in range(n)]
    return Grouped(Flat.of(side), Flat.of([row[:2] for row in side]), Flat.of([row if i % 3 == 0 else [] for i, row in enumerate(side)]), 0)


@pytest.mark.parametrize("epoch", [0, 1])
def test_every_pair_is_in_one_group_of_an_epoch(epoch):
    feed, seen = pairs(300).feed(300, seed=1), []
    for place, (at, _, batch) in enumerate(feed.stream(epoch, 0)):
        if at != epoch:
            break
        for group in groups_of(batch.answers):
            roles, first = batch.answers[group], batch.ids[group, 0]
            n = int((roles == 0).sum())
            assert 1 <= n <= GROUP and torch.equal(first[:n], first[n : 2 * n]) and roles.tolist() == sorted(roles.tolist())
            assert sorted(first[2 * n :].tolist()) == sorted(i for i in first[:n].tolist() if i % 3 == 1)
            seen += first[:n].tolist()
        again = next(feed.stream(epoch, place))[2]
        assert torch.equal(again.ids, batch.ids) and torch.equal(again.answers, batch.answers)
    assert sorted(seen) == list(range(1, 301))


def test_a_batch_has_room_for_a_group_however_small_the_budget():
    sizes = [int((batch.answers == 0).sum()) for batch in pairs(300).feed(1).all()]
    assert np.median(sizes) >= GROUP - 1


def test_parts_of_a_fed_batch_are_whole_groups():
    batch = pairs(200).batch(np.arange(100))
    parts = Contrast(Pooling("mean", True)).parts(batch, 3)
    assert [len(groups_of(part.answers)) for part in parts] == [2, 1, 1]
    assert torch.equal(torch.cat([part.ids[part.real] for part in parts]), batch.ids[batch.real])


def test_ranks_count_what_is_as_near_as_wrong_and_every_positive_of_an_anchor_as_right():
    rows = [Together(a, p, "", "") for a, p in (("q", "right"), ("q", "also"), ("r", "other"), ("s", "right"))]
    table = {"q": [0.5, 0.9, 0.8], "r": [0.7, 0.1, 0.7], "s": [0.1, 0.3, 0.2]}  # right, also, other

    def cosines(one, two):
        assert two == ["right", "also", "other"]
        return np.array([table[text] for text in one])

    counted = ranked(rows, cosines)
    assert counted.n == 3 and counted.within[1] == 1 and counted.within[5] == 3
    assert ranked(rows, lambda one, two: np.zeros((len(one), len(two)))).within[1] == 0  # all alike: nothing is found
