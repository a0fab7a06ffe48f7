"""Embeddings: parts in running order, each from stream to stream."""

import math

import torch

from plait.core.embeddings import Dropped, Each, Embed, Tokens
from plait.core.norms import RMSNorm
from plait.core.stream import Lent, Stream


def test_tokens_look_up_and_scale():
    torch.manual_seed(0)
    tokens = Tokens(9, 4, scale=math.sqrt(4)).double()
    ids = torch.tensor([[3, 0, 8], [3, 3, 1]])
    out = tokens(Stream(ids, start=5))
    for b in range(2):
        for i in range(3):
            assert torch.equal(out.x[b, i], tokens.weight[ids[b, i]] * 2.0)
    assert out.start == 5  # what is known of the entries is kept


def test_tokens_start_with_rows_of_about_unit_length():
    torch.manual_seed(0)
    weight = Tokens(2000, 64).weight
    assert abs(weight.square().sum(1).mean().item() - 1) < 0.01  # so sqrt(d) times a row has entries of variance 1


def test_embed_runs_its_parts_in_order_and_stores_no_lent_part():
    torch.manual_seed(0)
    tokens, norm = Tokens(9, 4), RMSNorm(4)
    torch.nn.init.normal_(norm.weight)
    ids = torch.tensor([[3, 0, 8]])
    plus = lambda s: s.having(x=s.x + 1)  # noqa: E731
    first = Embed(tokens=tokens, plus=plus, norm=Each(norm))
    last = Embed(tokens=Lent(tokens), norm=Each(norm), plus=plus)
    assert torch.equal(first(Stream(ids)).x, norm(tokens.weight[ids] + 1))
    assert torch.equal(last(Stream(ids)).x, norm(tokens.weight[ids]) + 1)
    assert sorted(first.state_dict()) == ["norm.part.weight", "tokens.weight"]
    assert sorted(last.state_dict()) == ["norm.part.weight"]


def test_dropped_drops_in_training_only():
    torch.manual_seed(0)
    part, s = Dropped(0.5), Stream(torch.ones(4, 50, 8))
    assert set(part(s).x.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(part.eval()(s).x, s.x)
    assert Dropped(0.0)(s) is s
