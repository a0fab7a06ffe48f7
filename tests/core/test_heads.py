"""`Tied`: scores against the rows of an embedding that stays with its owner."""

import torch
from torch.testing import assert_close

from plait.core.embeddings import Tokens
from plait.core.heads import Tied
from plait.core.stream import Lent


def test_tied_is_the_formula_and_owns_only_its_bias():
    torch.manual_seed(0)
    tokens = Tokens(7, 4).double()
    head = Tied(tokens, scale=0.3, bias=True).double()
    torch.nn.init.normal_(head.bias)
    hidden = torch.randn(2, 3, 4, dtype=torch.float64)
    expected = torch.empty(2, 3, 7, dtype=torch.float64)
    for b in range(2):
        for i in range(3):
            for w in range(7):
                expected[b, i, w] = 0.3 * sum(hidden[b, i, d] * tokens.weight[w, d] for d in range(4)) + head.bias[w]
    assert_close(head(hidden), expected.detach(), rtol=1e-12, atol=1e-12)
    assert list(head.state_dict()) == ["bias"]
    assert list(Tied(tokens).state_dict()) == []
    head.reset_parameters()
    assert head.bias.abs().max() == 0


def test_the_tie_follows_the_embedding_when_it_is_replaced():
    tokens = Tokens(7, 4)
    head = Tied(Lent(tokens))  # lent twice over: a decoder's borrowed embedding
    tokens.weight = torch.nn.Parameter(torch.zeros(7, 4))
    assert head.weight is tokens.weight
    head(torch.ones(2, 4)).sum().backward()
    assert_close(tokens.weight.grad, torch.full((7, 4), 2.0))
