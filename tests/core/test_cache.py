"""The cache: uneven chunks, padding, its end, beams."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from plait.core.attention import Attention, CrossAttention
from plait.core.biases import ALiBi, RelativeBias, Shaw
from plait.core.blocks import body, each
from plait.core.cache import Cache
from plait.core.feedforward import FFN
from plait.core.joining import joined
from plait.core.kernels import reference, sdpa
from plait.core.masks import Window, causal
from plait.core.memory import Memory
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.positions import Learned, Sinusoid
from plait.core.residual import Pre
from plait.core.rotary import Rotary
from plait.core.stream import Stream

D = 8
SLOTS = {
    "plain": dict,
    "grouped": lambda: dict(n_kv_heads=1),
    "rotary": lambda: dict(rotary=Rotary()),
    "t5": lambda: dict(score_bias=RelativeBias(2, 8, 12, causal=True)),
    "alibi": lambda: dict(score_bias=ALiBi(2)),
    "shaw": lambda: dict(score_bias=Shaw(4, 3)),
    "window": lambda: dict(mask=causal & Window(3)),
    "memory": lambda: dict(memory=Memory(2, 2, 4)),
}


def decoder(slots, embed=None, cross=False):
    torch.manual_seed(0)
    steps = dict(self_attn=lambda i: Attention(D, 2, **{"mask": causal, **SLOTS[slots]()}))
    if cross:
        steps["cross_attn"] = each(CrossAttention, D, 2)
    blocks = body(2, lambda: LayerNorm(D), lambda i: Pre(), **steps, ffn=each(FFN, D, 16))
    net = Model(decoder=Tower(embed or nn.Identity(), blocks, LayerNorm(D))).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.6)
    return net.requires_grad_(False)  # generation never learns: the cache writes in place


def chunked(net, x, chunks, real=None, memories=None):
    cache, parts, at = Cache(x.shape[1]), [], 0
    for n in chunks:
        part = slice(at, at + n)
        parts.append(net.run("decoder", cache.stream(x[:, part], None if real is None else real[:, part]), memories, cache).x)
        at += n
    return torch.cat(parts, 1), cache


@pytest.mark.parametrize("kernel", [reference, sdpa], ids=["reference", "sdpa"])
@pytest.mark.parametrize("chunks", [(9,), (1,) * 9, (4, 1, 3, 1)])
@pytest.mark.parametrize("slots", SLOTS)
def test_cached_is_uncached(slots, chunks, kernel):
    net = decoder(slots)
    net.kernel = kernel
    x = torch.randn(2, 9, D, dtype=torch.float64)
    parts, cache = chunked(net, x, chunks)
    assert_close(parts, net(x)["decoder"].x, rtol=1e-10, atol=1e-12)
    assert cache.length == 9


@pytest.mark.parametrize("embed", [Sinusoid, lambda: Learned(20, D)], ids=["sinusoid", "learned"])
@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("chunks", [(4, 1, 3, 1), (2, 7)])
def test_left_padding_with_a_cache_is_alone(slots, embed, chunks):
    """Row 0 has three entries less; the second chunks' first one may still be padding."""
    net = decoder(slots, embed())
    x = torch.randn(2, 9, D, dtype=torch.float64)
    real = torch.ones(2, 9, dtype=torch.bool)
    real[0, :3] = False
    parts, _ = chunked(net, x, chunks, real)
    assert_close(parts[:1, 3:], net(x[:1, 3:])["decoder"].x, rtol=1e-10, atol=1e-12)
    assert_close(parts[1:], net(x[1:])["decoder"].x, rtol=1e-10, atol=1e-12)


def test_padding_seen_once_is_remembered():
    net, x = decoder("rotary", Sinusoid()), torch.randn(2, 6, D, dtype=torch.float64)
    real = torch.tensor([[False, False, True], [True, True, True]])
    cache = Cache(6)
    net.run("decoder", cache.stream(x[:, :3], real), cache=cache)
    late = [net.run("decoder", cache.stream(x[:, i : i + 1]), cache=cache).x for i in range(3, 6)]  # nothing said: real
    assert_close(torch.cat(late, 1)[:1], net(x[:1, 2:])["decoder"].x[:, 1:], rtol=1e-10, atol=1e-12)


def test_padding_that_comes_later():
    cache = Cache(6)
    s = cache.stream(torch.zeros(2, 2, D))
    assert (s.real, s.start) == (None, 0)
    cache.advance(2)
    s = cache.stream(torch.zeros(2, 2, D), torch.tensor([[True, False], [True, True]]))
    assert s.positions.tolist() == [[2, 2], [2, 3]]
    cache.advance(2)
    s = cache.stream(torch.zeros(2, 2, D))
    assert s.positions.tolist() == [[3, 4], [4, 5]]
    assert cache.real.tolist() == [[True] * 3 + [False] + [True] * 2, [True] * 6]


def test_a_full_cache_says_so():
    net, cache = decoder("plain"), Cache(5)
    net.run("decoder", torch.randn(1, 4, D, dtype=torch.float64), cache=cache)
    with pytest.raises(ValueError, match="the cache holds 5 entries, 4 are taken and 2 more were given"):
        net.run("decoder", torch.randn(1, 2, D, dtype=torch.float64), cache=cache)
    net.run("decoder", torch.randn(1, 1, D, dtype=torch.float64), cache=cache)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("slots", ["plain", "rotary", "t5", "memory"])
