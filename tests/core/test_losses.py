"""Chunked cross-entropy against torch's own, in float64: values and gradients; second derivatives are refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from plait.core import losses
from plait.core.losses import linear_cross_entropy


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """`CHUNK` decides, however few rows it leaves."""
    monkeypatch.setattr(losses, "ROWS", 1)


def parts(n=11, d=4, v=7, bias=True):
    torch.manual_seed(0)
    hidden = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(v, d, dtype=torch.float64, requires_grad=True)
    b = torch.randn(v, dtype=torch.float64, requires_grad=True) if bias else None
    return hidden, weight, b, torch.randint(0, v, (n,))


@pytest.mark.parametrize("chunk", [1, 3, 11, 1024])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "v"), [(11, 7), (1, 7), (5, 1)])
def test_it_is_torchs_cross_entropy(chunk, smoothing, bias, n, v, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", chunk * v)
    hidden, weight, b, targets = parts(n, 4, v, bias)
    total, plain = linear_cross_entropy(hidden, weight, b, targets, smoothing)
    logits = F.linear(hidden, weight, b)
    theirs = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
    assert_close(total, theirs, rtol=1e-12, atol=1e-12)
    assert_close(plain, F.cross_entropy(logits, targets, reduction="sum"), rtol=1e-12, atol=1e-12)
    inputs = [t for t in (hidden, weight, b) if t is not None]
    ours = torch.autograd.grad(total * 0.37, inputs)  # a factor: the upstream gradient must count
    for a, e in zip(ours, torch.autograd.grad(theirs * 0.37, inputs), strict=True):
        assert_close(a, e, rtol=1e-10, atol=1e-12)


def test_a_large_vocabulary(monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", 150_000)  # three rows, then one
    hidden, weight, b, targets = parts(4, 3, 50_000)
    total, _ = linear_cross_entropy(hidden, weight, b, targets, 0.1)
    theirs = F.cross_entropy(F.linear(hidden, weight, b), targets, label_smoothing=0.1, reduction="sum")
    for a, e in zip(torch.autograd.grad(total, (hidden, weight, b)), torch.autograd.grad(theirs, (hidden, weight, b)), strict=True):
        assert_close(a, e, rtol=1e-10, atol=1e-12)
    assert_close(total, theirs)


def test_it_is_the_formula_by_hand():
    hidden, weight, b, targets = parts(3, 2, 4)
    total = plain = 0.0
    for h, t in zip(hidden.tolist(), targets.tolist(), strict=True):
        scores = [sum(x * y for x, y in zip(h, w, strict=True)) + c for w, c in zip(weight.tolist(), b.tolist(), strict=True)]
        log_z = math.log(sum(math.exp(s) for s in scores))
        wanted = [0.1 / 4 + (0.9 if i == t else 0.0) for i in range(4)]
        total -= sum(q * (s - log_z) for q, s in zip(wanted, scores, strict=True))
        plain -= scores[t] - log_z
    ours = linear_cross_entropy(hidden, weight, b, targets, 0.1)
    assert ours[0].item() == pytest.approx(total, rel=1e-12)
    assert ours[1].item() == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradcheck(smoothing, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", 8)  # two rows at a time
    hidden, weight, b, targets = parts(5, 3, 4)
    assert torch.autograd.gradcheck(lambda *a: linear_cross_entropy(*a, targets, smoothing)[0], (hidden, weight, b))


def test_a_second_derivative_is_refused():
    hidden, weight, b, targets = parts()
    total, _ = linear_cross_entropy(hidden.square(), weight, b, targets)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(torch.autograd.grad(total.square(), hidden, create_graph=True)[0].sum(), weight)


@pytest.mark.parametrize("alone", [0, 1, 2])
def test_each_input_may_be_the_only_one_that_learns(alone):
    *inputs, targets = parts()
    for i, t in enumerate(inputs):
        t.requires_grad_(i == alone)
    ours = torch.autograd.grad(linear_cross_entropy(*inputs, targets, 0.1)[0], inputs[alone])[0]
    theirs = torch.autograd.grad(F.cross_entropy(F.linear(*inputs), targets, label_smoothing=0.1, reduction="sum"), inputs[alone])[0]
    assert_close(ours, theirs)


def test_without_gradients_and_without_rows():
    hidden, weight, b, targets = parts()
    with torch.no_grad():
        total, plain = linear_cross_entropy(hidden, weight, b, targets)
    assert total == plain > 0
    assert not total.requires_grad
    total, plain = linear_cross_entropy(hidden[:0], weight, b, targets[:0])
    total.backward()
    assert total == plain == 0
    assert weight.grad.abs().max() == 0


def test_the_plain_sum_is_for_reporting_only():
    total, plain = linear_cross_entropy(*parts(), 0.1)
    assert total.requires_grad
    assert not plain.requires_grad


def test_huge_scores_stay_finite():
    hidden, weight, b, targets = parts()
    total, plain = linear_cross_entropy(hidden * 1e4, weight, b, targets, 0.1)
    assert torch.isfinite(total)
    assert torch.isfinite(plain)
    assert torch.isfinite(torch.autograd.grad(total, weight)[0]).all()


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)])
def test_gradients_of_what_is_not_frozen_are_those_of_all(wanted):
    """Beside frozen weights (LoRA) the gradient of the hidden vectors is what it is beside trained ones, and so on."""
    torch.manual_seed(0)
    given = [torch.randn(7, 5, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64), torch.randn(11, dtype=torch.float64)]
    targets, found = torch.randint(0, 11, (7,)), []
    for kept in ((True, True, True), wanted):
        parts = [t.clone().requires_grad_(keep) for t, keep in zip(given, kept, strict=True)]
        linear_cross_entropy(*parts, targets, smoothing=0.1)[0].backward()
        found.append([p.grad for p in parts])
    for keep, whole, own in zip(wanted, *found, strict=True):
        assert (own is None) == (not keep)
        if own is not None:
            torch.testing.assert_close(own, whole, rtol=0, atol=1e-12)
