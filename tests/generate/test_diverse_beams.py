"""Diverse beam search (Vijayakumar et al. 2018) against its algorithm 1 on plain lists, without a cache or a batch."""

from collections import Counter
from typing import Any

import pytest
import torch

from plait.core.stream import Stream
from plait.generate.search import gnmt, search

VOCAB, START, END = 5, 1, 2
SOURCES = [[3, 4], [0], [4, 4, 3, 0, 3]]


def find(net, sources, max_length, **how):
    width = max(map(len, sources))
    ids, real = torch.zeros(len(sources), width, dtype=torch.long), torch.zeros(len(sources), width, dtype=torch.bool)
    for i, row in enumerate(sources):
        ids[i, : len(row)], real[i, : len(row)] = torch.tensor(row), True
    return search(net, Stream(ids, real=real), start=START, end=END, max_length=max_length, penalty=gnmt(0.0), **how)


def algorithm1(net, source, limit, beams, groups, diversity, wanted, next_token):
    """(score, log-probability, ids, ended) of every answer of every group; a group stops as soon as `wanted(finished, running)` says."""
    size = beams // groups
    running: list[list[Any]] = [[(0.0, 0.0, ())] for _ in range(groups)]
    finished: list[list[Any]] = [[] for _ in range(groups)]
    for _ in range(limit):
        taken = Counter()  # of what the earlier groups have chosen at this step
        for g in range(groups):
            candidates = sorted(
                (
                    (score + p - diversity * taken[v], total + p, ids, v)
                    for score, total, ids in running[g]
                    for v, p in enumerate(next_token(net, source, ids))
                ),
                key=lambda c: -c[0],
            )
            finished[g] += [(score, total, ids, True) for score, total, ids, v in candidates[:size] if v == END]
            running[g] = [(score, total, (*ids, v)) for score, total, ids, v in candidates if v != END][:size]
            taken.update(ids[-1] for _, _, ids in running[g])
        running = [[] if wanted(done, some) else some for some, done in zip(running, finished, strict=True)]
    for done, some in zip(finished, running, strict=True):
        done += [(score, total, ids, False) for score, total, ids in some[: max(size - len(done), 0)]]
    best = {(ids, ended): (score, total, ids, ended) for score, total, ids, ended in sorted(a for some in finished for a in some)}
    return sorted(best.values(), key=lambda a: (not a[3], -a[0]))


@pytest.mark.parametrize("early", [True, "never"])
@pytest.mark.parametrize(("beams", "groups"), [(2, 2), (4, 2), (6, 3), (6, 2)])
@pytest.mark.parametrize("diversity", [0.0, 0.4, 3.0])
def test_groups_choose_as_algorithm_1_says(diversity, beams, groups, early, tiny, next_token):
    size = beams // groups

    def wanted(finished, running):
        enough = len(finished) >= size
        return enough and (early is True or size == 1 or sorted(finished)[-size][0] >= max((r[0] for r in running), default=-1e9))

    told = []
    for seed in range(2):
        net = tiny(seed)
        found = find(net, SOURCES, 5, beams=beams, n_best=beams, groups=groups, diversity=diversity, early_stopping=early)
        for source, hypotheses in zip(SOURCES, found, strict=True):
            right = algorithm1(net, source, 5, beams, groups, diversity, wanted, next_token)[:beams]
            assert [(h.ids, h.ended) for h in hypotheses] == [(list(ids), ended) for *_, ids, ended in right]
            assert [h.score for h in hypotheses] == pytest.approx([score for score, *_ in right], abs=1e-9)
            assert [h.log_prob for h in hypotheses] == pytest.approx([total for _, total, *_ in right], abs=1e-9)
            told += [abs(h.score - h.log_prob) for h in hypotheses]
    assert (max(told) > 0.3) == (diversity > 0) or size == 1 or diversity > 1  # else no group ever had to pay; a high price is dodged


def test_groups_say_different_things(tiny):
    """With a high price no two groups of one beam begin alike, where one search has many answers that do."""
    plain = diverse = 0
    for seed in range(6):
        for how in (dict(), dict(groups=3, diversity=50.0)):
            (found,) = find(tiny(seed), [[3, 4]], 4, beams=3, n_best=3, forbidden=(END,), **how)
            begins = len({h.ids[0] for h in found})
            plain, diverse = plain + begins * (not how), diverse + begins * bool(how)
    assert diverse == 18 > plain


@pytest.mark.parametrize("how", [dict(groups=3), dict(groups=0), dict(groups=2, diversity=-1.0)])
def test_wrong_groups_are_refused(how, tiny):
    with pytest.raises(ValueError, match="groups of one size"):
        find(tiny(0), [[3]], 4, beams=4, **how)
