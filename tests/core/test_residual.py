"""Residual rules against hand-written formulas; dropout and stochastic depth."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from plait.core.blocks import Block
from plait.core.kernels import reference
from plait.core.norms import LayerNorm
from plait.core.residual import Parallel, Post, Pre, Rule, Sandwich
from plait.core.stream import Call, Stream


class Step(nn.Module):
    """A step that is not linear, so that the order of things shows."""

    def __init__(self, d, seed):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d, d, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x, call, path):
        return torch.tanh(x @ self.weight)


def block(rule):
    torch.manual_seed(0)
    made = Block(rule, lambda: LayerNorm(5), {"one": Step(5, 1), "two": Step(5, 2)}).double()
    for name, p in made.named_parameters():
        if "norm" in name:
            nn.init.normal_(p)
    return made


def call(x):
    return Call(Stream(x), reference)


FORMULAS = {
    Pre: lambda x, f, g, nf, ng, *_: (lambda y: y + g(ng(y)))(x + f(nf(x))),
    Post: lambda x, f, g, nf, ng, *_: (lambda y: ng(y + g(y)))(nf(x + f(x))),
    Sandwich: lambda x, f, g, nf, ng, pf, pg: (lambda y: y + pg(g(ng(y))))(x + pf(f(nf(x)))),
    Parallel: lambda x, f, g, nf, ng, *_: x + f(nf(x)) + g(ng(x)),
}


@pytest.mark.parametrize("rule", FORMULAS)
def test_a_rule_is_its_formula(rule):
    made, x = block(rule()), torch.randn(2, 3, 5, dtype=torch.float64)
    f, g = (lambda v, s=s: torch.tanh(v @ s.weight) for s in (made.one, made.two))
    norms = [made.one_norm, made.two_norm, getattr(made, "one_post_norm", None), getattr(made, "two_post_norm", None)]
    assert_close(made(x, call(x), ()), FORMULAS[rule](x, f, g, *norms), rtol=1e-12, atol=1e-12)


def test_the_rules_differ():
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    outs = [block(rule())(x, call(x), ()) for rule in FORMULAS]
    for i, a in enumerate(outs):
        for b in outs[:i]:
            assert (a - b).abs().max() > 1e-3


def test_only_the_sandwich_has_a_second_norm():
    names = {name.split(".")[0] for name, _ in block(Sandwich()).named_parameters()}
    assert names == {"one", "one_norm", "one_post_norm", "two", "two_norm", "two_post_norm"}
    assert {name.split(".")[0] for name, _ in block(Pre()).named_parameters()} == {"one", "one_norm", "two", "two_norm"}


def test_dropout_falls_on_the_steps_output_and_not_on_the_stream():
    torch.manual_seed(0)
    rule, n = Rule(dropout=0.3), 100_000
    x, y = torch.full((n, 1), 10.0, dtype=torch.float64), torch.ones(n, 1, dtype=torch.float64)
    added = rule.join(x, y) - x
    assert abs((added == 0).double().mean().item() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / n)
    assert abs(added.max().item() - 1 / 0.7) < 1e-4
    assert torch.equal(rule.eval().join(x, y), x + y)


@pytest.mark.parametrize("p", [0.2, 0.6])
def test_drop_path_drops_whole_rows_and_scales_the_others(p):
    torch.manual_seed(0)
    rule, n = Rule(drop_path=p), 20_000
    y = torch.rand(n, 2, 3, dtype=torch.float64) + 0.5
    out = rule.join(torch.zeros_like(y), y) / y
    assert_close(out, out[:, :1, :1].expand_as(out))  # one fate a row
    fates = out[:, 0, 0]
    assert abs((fates == 0).double().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / n)
    kept = fates[fates != 0]
    assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-12, atol=0)
    assert torch.equal(rule.eval().join(y, y), y + y)


def test_steps_of_a_block_draw_apart():
    torch.manual_seed(0)
    made = block(Pre(dropout=0.5, drop_path=0.5))
    x = torch.randn(64, 3, 5, dtype=torch.float64)
    assert not torch.equal(made(x, call(x), ()), made(x, call(x), ()))
