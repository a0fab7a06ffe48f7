"""`Packed`: a weight in oneDNN's order gives the same products, and serves only while it is true."""

import copy

import pytest
import torch
from torch.testing import assert_close

from plait.core.embeddings import Tokens
from plait.core.heads import Tied
from plait.core.linear import Linear, Packed, project
from plait.generate.layout import for_few_rows
from plait.models import build

needs_packing = pytest.mark.skipif(not Packed.possible(torch.ones(2, 2)), reason="this torch has no oneDNN")


def packed(d_in: int, d_out: int, bias: bool) -> Linear:
    torch.manual_seed(0)
    layer = Linear(d_in, d_out, bias)
    if bias:
        torch.nn.init.normal_(layer.bias)
    layer.packed = Packed(layer.weight, 16)
    return layer


@needs_packing
@pytest.mark.parametrize("shape", [(1,), (0,), (64,), (3, 1), (3, 200)])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_the_product_is_the_same(shape, bias):
    layer = packed(48, 31, bias)
    x = torch.randn(*shape, 96)[..., ::2]  # not contiguous
    wanted = x.double() @ layer.weight.double().t() + (layer.bias.double() if bias else 0)
    assert_close(layer(x).double(), wanted, rtol=1e-5, atol=1e-5)
    assert [tuple(y.shape) for y in project(x, layer, layer)] == [(*shape, 31)] * 2


@needs_packing
def test_a_changed_weight_is_used_itself():
    layer, x = packed(8, 5, False), torch.randn(4, 8)
    for change in (
        lambda: layer.weight.mul_(2),
        lambda: layer.load_state_dict({"weight": torch.ones(5, 8)}),
        lambda: torch.optim.SGD([layer.weight], 0.1).step(),
    ):
        layer.weight.grad = torch.ones_like(layer.weight)
        layer.packed = Packed(layer.weight, 16)
        with torch.no_grad():
            assert layer.packed.serves(x, layer.weight)
            change()
            assert not layer.packed.serves(x, layer.weight)
            assert_close(layer(x), x @ layer.weight.t())
    layer.packed = Packed(layer.weight, 16)
    assert not layer.packed.serves(x, layer.weight), "with gradients the weight itself is needed"
    with torch.no_grad():
        layer.double()
        assert layer(x.double()).dtype == torch.float64


@needs_packing
def test_copies_and_saved_states_know_nothing_of_it():
    layer = packed(8, 5, True)
    assert sorted(layer.state_dict()) == ["bias", "weight"]
    assert copy.deepcopy(layer).packed is None and layer.packed is not None


@needs_packing
@torch.no_grad()
def test_a_tied_output_and_a_whole_model():
    tokens = Tokens(300, 16)
    head = Tied(tokens, scale=0.5, bias=True)
    head.bias.normal_()
    hidden = torch.randn(6, 16)
    wanted = head(hidden)
    head.packed = Packed(head.weight, 16)
    assert_close(head(hidden), wanted, rtol=1e-5, atol=1e-5)
    net = build("vaswani", dict(source_vocab=50, target_vocab=50, d_model=16, n_heads=2, n_layers=2, d_ff=32)).eval()
    source, target = torch.randint(50, (2, 7)), torch.randint(50, (2, 5))

    def scores():
        return net.heads["lm"](net(encoder=source, decoder=target)["decoder"].x)

    before = scores()
    states = {name: t.clone() for name, t in net.state_dict().items()}
    assert all(part.packed is not None for part in for_few_rows(net).modules() if type(part) in (Linear, Tied))
    assert_close(scores(), before, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(t, states[name]) for name, t in net.state_dict().items())


@torch.no_grad()
def test_where_nothing_can_be_packed_weights_lie_by_columns(monkeypatch):
    monkeypatch.setattr("plait.generate.layout.LARGEST", 0)
    monkeypatch.setattr("plait.generate.layout.native.library", lambda name: None)
    net = build("vaswani", dict(source_vocab=50, target_vocab=50, d_model=16, n_heads=2, n_layers=1, d_ff=32)).eval()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    for_few_rows(net)
    layers = [part for part in net.modules() if type(part) is Linear]
    assert layers and all(part.packed is None and part.weight.stride(0) == 1 for part in layers)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
