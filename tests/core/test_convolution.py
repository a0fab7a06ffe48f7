"""Convolutions with frozen norms: what oneDNN computes in one go is what the parts compute one after another."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from plait.core.convolution import FUSES, ChannelNorm, Conv, Folded, FrozenBatchNorm, Unit

pytestmark = pytest.mark.skipif(not FUSES, reason="this torch has no oneDNN")


def unit(d_in: int = 6, d_out: int = 10, size: int = 3, stride: int = 1, dilation: int = 1) -> Unit:
    torch.manual_seed(0)
    made = Unit(Conv(d_in, d_out, size, stride, dilation), FrozenBatchNorm)
    for name, buffer in made.norm.named_buffers():
        buffer.copy_(torch.rand(d_out) + 0.5 if name in ("weight", "running_var") else torch.randn(d_out))
    return made


def by_the_book(made: Unit, x: torch.Tensor, beside: torch.Tensor | None, activated: bool) -> torch.Tensor:
    """In float64: torch's own convolution and batch normalisation."""
    conv, norm = made.conv, made.norm
    y = F.conv2d(x.double(), conv.weight.double(), None, conv.stride, conv.padding, conv.dilation)
    y = F.batch_norm(y, *(getattr(norm, name).double() for name in ("running_mean", "running_var", "weight", "bias")), eps=norm.eps)
    y = y if beside is None else y + beside.double()
    return y.relu() if activated else y


@pytest.mark.parametrize("activated", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("how", [(1, 1, 1), (3, 1, 1), (3, 2, 1), (7, 2, 1), (3, 1, 2)])
@torch.no_grad()
def test_folded_is_by_the_book(how, added, activated):
    made = unit(6, 10, *how)
    for batch, height, width in ((1, 9, 12), (3, 16, 7), (2, 1, 1)):  # the weights lie as the first size wants them, and serve all
        x = torch.randn(batch, 6, height, width).contiguous(memory_format=torch.channels_last)
        shape = by_the_book(made, x, None, False).shape
        beside = torch.randn(shape) if added else None
        kept = None if beside is None else beside.clone()
        wanted = by_the_book(made, x, beside, activated)
        assert_close(made(x, None, beside, activated).double(), wanted, rtol=1e-5, atol=1e-5)
        assert made.folded is not None
        assert beside is None or torch.equal(beside, kept)  # it may be needed elsewhere


def test_in_learning_the_parts_are_used():
    made, x = unit(), torch.randn(1, 6, 8, 8)
    y = made(x, None)
    assert made.folded is None and y.requires_grad
    assert_close(y.double(), by_the_book(made, x, None, True), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_changed_weights_and_statistics_are_seen():
    made, x = unit(), torch.randn(1, 6, 8, 8)
    made(x, None)
    for part in (made.conv.weight, made.norm.running_mean, made.norm.weight):
        part.mul_(1.5)
        assert_close(made(x, None).double(), by_the_book(made, x, None, True), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_who_watches_the_parts_sees_them():
    made, x, seen = unit(), torch.randn(1, 6, 8, 8), []
    made(x, None)
    hook = made.conv.register_forward_hook(lambda *found: seen.append(found[2]))
    made(x, None)
    hook.remove()
    made(x, None)
    assert len(seen) == 1


@torch.no_grad()
def test_copies_fold_for_themselves():
    made, x = unit(), torch.randn(1, 6, 8, 8)
    y = made(x, None)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.folded is None
        other.conv.weight.zero_()
        assert_close(other(x, None).double(), by_the_book(other, x, None, True), rtol=1e-5, atol=1e-5)
    assert torch.equal(made(x, None), y)


@torch.no_grad()
def test_other_norms_and_numbers_stay_as_they_are():
    assert not Folded.possible(Unit(Conv(6, 10, 3), ChannelNorm), torch.randn(1, 6, 8, 8))
    assert not Folded.possible(unit().double(), torch.randn(1, 6, 8, 8, dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        assert not Folded.possible(unit(), torch.randn(1, 6, 8, 8))
    assert Folded.possible(unit(), torch.randn(1, 6, 8, 8))


def test_inference_mode_folds_too():
    made, x = unit(), torch.randn(1, 6, 8, 8)
    with torch.inference_mode():
        y = made(x, None)
    assert made.folded is not None
    with torch.no_grad():
        assert_close(made(x, None), y)
