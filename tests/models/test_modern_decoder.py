"""A decoder from scratch: its size, its start, and the vectors of n-grams."""

import math

import pytest
import torch
from torch.testing import assert_close

from plait.core.model import parameters, reset
from plait.core.stream import Call, Stream
from plait.models.modern_decoder import Config, NGrams, build

SMALL = dict(d_model=16, n_heads=2, n_layers=2, d_ff=32)


def ids(rows: int, length: int, vocab: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("ngrams", [1, 3])
@pytest.mark.parametrize("d_head", [None, 24])
def test_the_total_is_a_closed_formula(tie, ngrams, d_head):
    d, h, f, n, v, rows = 48, 4, 80, 3, 31, 500
    with torch.device("meta"):
        found = parameters(build(Config(v, d, h, n, f, d_head, tie=tie, ngrams=ngrams, ngram_rows=rows)))
    assert found == v * d * (1 if tie else 2) + rows * d * (ngrams > 1) + n * (4 * d * h * (d_head or d // h) + 2 * d * f) + d * (2 * n + 1)


def test_blocks_start_as_the_identity_and_ngrams_as_nothing():
    net = build(Config(11, **SMALL, ngrams=3, ngram_rows=50)).eval()
    reset(net, 0)
    x = torch.randn(2, 5, 16)
    assert torch.equal(net.decoder.blocks(x, Call(Stream(x), net.kernel), ("decoder",)), x)
    text = Stream(ids(2, 9, 11))
    assert torch.equal(net.decoder.embed.tokens(text).x, net.decoder.embed.tokens.weight[text.x])
    assert 0.3 < net.decoder.blocks[0].self_attn.q_proj.weight.std() * 16**0.5 < 1.5  # what is inside is not zero


def test_an_ngram_has_one_vector_wherever_it_stands():
    """Against a dictionary of n-grams: equal ones have one row, at the beginning of a text with nothing before it."""
    part, x = NGrams(3, 8, longest=4, rows=10**6), ids(4, 40, 3)
    found, known = part.rows(Stream(x)), {}
    assert found.shape == (4, 40, 3)
    for text, rows in zip(x.tolist(), found.tolist(), strict=True):
        for end, row in enumerate(rows):
            for n, r in zip((2, 3, 4), row, strict=True):
                ngram = tuple(([None] * n + text[: end + 1])[-n:])
                assert known.setdefault(ngram, r) == r
    assert len(set(known.values())) == len(known) > 60  # in a million rows hardly any two meet


@pytest.mark.parametrize("vocab", [65, 50257])
def test_rows_are_used_alike(vocab):
    """At least as many as chance would give: m n-grams thrown into R rows hit R (1 - e^(-m / R)) of them."""
    rows, x = 2000, ids(60, 50, vocab)
    found = NGrams(vocab, 4, longest=3, rows=rows).rows(Stream(x))
    bigrams = {(a, b) for text in x.tolist() for a, b in zip([None, *text], text, strict=False)}
    for taken, m in ((found[..., 0], len(bigrams)), (found[..., 1], 60 * 50)):
        assert taken.min() >= 0 and taken.max() < rows
        assert taken.unique().numel() > 0.97 * rows * (1 - math.exp(-m / rows))


def test_every_token_of_an_ngram_counts():
    """Where rows and vocabulary are powers of two, a remainder alone would forget the tokens that count most."""
    part, varied = NGrams(63, 4, longest=4, rows=2048), torch.arange(63)[:, None]
    for place in range(4):
        text = torch.full((63, 4), 5).index_copy(1, torch.tensor([place]), varied)
        assert part.rows(Stream(text))[:, -1, -1].unique().numel() > 57  # by chance 62 of 63


def test_documents_in_one_row_are_as_alone():
    torch.manual_seed(0)
    net = build(Config(11, **SMALL, ngrams=4, ngram_rows=97)).double().eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, segment = ids(1, 9, 11), torch.tensor([[0, 0, 0, 0, 1, 1, 2, 2, 2]])
    with torch.no_grad():
        packed = net(Stream(x, segment=segment))["decoder"].x
        alone = torch.cat([net(part)["decoder"].x for part in x.split([4, 2, 3], 1)], 1)
    assert_close(packed, alone, rtol=1e-9, atol=1e-10)


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match="ngrams=0, ngram_rows=10000: expected whole numbers from 1 on"):
        build(Config(11, ngrams=0))
