"""Windows, trunks and 8 bits: whatever happens to the rows, their numbers are those of a forward without a cache."""

import random
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from plait.core import cache as module
from plait.core.attention import Attention
from plait.core.biases import ALiBi, RelativeBias, Shaw
from plait.core.blocks import body, each
from plait.core.cache import Cache, Int8Cache, rounded
from plait.core.feedforward import FFN
from plait.core.joining import joined
from plait.core.masks import Prefix, Window, causal
from plait.core.memory import Memory
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.positions import Sinusoid
from plait.core.residual import Pre
from plait.core.rotary import Rotary
from plait.core.trunks import nbytes_of

D = 8
BACK = 6  # in these tests
WINDOW = causal & Window(4)
SLOTS = {  # two layers: of the windowed ones the second sees everything
    "grouped rotary": (lambda: dict(n_kv_heads=1, rotary=Rotary()), causal),
    "t5": (lambda: dict(score_bias=RelativeBias(2, 8, 12, causal=True)), causal),
    "window": (dict, WINDOW),
    "window alibi": (lambda: dict(score_bias=ALiBi(2)), WINDOW),
    "window shaw": (lambda: dict(score_bias=Shaw(4, 3)), WINDOW),
    "memory": (lambda: dict(memory=Memory(2, 2, 4)), causal),
}


class Rounded(Attention):
    """Without a cache, keys and values rounded as the cache of 8 bits rounds them."""

    def queries_keys_values(self, x, call, path):
        q, k, v, places = super().queries_keys_values(x, call, path)
        if call.cache is None:
            k, v = (codes * scale for codes, scale in (rounded(k), rounded(v)))
        return q, k, v, places


def decoder(slots, kind=Attention):
    torch.manual_seed(0)
    more, mask = SLOTS[slots]
    attention = lambda i: kind(D, 2, **{"mask": (mask, causal)[i], **more()})  # noqa: E731
    blocks = body(2, lambda: LayerNorm(D), lambda i: Pre(), self_attn=attention, ffn=each(FFN, D, 16))
    net = Model(decoder=Tower(Sinusoid(), blocks, LayerNorm(D))).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.6)
    return net.requires_grad_(False)


class Batch:
    """A cache, and beside it the whole content of each of its rows."""

    def __init__(self, net, kind):
        self.net, self.kind, self.cache, self.rows = net, kind, kind(400), [torch.empty(0, D, dtype=torch.float64)]

    def feed(self, new):
        x = torch.randn(len(self.rows), new, D, dtype=torch.float64)
        out = self.net.run("decoder", x, cache=self.cache).x
        self.rows = [torch.cat([row, more]) for row, more in zip(self.rows, x, strict=True)]
        for row, found in zip(self.rows, out, strict=True):
            assert_close(found, self.net(row[None])["decoder"].x[0, -new:], rtol=1e-9, atol=1e-11)

    def back(self, entries):
        shortest = min(map(len, self.rows))
        if entries < shortest and self.cache.rewindable(self.cache.length - entries):
            self.cache.rewind(self.cache.length - entries)
            self.rows = [row[: len(row) - entries] for row in self.rows]

    def pick(self, rows):
        self.cache.reorder(torch.tensor(rows))
        self.rows = [self.rows[row] for row in rows]

    def share(self):
        if self.cache.real is None:
            self.cache.share()

    def join(self, entries, shared):
        other = Batch(self.net, self.kind)
        other.feed(entries)
        if shared:
            other.share()
        self.cache, self.rows = joined([self.cache, other.cache], 400), self.rows + other.rows


@pytest.mark.parametrize("kind", [Cache, Int8Cache])
@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_to_rows_their_numbers_are_those_without_a_cache(slots, kind, seed, monkeypatch):
    monkeypatch.setattr(module, "BACK", BACK)
    monkeypatch.setattr(module, "WORTH", 12)
    fresh = torch.Tensor.new_empty

    def garbage(self, *shape):  # what memory may hold
        return fresh(self, *shape).fill_(float("nan") if self.is_floating_point() else 77)

    monkeypatch.setattr(torch.Tensor, "new_empty", garbage)
    dice, batch = random.Random(f"{slots} {seed}"), Batch(decoder(slots, Rounded if kind is Int8Cache else Attention), kind)
    batch.feed(dice.choice([1, 3, 30]))
    batch.share() if seed else None
    for _ in range(16):
        deed = dice.choice(["feed", "feed", "feed", "back", "pick", "share", "join"])
        if deed == "feed":
            batch.feed(dice.choice([1, 1, 2, 5, 17]))
        elif deed == "back":
            batch.back(dice.randint(1, BACK))
        elif deed == "pick":
            batch.pick([dice.randrange(len(batch.rows)) for _ in range(dice.randint(1, 3))])
        elif deed == "share":
            batch.share()
        elif len(batch.rows) < 4:
            batch.join(dice.choice([1, 4, 23]), dice.random() < 0.5)
    batch.feed(1)


