"""Filters against the reference implementation's on the same scores; what is drawn against the distribution, by chi-square."""

import numpy as np
import pytest
import torch

from plait.generate.sampling import Draws, MinP, Temperature, TopK, TopP, Typical, drawn

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
IDS = torch.zeros(1, 0, dtype=torch.long)
CASES = [
    *((Temperature(t), transformers.TemperatureLogitsWarper(t)) for t in (0.3, 1.7)),
    *((TopK(k), transformers.TopKLogitsWarper(k)) for k in (1, 3, 20, 500)),
    *((TopP(p), transformers.TopPLogitsWarper(p)) for p in (0.001, 0.3, 0.9, 0.999)),
    *((MinP(p), transformers.MinPLogitsWarper(p)) for p in (0.0, 0.05, 0.5, 1.0)),
    *((Typical(p), transformers.TypicalLogitsWarper(p)) for p in (0.1, 0.5, 0.95)),
]


def scores_like(spread, seed=0, rows=6, vocab=150):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


@pytest.mark.parametrize(("ours", "theirs"), CASES, ids=lambda case: str(case) if case.__class__.__module__.startswith("plait") else "")
@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_a_filter_is_the_references(ours, theirs, spread):
    scores = scores_like(spread)
    scores[1, ::3] = float("-inf")  # what an earlier rule took
    scores[2] = scores[2].round()  # ties
    kind = type(ours)
    wanted = theirs(IDS, scores.clone())
    ours(found := scores.clone(), IDS)
    if kind in (TopP, Typical):  # of equal ids at the border any may go; ours and theirs differ in which, not in how many
        assert ((found == float("-inf")).sum(1) == (wanted == float("-inf")).sum(1)).all()
        found, wanted = found[[0, 1, 3, 4, 5]], wanted[[0, 1, 3, 4, 5]]
    assert torch.equal(found, wanted) and (found > float("-inf")).any(1).all()


@pytest.mark.parametrize("filters", [(), (Temperature(0.6), TopK(7)), (TopP(0.8),), (MinP(0.1),), (Typical(0.6),)], ids=str)
def test_draws_have_the_distribution(filters):
    scores = scores_like(1.5, 3, 1, 40)
    for rule in filters:
        rule(scores, IDS)
    wanted = (scores[0].exp() / scores[0].exp().sum()).numpy()
    n = 20000
    uniform = [Draws.of(0, 0, [5, 6]).uniform(step) for step in range(n // 2)]
    uniform += [Draws.of(1, sample, [7]).uniform(0) for sample in range(n // 2)]
    counts = np.bincount(drawn(scores.expand(n, -1), uniform).numpy(), minlength=40)
    assert counts[wanted == 0].sum() == 0
    likely = wanted * n >= 5
    seen, expected = counts[likely], wanted[likely] * n
    if (rest := n - expected.sum()) > 1e-6:
        seen, expected = np.append(seen, n - seen.sum()), np.append(expected, rest)
    square = torch.tensor(((seen - expected) ** 2 / expected).sum())
    p = torch.special.gammaincc(torch.tensor((len(seen) - 1) / 2, dtype=square.dtype), square / 2)  # of chi-square's upper tail
    assert p > 1e-3


def test_a_draw_is_the_inverse_of_the_distribution_function():
    scores = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]], dtype=torch.float64).log()
    for uniform, id in ((0.0, 1), (0.24, 1), (0.26, 3), (0.74, 3), (0.76, 4), (1 - 2**-53, 4)):
        assert drawn(scores, [uniform]).tolist() == [id]


def test_random_numbers_belong_to_seed_sample_prompt_and_step():
    numbers = {
        Draws.of(seed, k, [prompt]).uniform(step) for seed in (0, 1, 2**40) for k in (0, 1) for prompt in (3, 4) for step in (0, 1, 9)
    }
    assert len(numbers) == 36
    assert Draws.of(0, 0, [1, 2]) != Draws.of(0, 0, [1], [2])
    assert Draws.of(3, 1, [4]).uniform(7) == Draws.of(3, 1, torch.tensor([4])).uniform(7)
