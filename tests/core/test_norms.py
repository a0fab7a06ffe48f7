"""Norms against their formulas, written out per row with plain Python."""

import math

import pytest
import torch
from torch.testing import assert_close

from plait.core.norms import LayerNorm, RMSNorm


def rows(x):
    return x.reshape(-1, x.shape[-1]).tolist()


@pytest.fixture
def x():
    return torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 2


@pytest.mark.parametrize("eps", [1e-5, 1e-12, 0.5])
@pytest.mark.parametrize(("gain", "bias"), [(True, True), (True, False), (False, False)])
def test_layer_norm_is_the_formula(x, eps, gain, bias):
    norm = LayerNorm(6, eps, gain, bias).double()
    for p in norm.parameters():
        torch.nn.init.normal_(p)
    weight = norm.weight.tolist() if gain else [1.0] * 6
    shift = norm.bias.tolist() if bias else [0.0] * 6
    expected = []
    for row in rows(x):
        mean = sum(row) / 6
        variance = sum((a - mean) ** 2 for a in row) / 6  # the biased one
        expected.append([(a - mean) / math.sqrt(variance + eps) * w + b for a, w, b in zip(row, weight, shift, strict=True)])
    assert_close(norm(x).reshape(-1, 6), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("learning", [False, True])  # on a CPU the two go different ways
@pytest.mark.parametrize("offset", [0.0, 1.0, 0.25])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rms_norm_is_the_formula(x, eps, offset, learning):
    x = x.requires_grad_(learning)
    norm = RMSNorm(6, eps, offset=offset).double()
    torch.nn.init.normal_(norm.weight)
    gain = [offset + w for w in norm.weight.tolist()]
    expected = []
    for row in rows(x):
        rms = math.sqrt(sum(a * a for a in row) / 6 + eps)
        expected.append([a / rms * g for a, g in zip(row, gain, strict=True)])
    assert_close(norm(x).reshape(-1, 6), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("turned", [False, True])
def test_rms_norm_gradients(gain, turned):
    torch.manual_seed(0)
    norm = RMSNorm(5, eps=0.1, gain=gain, offset=1.0).double()
    x = torch.randn(3, 5, 2, dtype=torch.float64).transpose(1, 2) if turned else torch.randn(3, 2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(norm, (x.requires_grad_(),))
    if gain:
        up = torch.randn(3, 2, 5, dtype=torch.float64)
        found = torch.autograd.grad((norm(x) * up).sum(), norm.weight)[0]
        rms = (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
        assert_close(found, (x / rms * up).sum((0, 1)).detach())
    with pytest.raises(RuntimeError):  # a second derivative is refused
        torch.autograd.grad(torch.autograd.grad(norm(x).pow(3).sum(), x, create_graph=True)[0].sum(), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_is_one_function_whether_it_learns_or_not(dtype):
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).mul(30).to(dtype)
    norm = RMSNorm(64, gain=False)
    quiet, learning = norm(x), norm(x.clone().requires_grad_())
    assert quiet.dtype == learning.dtype == dtype
    assert_close(learning.detach(), quiet, rtol=1e-6 if dtype == torch.float32 else 1.6e-2, atol=1e-6)


def test_without_gain_nothing_is_stored_and_rows_have_unit_size(x):
    norm = RMSNorm(6, eps=0.0, gain=False)
    assert not list(norm.parameters())
    assert_close(norm(x).square().mean(-1), torch.ones(3, 4, dtype=torch.float64))
    assert not list(LayerNorm(6, gain=False).parameters())
    assert [n for n, _ in LayerNorm(6, bias=False).named_parameters()] == ["weight"]


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_new_norm_has_gain_one(x, offset):
    norm = RMSNorm(6, eps=0.0, offset=offset).double()
    assert_close(norm(x), RMSNorm(6, eps=0.0, gain=False)(x))
    assert norm.weight.unique().tolist() == [1.0 - offset]  # Gemma's stored gain starts at zero
    torch.nn.init.normal_(norm.weight)
    norm.reset_parameters()
    assert norm.weight.unique().tolist() == [1.0 - offset]
    layer = LayerNorm(6)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    layer.reset_parameters()
    assert (layer.weight.unique().tolist(), layer.bias.unique().tolist()) == ([1.0], [0.0])