def test_a_windows_memory_does_not_grow(monkeypatch):
    """The windowed layer's buffer has an end, the other's is as long as the text may be."""
    monkeypatch.setattr(module, "BACK", BACK)
    net = decoder("window")
    cache = Cache(60)
    for _ in range(60):
        net.run("decoder", torch.randn(2, 1, D, dtype=torch.float64), cache=cache)
    sizes = [sum(part.nbytes for part in cache.buffers["decoder", layer, "self_attn"]) for layer in range(2)]
    entry = 2 * 2 * D * 8  # two rows, keys and values, D numbers of 8 bytes
    assert sizes == [entry * (4 + 1 + 2 * BACK), entry * 60]
    assert not cache.plain and Cache(3).plain


def test_a_window_is_taken_back_as_far_as_it_has_slots(monkeypatch):
    monkeypatch.setattr(module, "BACK", BACK)
    batch = Batch(decoder("window"), Cache)
    for new in (40, 1, 1):
        batch.feed(new)
    can = [batch.cache.rewindable(42 - n) for n in range(43)]
    assert all(can[: BACK + 1]) and can[42] and not any(can[14:42])
    assert all(a or not b for a, b in pairwise(can[:42]))  # as far as some slot, and no further
    with pytest.raises(ValueError, match="is at 42 entries and cannot go back to 20: begin the text anew"):
        batch.cache.rewind(20)
    batch.back(BACK)
    batch.feed(3)


@pytest.mark.parametrize("bias", [None, ALiBi(2)], ids=["", "alibi"])
@pytest.mark.parametrize("shared", [False, True])
def test_learned_keys_keep_their_slots_where_the_cache_begins_later(bias, shared, monkeypatch):
    monkeypatch.setattr(module, "BACK", BACK)
    monkeypatch.setitem(SLOTS, "window memory", (lambda: dict(memory=Memory(2, 2, 4), score_bias=bias), WINDOW))
    batch = Batch(decoder("window memory"), Cache)
    for new in (3, 1, 20, 1, 1):
        batch.feed(new)
        if shared:
            batch.share()


def test_masks_say_how_far_back_they_see():
    assert (causal.reach, WINDOW.reach, (causal | Prefix(3)).reach) == (None, 4, None)
    assert ((Window(2) | Window(5)).reach, (Window(2) | causal).reach, (WINDOW & Window(2, 1)).reach) == (None, None, 2)


def test_a_trunk_is_kept_once_and_goes_with_its_last_row():
    net = decoder("grouped rotary")
    cache = Cache(1200)
    net.run("decoder", torch.randn(2, 1100, D, dtype=torch.float64), cache=cache)
    cache.reorder(torch.tensor([0, 0, 0, 1, 1, 1]))  # long enough to be shared without a word
    net.run("decoder", torch.randn(6, 1, D, dtype=torch.float64), cache=cache)
    trunks = {trunk for chain in cache.chains for trunk in chain}
    entry = 2 * 2 * 4 * 8  # two layers, keys and values, one head of 4 numbers of 8 bytes
    assert nbytes_of(cache.chains) == 2 * 1100 * entry and len(trunks) == 2
    assert sum(part.nbytes for parts in cache.buffers.values() for part in parts) == 6 * 100 * entry
    cache.reorder(torch.tensor([4, 3]))
    assert nbytes_of(cache.chains) == 1100 * entry
    with pytest.raises(ValueError, match="cannot go back to 400"):
        cache.rewind(400)


def test_eight_bits_are_a_quarter_and_round_to_half_a_scale():
    x = torch.randn(2, 3, 50, 64) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    x[0, 0, 0] = 0
    codes, scale = rounded(x)
    assert ((codes * scale - x).abs() <= scale / 2 * (1 + 1e-5)).all() and (codes.abs().amax(-1) == 127).sum() == 299
    assert (codes.nbytes + scale.nbytes) / x.nbytes == (64 + 4) / 256
