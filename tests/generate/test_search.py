"""Beam search against a list of all answers, and against a naive beam search of plain lists without a cache."""

from itertools import product

import pytest
import torch

from plait.core.stream import Stream
from plait.generate.search import gnmt, mean, search

VOCAB, START, END = 5, 1, 2
MINUS = float("-inf")


def find(net, sources, max_length, **how):
    width = max(map(len, sources))
    ids, real = torch.zeros(len(sources), width, dtype=torch.long), torch.zeros(len(sources), width, dtype=torch.bool)
    for i, row in enumerate(sources):
        ids[i, : len(row)], real[i, : len(row)] = torch.tensor(row), True
    return search(net, Stream(ids, real=real), start=START, end=END, max_length=max_length, **how)


def found_are(found, wanted):
    """`wanted`: (score, log-probability, ids, ended), best first."""
    assert [h.ids for h in found] == [list(ids) for _, _, ids, _ in wanted]
    assert [h.ended for h in found] == [ended for *_, ended in wanted]
    assert [h.score for h in found] == pytest.approx([score for score, *_ in wanted], abs=1e-9)
    assert [h.log_prob for h in found] == pytest.approx([total for _, total, *_ in wanted], abs=1e-9)


def everything(net, source, limit, penalty, next_token, forbidden=()):
    """Every answer that ends within the limit, best first."""
    answers = []
    words = [v for v in range(VOCAB) if v != END and v not in forbidden]
    for n in range(limit):
        for ids in product(words, repeat=n):
            total = sum(next_token(net, source, ids[:i], forbidden)[v] for i, v in enumerate([*ids, END]))
            answers.append((total / penalty(n + 1), total, ids, True))
    return sorted(answers, key=lambda a: -a[0])


@pytest.mark.parametrize("penalty", [gnmt(0.0), gnmt(0.6), gnmt(1.5), mean(), gnmt(-0.5)], ids=["0", "0.6", "1.5", "mean", "-0.5"])
@pytest.mark.parametrize("seed", range(3))
def test_enough_beams_find_the_best_of_all(seed, penalty, tiny, next_token):
    net, limit = tiny(seed), 3
    for source in ([3], [4, 0, 3]):
        (found,) = find(net, [source], limit, beams=VOCAB**limit, n_best=6, penalty=penalty)
        found_are(found, everything(net, source, limit, penalty, next_token)[:6])


def naive(net, source, limit, beams, n_best, penalty, next_token, forbidden=()):
    """Beam search as the books have it: candidates of all beams, the K best endings count, the K best others go on; to the limit."""
    running, finished = [((), 0.0)], []
    for length in range(1, limit + 1):
        candidates = [(total + p, ids, v) for ids, total in running for v, p in enumerate(next_token(net, source, ids, forbidden))]
        candidates = sorted((c for c in candidates if c[0] > MINUS), key=lambda c: -c[0])[: 2 * beams]
        finished += [(total / penalty(length), total, ids, True) for total, ids, v in candidates[:beams] if v == END]
        running = [((*ids, v), total) for total, ids, v in candidates if v != END][:beams]
        if beams == 1 and finished:
            break
    finished.sort(key=lambda a: -a[0])
    rest = [(total / penalty(limit), total, ids, False) for ids, total in running][: max(n_best - len(finished), 0)]
    return finished[:n_best] + sorted(rest, key=lambda a: -a[0])


@pytest.mark.parametrize("arch", ["modern", "vaswani"])
@pytest.mark.parametrize(("beams", "seed"), [(1, 0), (2, 1), (3, 0), (7, 1)])
def test_a_batch_is_the_naive_search_of_each_source(seed, beams, arch, tiny, next_token):
    """More beams than tokens, sources that are done early and late, a forbidden token; every penalty."""
    net = tiny(seed, arch)
    sources = [[3, 4], [0], [4, 4, 3, 0, 3], [3, 0, 4]]
    for penalty in (gnmt(0.0), gnmt(0.6), mean(2.0)):
        for n_best in {1, beams}:
            found = find(net, sources, 6, beams=beams, n_best=n_best, penalty=penalty, forbidden=(0,))
            for source, hypotheses in zip(sources, found, strict=True):
                found_are(hypotheses, naive(net, source, 6, beams, n_best, penalty, next_token, (0,)))
                assert all(0 not in h.ids and END not in h.ids for h in hypotheses)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_one_beam_takes_the_likeliest_token(alpha, tiny, next_token):
    for seed in range(6):
        net, ids = tiny(seed), []
        while len(ids) < 8:
            p = next_token(net, [3, 4], tuple(ids))
            best = max(range(VOCAB), key=lambda v: p[v])
            if best == END:
                break
            ids.append(best)
        (found,) = find(net, [[3, 4]], 8, beams=1, penalty=gnmt(alpha))
        assert found[0].ids == ids and found[0].ended == (len(ids) < 8)


