"""Dropout as a random variable: kept fraction, scale, expectation, independence, determinism."""

import math

import pytest
import torch
from torch.testing import assert_close

from plait.core.dropout import LANES, Dropout, add_dropped, dropout, keep_scale


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_kept_fraction_and_scale(p):
    torch.manual_seed(0)
    n = 300_003  # odd: the last draw decides fewer than four entries
    y = dropout(torch.ones(n, dtype=torch.float64), p, True)
    exact = round(p * LANES) / LANES  # p to within 1/65536
    assert abs(exact - p) <= 0.5 / LANES
    kept = int((y != 0).sum())
    assert abs(kept - n * (1 - exact)) < 5 * math.sqrt(n * exact * (1 - exact))
    assert_close(y[y != 0], torch.full((kept,), 1 / (1 - exact), dtype=torch.float64), rtol=1e-12, atol=0)
    sigma = math.sqrt(exact / (1 - exact) / n)  # of the mean of n entries of variance p / (1 - p)
    assert abs(y.mean().item() - 1) < 5 * sigma


def test_the_four_lanes_of_a_draw_are_independent_and_alike():
    torch.manual_seed(0)
    n, p = 200_000, 0.3
    kept = (keep_scale(torch.empty(n, 4), p) != 0).double()
    bound = 5 * math.sqrt(p * (1 - p) / n)
    for lane in range(4):
        assert abs(kept[:, lane].mean().item() - 0.7) < bound
    covariance = torch.cov(kept.T)
    covariance.fill_diagonal_(0)
    assert covariance.abs().max() < 5 * p * (1 - p) / math.sqrt(n)
    assert torch.cov(torch.stack([kept[:-1, 3], kept[1:, 0]]))[0, 1].abs() < 5 * p * (1 - p) / math.sqrt(n)  # across draws


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (5,), (7, 3), (1, 1, 1), (3, 5, 7), (0,)])
def test_odd_sizes(shape):
    torch.manual_seed(0)
    y = dropout(torch.ones(shape, dtype=torch.float64), 0.5, True)
    assert y.shape == shape
    assert set(y.flatten().tolist()) <= {0.0, 2.0}


def test_every_entry_can_fall():
    torch.manual_seed(0)
    x = torch.ones(7)
    assert ((sum((dropout(x, 0.5, True) == 0).long() for _ in range(40))) > 0).all()
    assert ((sum((dropout(x, 0.5, True) != 0).long() for _ in range(40))) > 0).all()


def test_seed_decides_and_draws_differ():
    x = torch.ones(1000)
    torch.manual_seed(5)
    a, b = dropout(x, 0.5, True), dropout(x, 0.5, True)
    torch.manual_seed(5)
    state_a = dropout(x, 0.5, True)
    state = torch.get_rng_state()
    again = dropout(x, 0.5, True)
    torch.set_rng_state(state)
    assert torch.equal(a, state_a)
    assert torch.equal(b, again)
    assert torch.equal(dropout(x, 0.5, True), again)  # a restored generator state gives the same mask
    assert not torch.equal(a, b)


def test_nothing_happens_at_zero_or_outside_training():
    x, state = torch.randn(5), torch.get_rng_state()
    assert dropout(x, 0.0, True) is x
    assert dropout(x, 0.5, False) is x
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(add_dropped(x, x, 0.5, False), 2 * x)
    assert torch.equal(add_dropped(x, x, 0.0, True), 2 * x)
    assert torch.equal(torch.get_rng_state(), state)  # and no random number is spent


def test_gradient_is_the_mask():
    torch.manual_seed(0)
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    y = dropout(x, 0.4, True)
    y.sum().backward()
    assert_close(x.grad * x, y.detach())
    assert 0 < int((x.grad == 0).sum()) < 50


def test_add_dropped_is_x_plus_dropout_with_gradients():
    x = torch.randn(6, 7, dtype=torch.float64, requires_grad=True)
    y = torch.randn(6, 7, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    joined = add_dropped(x, y, 0.3, True)
    grads = torch.autograd.grad(joined.square().sum(), (x, y))
    torch.manual_seed(3)
    apart = x + dropout(y, 0.3, True)
    assert_close(joined, apart)
    assert_close(grads, torch.autograd.grad(apart.square().sum(), (x, y)))


def test_everything_can_be_dropped():
    assert dropout(torch.ones(9), 1.0, True).tolist() == [0.0] * 9
