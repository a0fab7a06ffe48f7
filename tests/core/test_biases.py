"""Score biases: T5's buckets by loops and against transformers, ALiBi's slopes against the paper's lists, Shaw by loops."""

import math

import pytest
import torch
from torch.testing import assert_close

from plait.core.attention import Attention
from plait.core.biases import ALiBi, RelativeBias, Shaw
from plait.core.kernels import reference, sdpa
from plait.core.masks import causal
from plait.core.stream import Call, Places, Stream


def t5_bucket(distance, buckets, furthest, one_way):
    """Raffel et al. 2020, section 2.1, and the authors' code in words: distance = key - query."""
    start = 0
    if one_way:
        back = max(-distance, 0)  # keys ahead count as distance 0
    else:
        buckets //= 2
        start = buckets if distance > 0 else 0
        back = abs(distance)
    exact = buckets // 2
    if back < exact:
        return start + back
    grown = exact + int(math.log(back / exact) / math.log(furthest / exact) * (buckets - exact))
    return start + min(grown, buckets - 1)


@pytest.mark.parametrize("one_way", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20), (16, 64)])
def test_t5_buckets(buckets, furthest, one_way):
    bias = RelativeBias(2, buckets, furthest, one_way)
    distances = torch.arange(-300, 301)
    expected = [t5_bucket(d, buckets, furthest, one_way) for d in distances.tolist()]
    found = bias.bucket(distances)
    # At exact powers the logarithm may round to either side (float32 here and in the released code); nowhere else.
    wrong = [d for d, a, b in zip(distances.tolist(), found.tolist(), expected, strict=True) if a != b]
    span = (buckets if one_way else buckets // 2) // 2
    size = furthest / span
    assert all(abs((math.log(abs(d) / span) / math.log(size) * span) % 1.0 - 0.5) > 0.4999 for d in wrong), wrong
    assert len(wrong) <= 4
    assert found.min() == 0
    assert found.max() == buckets - 1
    assert len(found.unique()) == (buckets if one_way else buckets - 1)  # distance 0 is never ahead: bucket buckets/2 stays empty


@pytest.mark.parametrize("one_way", [True, False])
def test_t5_buckets_are_those_of_transformers(one_way):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5", reason="transformers is not installed")
    distances = torch.arange(-3000, 3001)
    theirs = t5.T5Attention._relative_position_bucket(distances, bidirectional=not one_way, num_buckets=32, max_distance=128)
    assert torch.equal(RelativeBias(2, causal=one_way).bucket(distances), theirs)


def test_relative_bias_reads_slots():
    bias = RelativeBias(3, causal=True)
    torch.nn.init.normal_(bias.weight)
    q, k = Places(2, 7), Places(9)
    out = bias(None, q, k)
    for h in range(3):
        for i in range(2):
            for j in range(9):
                assert out[0, h, i, j] == bias.weight[t5_bucket(j - (7 + i), 32, 128, True), h]
    assert torch.equal(RelativeBias.forward(bias, None, Places(9), Places(9))[:, :, 7:], out)


PAPER_8 = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]  # Press et al. 2022, section 3
PAPER_16 = [2 ** (-0.5 * i) for i in range(1, 17)]


@pytest.mark.parametrize(
    ("n_heads", "slopes"),
    [
        (8, PAPER_8),
        (16, PAPER_16),
        (1, [2**-8]),
        (2, [2**-4, 2**-8]),
        (12, PAPER_8 + PAPER_16[::2][:4]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
    ],
)
def test_alibi_slopes(n_heads, slopes):
    bias = ALiBi(n_heads)
    assert bias.slopes == pytest.approx(slopes, rel=1e-12)
    out = bias(None, Places(2, 3), Places(5))
    for h, slope in enumerate(slopes):
        for i in range(2):
            for j in range(5):
                assert out[0, h, i, j].item() == pytest.approx(-slope * abs(j - (3 + i)), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [reference, sdpa])
def test_alibi_in_every_dtype(kernel, dtype):
    torch.manual_seed(0)
    attention = Attention(8, 2, mask=causal, score_bias=ALiBi(2)).to(dtype)
    x = torch.randn(1, 5, 8, dtype=dtype)
    out = attention(x, Call(Stream(x), kernel), ())
    assert out.dtype == dtype
    exact = attention.double()(x.double(), Call(Stream(x.double()), reference), ())
    assert_close(out.double(), exact, rtol=0, atol={torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 0.05}[dtype])


def test_shaw_is_equation_4():
    """e_ij = x_i W_q (x_j W_k + a_ij)ᵀ / sqrt(d), distances clipped."""
    torch.manual_seed(0)
    d_head, clip, where = 4, 2, Places(4, 3)
    shaw = Shaw(d_head, clip).double()
    q, k = torch.randn(1, 2, 4, d_head, dtype=torch.float64), torch.randn(1, 2, 7, d_head, dtype=torch.float64)
    bias = shaw(q, where, Places(7))
    for b in range(1):
        for h in range(2):
            for i in range(4):
                for j in range(7):
                    a = shaw.weight[min(max(j - (i + 3), -clip), clip) + clip]
                    score = sum(q[b, h, i, c] * (k[b, h, j, c] + a[c]) for c in range(d_head)) / math.sqrt(d_head)
                    assert_close((q[b, h, i] * k[b, h, j]).sum() / 2 + bias[b, h, i, j], score, rtol=1e-12, atol=1e-12)
    assert shaw.weight.shape == (2 * clip + 1, d_head)


@pytest.mark.parametrize("kernel", [reference, sdpa])
@pytest.mark.parametrize("make", [lambda: Shaw(4, 2), lambda: RelativeBias(2, 8, 16), lambda: ALiBi(2)], ids=["shaw", "t5", "alibi"])
def test_a_bias_reaches_the_scores_and_its_layer_only(kernel, make):
    """Two layers with tables of their own in one forward: what is kept for the forward must not mix them up."""
    torch.manual_seed(0)
    layers = [Attention(8, 2, mask=causal, score_bias=make()).double() for _ in range(2)]
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    for layer in layers:
        if isinstance(layer.score_bias, torch.nn.Module):
            torch.nn.init.normal_(layer.score_bias.weight)
    together = Call(Stream(x), kernel)
    for layer in layers:
        q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
        scores = q @ k.transpose(-1, -2) / 2 + layer.score_bias(q, Places(5), Places(5))
        scores = scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), float("-inf"))
        expected = layer.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        assert_close(layer(x, together, ()), expected, rtol=1e-10, atol=1e-10)