def test_limits_may_differ_by_source(tiny, next_token):
    net, sources, limits = tiny(1), [[3], [4, 3], [3, 3], [4], [0]], [0, 3, 1, 0, 6]
    found = find(net, sources, limits, beams=3, n_best=2)
    for source, limit, hypotheses in zip(sources, limits, found, strict=True):
        if limit:
            found_are(hypotheses, naive(net, source, limit, 3, 2, gnmt(0.6), next_token))
        else:
            assert [(h.ids, h.score, h.ended) for h in hypotheses] == [([], 0.0, False)]
    assert [len(h.ids) for h in find(net, sources, 0)[1]] == [0]


def test_a_length_of_one(tiny, next_token):
    net = tiny(2)
    p = next_token(net, [3], ())
    (found,) = find(net, [[3]], 1, beams=2, n_best=2, penalty=gnmt(0.0))
    best = sorted(range(VOCAB), key=lambda v: -p[v])[:2]
    assert [h.log_prob for h in found] == pytest.approx([p[v] for v in best], abs=1e-9)
    assert [h.ids for h in found] == [[] if v == END else [v] for v in best]


@pytest.mark.parametrize("arch", ["modern", "vaswani"])
def test_alone_is_in_a_batch(arch, tiny):
    net = tiny(4, arch)
    sources = [[3], [4, 3, 0, 4, 4, 3], [0, 4], [3, 3, 3]]
    together = find(net, sources, 7, beams=4, n_best=3)
    for source, wanted in zip(sources, together, strict=True):
        (alone,) = find(net, [source], 7, beams=4, n_best=3)
        found_are(alone, [(h.score, h.log_prob, h.ids, h.ended) for h in wanted])


def test_answers_are_sorted_and_distinct(tiny):
    for seed in range(4):
        for beams in (2, 8, 40):  # 40: far more than there are candidates at first
            for hypotheses in find(tiny(seed), [[3, 4], [4]], 4, beams=beams, n_best=beams):
                assert hypotheses == sorted(hypotheses, key=lambda h: (not h.ended, -h.score))
                assert len({(tuple(h.ids), h.ended) for h in hypotheses}) == len(hypotheses)


def test_the_first_answer_does_not_depend_on_how_many_are_asked_for(tiny):
    for seed in range(4):
        one, many = (find(tiny(seed), [[3, 4], [4]], 5, beams=4, n_best=n) for n in (1, 4))
        assert [a[0].ids for a in one] == [b[0].ids for b in many]


def test_when_nothing_is_allowed_the_answer_is_empty(tiny):
    (found,) = find(tiny(0), [[3]], 4, beams=2, forbidden=range(VOCAB))
    assert found[0].ids == [] and not found[0].ended
    (found,) = find(tiny(0), [[3]], 4, beams=3, n_best=3, forbidden=[v for v in range(VOCAB) if v != END])
    assert [(h.ids, h.ended) for h in found] == [([], True)] and found[0].log_prob < 0.0  # forbidding does not make the rest likelier


@pytest.mark.parametrize(("beams", "n_best"), [(0, 1), (2, 3), (2, 0)])
def test_wrong_numbers_are_refused(beams, n_best, tiny):
    with pytest.raises(ValueError, match="n_best at most as many"):
        find(tiny(0), [[3]], 4, beams=beams, n_best=n_best)
    with pytest.raises(ValueError, match="2 limits for 1 sources"):
        find(tiny(0), [[3]], [4, 4])


def test_penalties():
    assert gnmt(0.6)(1) == 1.0 and gnmt(0.6)(7) == pytest.approx(2**0.6) and gnmt(0.0)(99) == 1.0
    assert mean()(7) == 7.0 and mean(0.5)(9) == 3.0
