"""Feed-forward steps and activations against their formulas in plain Python."""

import math

import pytest
import torch
from torch.testing import assert_close

from plait.core import feedforward
from plait.core.feedforward import FFN, gelu, gelu_tanh, relu, relu2, silu


def by_hand(name, a):
    return {
        "relu": max(a, 0.0),
        "relu2": max(a, 0.0) ** 2,
        "gelu": a * 0.5 * (1 + math.erf(a / math.sqrt(2))),
        "gelu_tanh": 0.5 * a * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))),
        "silu": a / (1 + math.exp(-a)),
    }[name]


@pytest.mark.parametrize("name", ["relu", "relu2", "gelu", "gelu_tanh", "silu"])
def test_activations_are_their_formulas(name):
    x = torch.cat([torch.linspace(-6, 6, 97, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    expected = torch.tensor([by_hand(name, a) for a in x.tolist()], dtype=torch.float64)
    assert_close(getattr(feedforward, name)(x), expected, rtol=1e-12, atol=1e-14)


def test_gradient_of_relu2():
    x = torch.tensor([[-2.0, -0.1, 0.3, 1.7]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(relu2, (x,))
    assert torch.autograd.grad(relu2(x).sum(), x)[0].tolist() == [[0.0, 0.0, 0.6, 3.4]]


def test_the_two_gelus_differ():
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    assert 1e-5 < (gelu(x) - gelu_tanh(x)).abs().max() < 1e-3


@pytest.mark.parametrize("rows", [2, 200])  # below and above where `project` joins the weights
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [relu, silu])
@pytest.mark.parametrize("gated", [False, True])
def test_ffn_is_the_formula(gated, bias, activation, rows):
    torch.manual_seed(1)
    ffn = FFN(4, 6, activation, gated=gated, bias=bias, dropout=0.5).double().eval()
    for p in ffn.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(1, rows, 4, dtype=torch.float64)

    def line(layer, v):
        b = layer.bias.tolist() if bias else [0.0] * len(layer.weight)
        return [sum(w * a for w, a in zip(row, v, strict=True)) + c for row, c in zip(layer.weight.tolist(), b, strict=True)]

    for i in (0, rows - 1):
        v = x[0, i].tolist()
        up = line(ffn.up_proj, v)
        if gated:
            hidden = [by_hand(activation.__name__, g) * u for g, u in zip(line(ffn.gate_proj, v), up, strict=True)]
        else:
            hidden = [by_hand(activation.__name__, u) for u in up]
        assert_close(ffn(x)[0, i], torch.tensor(line(ffn.down_proj, hidden), dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_a_plain_ffn_has_no_gate_and_names_are_fixed():
    assert sorted(FFN(4, 8).state_dict()) == ["down_proj.bias", "down_proj.weight", "up_proj.bias", "up_proj.weight"]
    assert sorted(FFN(4, 8, gated=True, bias=False).state_dict()) == ["down_proj.weight", "gate_proj.weight", "up_proj.weight"]


def test_dropout_falls_on_the_hidden_layer():
    torch.manual_seed(0)
    ffn = FFN(4, 4096, relu, dropout=0.25).double()
    torch.nn.init.zeros_(ffn.up_proj.weight)
    torch.nn.init.ones_(ffn.up_proj.bias)  # every hidden entry is 1
    torch.nn.init.ones_(ffn.down_proj.weight)  # so each output counts the kept ones, times 1 / 0.75
    kept = ffn(torch.zeros(1, 1, 4, dtype=torch.float64)).flatten() * 0.75
    assert_close(kept, kept[:1].expand(4))  # one draw for all outputs: dropout is before the last projection
    assert abs(kept[0].item() - 3072) < 5 * math.sqrt(4096 * 0.25 * 0.75)
    assert kept[0] != 3072 or ffn(torch.zeros(1, 1, 4, dtype=torch.float64))[0, 0, 0] * 0.75 != 3072


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [None, "up_proj.weight", "down_proj.weight"])
def test_relu_in_place_is_the_same_function(bias, frozen):
    """The joined function against the plain steps, which a hook brings back: outputs, all gradients, and finite differences."""
    torch.manual_seed(0)
    ffn = FFN(6, 10, relu, bias=bias).double()
    for name, p in ffn.named_parameters():
        torch.nn.init.normal_(p)
        p.requires_grad_(name != frozen)
    x = torch.randn(3, 50, 6, dtype=torch.float64, requires_grad=True)
    grad, found = torch.randn(3, 50, 6, dtype=torch.float64), []
    assert ffn.in_place(x)
    for watched in (False, True):
        if watched:
            ffn.up_proj.register_forward_hook(lambda *_: None)
            assert not ffn.in_place(x)
        y = ffn(x)
        wanted = [x, *(p for p in ffn.parameters() if p.requires_grad)]
        found.append([y, *torch.autograd.grad(y, wanted, grad)])
    for joined, plain in zip(*found, strict=True):
        torch.testing.assert_close(joined, plain, rtol=1e-12, atol=1e-12)
    del ffn.up_proj._forward_hooks[next(iter(ffn.up_proj._forward_hooks))]
    assert ffn.in_place(x) and torch.autograd.gradcheck(ffn, x[:1, :2].detach().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        assert not ffn.in_place(x)
