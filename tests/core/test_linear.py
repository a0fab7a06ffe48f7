"""`Linear` and `project`, the joined product."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from plait.core.linear import Linear, project


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_the_formula_and_stores_as_torch_does(bias):
    torch.manual_seed(0)
    layer = Linear(3, 5, bias).double()
    torch.nn.init.normal_(layer.weight)
    if bias:
        torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    theirs = nn.Linear(3, 5, bias).double()
    theirs.load_state_dict(layer.state_dict())  # same names, same shapes
    expected = torch.empty(2, 4, 5, dtype=torch.float64)
    for b in range(2):
        for i in range(4):
            for o in range(5):
                expected[b, i, o] = sum(layer.weight[o, j] * x[b, i, j] for j in range(3)) + (layer.bias[o] if bias else 0)
    assert_close(layer(x), expected.detach(), rtol=1e-12, atol=1e-12, check_device=False)
    assert_close(layer(x), theirs(x))


def test_starting_values_are_glorot_uniform():
    torch.manual_seed(0)
    layer = Linear(300, 500)
    bound = math.sqrt(6 / 800)
    assert layer.bias.abs().max() == 0
    assert bound * 0.999 < layer.weight.abs().max() <= bound
    assert abs(layer.weight.std().item() - bound / math.sqrt(3)) < 0.002 * bound


@pytest.mark.parametrize("rows", [1, 127, 128, 400])
@pytest.mark.parametrize("biases", [(True, True, True), (False, False, False), (True, False, True)])
def test_project_equals_separate_layers_with_gradients(rows, biases):
    torch.manual_seed(0)
    layers = [Linear(6, width, bias).double() for width, bias in zip((4, 8, 2), biases, strict=True)]
    for p in [p for layer in layers for p in layer.parameters()]:
        torch.nn.init.normal_(p)
    x = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
    parameters = [x, *(p for layer in layers for p in layer.parameters())]
    up = [torch.randn(rows, width, dtype=torch.float64) for width in (4, 8, 2)]

    together = project(x, *layers)
    apart = [layer(x) for layer in layers]
    assert len(together) == 3
    for a, b in zip(together, apart, strict=True):
        assert_close(a, b, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(sum((o * u).sum() for o, u in zip(outs, up, strict=True)), parameters) for outs in (together, apart)]
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_whatever_else_stands_there_is_called_by_itself():
    class Twice(Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    torch.manual_seed(0)
    x = torch.randn(300, 6)
    adapted, plain = Twice(6, 4), Linear(6, 4)
    a, b = project(x, adapted, plain)
    assert torch.equal(a, adapted(x))
    assert torch.equal(b, plain(x))


def test_hooks_on_a_linear_run_however_many_rows_there_are():
    """A capability that listens at a projection must not go deaf at 128 rows."""
    heard = []
    layers = [Linear(6, 4), Linear(6, 4)]
    layers[0].register_forward_hook(lambda *_: heard.append(1))
    for rows in (2, 300):
        project(torch.randn(rows, 6), *layers)
    assert len(heard) == 2