def test_reorder_goes_on_from_the_chosen_rows(slots, padded):
    net, x = decoder(slots, Sinusoid(), cross=True), torch.randn(4, 7, D, dtype=torch.float64)
    real = torch.ones(4, 7, dtype=torch.bool)
    if padded:
        real[1, :2] = False
    memory = Stream(torch.randn(2, 3, D, dtype=torch.float64))  # two sources, two beams each
    cache, rows = Cache(7), torch.tensor([1, 1, 3, 2])  # within their sources
    net.run("decoder", cache.stream(x[:, :4], real[:, :4] if padded else None), {"encoder": memory}, cache)
    cache.reorder(rows)
    out = net.run("decoder", x[:, 4:], {"encoder": memory}, cache).x
    joined = torch.cat([x[rows, :4], x[:, 4:]], 1)
    start = {"real": torch.cat([real[rows, :4], real[:, 4:]], 1)} if padded else {}
    whole = net.run("decoder", Stream(joined, **start), {"encoder": memory}).x
    assert_close(out, whole[:, 4:], rtol=1e-10, atol=1e-12)


def test_the_number_of_rows_may_change():
    """One row is fed, then four beams go on from it; and finished rows may leave."""
    net, x = decoder("rotary", Sinusoid()), torch.randn(1, 6, D, dtype=torch.float64)
    cache = Cache(6)
    net.run("decoder", x[:, :3], cache=cache)
    cache.reorder(torch.zeros(4, dtype=torch.long))
    out = net.run("decoder", x[:, 3:5].expand(4, -1, -1), cache=cache).x
    whole = net(x)["decoder"].x
    assert_close(out, whole[:, 3:5].expand(4, -1, -1), rtol=1e-10, atol=1e-12)
    cache.reorder(torch.tensor([2]))
    assert_close(net.run("decoder", x[:, 5:], cache=cache).x, whole[:, 5:], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("slots", SLOTS)
def test_rows_that_join_are_alone(slots, monkeypatch):
    """Rows of other lengths, two of them left padded, come together; one leaves, and what was padding in the rest is dropped."""
    net = decoder(slots, Sinusoid())
    x, real = torch.randn(4, 12, D, dtype=torch.float64), torch.ones(2, 5, dtype=torch.bool)
    real[0, :2], real[1, :1] = False, False
    begins, caches = [0, 4, 7, 6], [Cache(7), Cache(3), Cache(5)]  # row i is x[i, begin:]; the cached ones end at 7, 7, 10 and 11
    net.run("decoder", x[:1, :7], cache=caches[0])
    net.run("decoder", x[1:2, 4:7], cache=caches[1])
    net.run("decoder", caches[2].stream(torch.stack([x[2, 5:10], x[3, 5:10]]), real), cache=caches[2])
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape: self.new_full(shape, float("nan")))  # what memory may hold
    cache = joined(caches, 9)
    ends, rows = [7, 7, 10, 10], [0, 1, 2, 3]

    def further(rows):
        out = net.run("decoder", torch.stack([x[row, ends[row]] for row in rows])[:, None], cache=cache).x
        for i, row in enumerate(rows):
            ends[row] += 1
            assert_close(out[i, -1], net(x[row : row + 1, begins[row] : ends[row]])["decoder"].x[0, -1], rtol=1e-10, atol=1e-12)

    further(rows)
    assert cache.length == 8
    cache.reorder(torch.tensor([1, 2, 3]))
    cache = joined([cache], 6)
    assert cache.length == 5 and cache.padding() == 0
    further([1, 2, 3])


def test_keep_sources_drops_what_is_finished():
    net = decoder("plain", cross=True)
    x, memory = torch.randn(6, 4, D, dtype=torch.float64), torch.randn(3, 5, D, dtype=torch.float64)  # three sources, two beams each
    real = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] * 4 + [False]])
    cache = Cache(4)
    net.run("decoder", x[:, :2], {"encoder": Stream(memory, real=real)}, cache)
    sources, rows = torch.tensor([0, 2]), torch.tensor([0, 1, 4, 5])
    cache.reorder(rows)
    cache.keep_sources(sources)
    out = net.run("decoder", x[rows, 2:], {"encoder": Stream(memory[sources], real=real[sources])}, cache).x
    whole = net.run("decoder", x, {"encoder": Stream(memory, real=real)}).x
    assert_close(out, whole[rows, 2:], rtol=1e-10, atol=1e-12)


def test_an_embedding_that_adds_entries_moves_the_cache_on():
    class Doubled(nn.Module):
        def forward(self, s):
            return s.having(x=s.x.repeat_interleave(2, 1))

    net, x = decoder("plain", Doubled()), torch.randn(1, 2, D, dtype=torch.float64)
    cache = Cache(8)
    out = net.run("decoder", x, cache=cache).x
    assert cache.length == 4
    assert_close(out, net(x)["decoder"].x)
