"""cached = uncached; alone = in a padded batch; left padded = right padded; every kernel = the reference; the future is not seen."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from plait.core.cache import Cache
from plait.core.kernels import reference, sdpa
from plait.core.stream import Stream
from plait.inspect.record import record

VOCAB = 29
EXACT = dict(rtol=1e-9, atol=1e-10)  # float64: rounding only
LENGTHS = st.lists(st.integers(1, 7), min_size=2, max_size=3)
few = settings(max_examples=6, deadline=None, derandomize=True)


def ids(rows, length, seed=0):
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def batch(lengths, left, seed):
    """Rows of the given lengths, padded with a token that is a word elsewhere: only `real` tells it apart."""
    width = max(lengths)
    x, real = ids(len(lengths), width, seed), torch.zeros(len(lengths), width, dtype=torch.bool)
    where = [slice(width - n, None) if left else slice(n) for n in lengths]
    rows = ids(len(lengths), width, seed + 1)
    for i, (w, n) in enumerate(zip(where, lengths, strict=True)):
        real[i, w] = True
        x[i, w] = rows[i, :n]
    return Stream(x, real=real), where, [rows[i : i + 1, :n] for i, n in enumerate(lengths)]


@pytest.mark.capability("batch")
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@few
@given(sources=LENGTHS, data=st.data())
def test_alone_is_in_a_padded_batch(net, ends, left, sources, data):
    if ends.seen:  # pictures of a batch have one size: what convolutions and positions see hangs on it
        return
    targets = data.draw(st.lists(st.integers(1, 7), min_size=len(sources), max_size=len(sources)))
    with torch.no_grad():
        source, places, source_rows = batch(sources, left, 10)
        target, target_places, target_rows = batch(targets, left, 20)
        together = net(**ends.feed(source, target))
        for i, (s, t) in enumerate(zip(source_rows, target_rows, strict=True)):
            alone = net(**ends.feed(s, t))
            for name in alone:
                where = target_places[i] if name == ends.last else places[i]
                assert_close(together[name].x[i : i + 1, where], alone[name].x, **EXACT)


@pytest.mark.capability("generate")
@few
@given(chunks=st.lists(st.integers(1, 4), min_size=1, max_size=5), padding=st.integers(0, 3))
def test_cached_is_uncached(net, ends, chunks, padding):
    """Uneven chunks of new tokens, the second row padded on the left, against one forward of each row alone."""
    ends.need(causal=True)
    length = sum(chunks)
    padding = min(padding, length - 1)
    x, source = ids(2, length, 3), ids(2, 5, 4)
    real = torch.ones(2, length, dtype=torch.bool)
    real[1, :padding] = False
    with torch.no_grad():
        memories = ends.memories(net, source)
        cache, parts, at = Cache(length), [], 0
        for n in chunks:
            new = slice(at, at + n)
            parts.append(net.run("decoder", cache.stream(x[:, new], real[:, new] if padding else None), memories, cache).x)
            at += n
        cached = torch.cat(parts, 1)
        for i, skip in enumerate((0, padding)):
            alone = ends.out(net, source[i : i + 1], x[i : i + 1, skip:])
            assert_close(cached[i : i + 1, skip:], alone, **EXACT)


def test_beams_share_their_source(net, ends):
    ends.need(two=True, causal=True)
    source, x = ids(2, 5, 1), ids(6, 4, 2)
    with torch.no_grad():
        memory = net.run("encoder", source)
        few_memories = net.run("decoder", x, {"encoder": memory}).x
        repeated = net(encoder=source.repeat_interleave(3, 0), decoder=x)["decoder"].x
    assert_close(few_memories, repeated, **EXACT)


@pytest.mark.capability("train")
def test_learning_and_not_learning_compute_the_same(net, ends):
    """Some parts go another way when gradients are wanted."""
    wanted = ends.out(net, ends.source(2, 5), ends.target(2, 4))
    with torch.no_grad():
        assert_close(ends.out(net, ends.source(2, 5), ends.target(2, 4)), wanted.detach(), **EXACT)


@pytest.mark.capability("batch")
def test_alone_is_in_a_batch_of_one_size(net, ends):
    source, x = ends.source(3, 5, 4), ends.target(3, 6, 5)
    with torch.no_grad():
        together = ends.out(net, source, x)
        for i in range(3):
            assert_close(ends.out(net, source[i : i + 1], x[i : i + 1]), together[i : i + 1], **EXACT)


@pytest.mark.capability("kernels")
def test_every_kernel_is_the_reference(net, ends):
    outs = []
    for kernel in (reference, sdpa):
        twin = copy.deepcopy(net)
        twin.kernel = kernel
        if ends.seen:
            out = ends.out(twin, ends.source(2, 1), ends.target(2, 6))
            real = torch.ones(out.shape[:2], dtype=torch.bool)
        else:
            source, _, _ = batch([5, 3], False, 10)
            target, _, _ = batch([4, 6], True, 20)
            out, real = ends.out(twin, source, target), target.real
        (out * real[..., None]).square().mean().backward()
        outs.append([out.detach()[real], *(p.grad for p in twin.parameters())])
    for a, b in zip(*outs, strict=True):
        if a is None:  # of a head that was not asked
            assert b is None
            continue
        assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.capability("batch")
def test_the_future_and_the_padding_change_nothing_bit_for_bit(net, ends):
    if ends.seen:  # pictures of a batch have one size: what convolutions and positions see hangs on it
        return
    source, x = ids(2, 5, 1), ids(2, 6, 2)
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    other_source = torch.where(real, source, (source + 7) % VOCAB)
    later = x.clone()
    later[:, 4:] = (later[:, 4:] + 5) % VOCAB
    with torch.no_grad():
        a = ends.out(net, Stream(source, real=real), x)
        b = ends.out(net, Stream(other_source, real=real), later)
        c = ends.out(net, Stream((source + 7) % VOCAB, real=real), x)
    assert ((a[:, 4:] - b[:, 4:]).abs().amax(-1) > 1e-6).all()  # the present is seen
    assert torch.equal(a[:, :4], b[:, :4]) == ends.causal
    if ends.two:
        assert ((a - c).abs().amax(-1) > 1e-6).all()  # and so is the source, by every row
    else:
        padded = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
        with torch.no_grad():
            a, b = (ends.out(net, None, Stream(ids, real=padded))[1, :4] for ids in (x, later))
        assert torch.equal(a, b)


def test_order_matters(net, ends):
    """A tower that lost its positions would read a bag of words, or of patches."""
    if ends.seen:
        picture = ends.source(1, 1, 4)
        with torch.no_grad():
            plain, turned = (net.run("encoder", x).x for x in (picture, picture.roll(picture.shape[-1] // 2, -1)))
        nearest = (plain[0][:, None] - turned[0][None]).abs().amax(-1).amin(1)  # of each entry, in the other picture
        assert nearest.max() > 1e-6
        return
    turned = torch.tensor([3, 0, 4, 2, 1])
    source, x = torch.tensor([[1, 2, 3, 4, 5]]), ids(1, 4, 2)
    with torch.no_grad():
        if not ends.causal or ends.two:
            encoded, reordered = net.run("encoder", source).x, net.run("encoder", source[:, turned]).x
            assert (encoded[:, turned] - reordered).abs().amax() > 1e-6
        last = [ends.out(net, source, x[:, order])[:, -1] for order in ([0, 1, 2, 3], [1, 0, 2, 3])]
    assert (last[0] - last[1]).abs().amax() > 1e-6


@pytest.mark.capability("record")
def test_recorded_attention_rows_sum_to_one(net, ends):
    source, _, _ = batch([5, 3], False, 10)
    fed = ends.feed(source, source if not ends.causal else ids(2, 4))
    if ends.seen:
        fed = ends.feed(ends.source(2, 1), ends.target(2, 6))
    with torch.no_grad():
        plain = net(**fed)[ends.last].x
        with record(net) as seen:
            assert torch.equal(net(**fed)[ends.last].x, plain)
    assert {name.partition(".")[0] for name in seen} == set(net.towers)
    for name, weights in seen.items():
        tower, _, _, step, _ = name.split(".")
        assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
        if ends.causal and tower == "decoder" and step == "self_attn":
            assert weights.triu(1).abs().max() == 0
        if not ends.seen and (step == "cross_attn" or tower == "encoder"):
            assert weights[1, :, :, 3:].abs().max() == 0  # padding of the source
