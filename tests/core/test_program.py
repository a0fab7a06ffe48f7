"""A tower's native program computes what its modules do, knows when it may not be used, and gives a row the same bits in any batch."""

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from plait.compress import quantise
from plait.core import feedforward, native
from plait.core import program as programs
from plait.core.attention import Attention, CrossAttention
from plait.core.biases import ALiBi, RelativeBias, Shaw
from plait.core.blocks import PerLayer, body, each
from plait.core.cache import Cache
from plait.core.embeddings import Embed, Tokens
from plait.core.feedforward import FFN
from plait.core.heads import Tied
from plait.core.linear import Fixed, Linear
from plait.core.masks import Window, causal
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm, RMSNorm
from plait.core.residual import Parallel, Post, Pre, Sandwich
from plait.core.rotary import Rotary
from plait.core.stream import Lent, Stream
from plait.errors import InputError
from plait.generate.layout import exactly

pytestmark = pytest.mark.skipif(native.library("step") is None, reason="nothing native can be built here")
VOCAB, D = 23, 48


@torch.inference_mode(False)
def model(rule=Pre, norm=LayerNorm, ffn=None, cross: bool = False, **slots) -> Model:
    """Small, with weights drawn so that nothing is zero; a causal decoder, with `cross` over an encoder."""
    torch.manual_seed(0)
    tokens, ffn = Tokens(VOCAB, D), ffn or each(FFN, D, 40)
    slots = {"mask": causal, **slots}
    steps = {"self_attn": each(Attention, D, 4, **slots)}
    if cross:
        steps["cross_attn"] = each(CrossAttention, D, 4, n_kv_heads=2)
    decoder = Tower(Embed(tokens=tokens), body(2, partial(norm, D), lambda i: rule(), **steps, ffn=ffn), norm(D))
    towers = {"decoder": decoder}
    if cross:
        own = body(1, partial(norm, D), lambda i: rule(), self_attn=each(Attention, D, 4), ffn=each(FFN, D, 40))
        towers = {"encoder": Tower(Embed(tokens=tokens), own, norm(D)), **towers}
    net = Model({"lm": Tied(tokens)}, **towers).eval()
    for p in net.parameters():
        nn.init.normal_(p, mean=float(p.dim() == 1), std=0.3)
    return net


@pytest.fixture(autouse=True)
def many_rows(monkeypatch):
    """Programs for any number of rows, so that small tests reach them."""
    monkeypatch.setattr(programs, "FEW", 128)


SHAPES = {
    "pre": {},
    "post": dict(rule=Post),
    "sandwich, rms": dict(rule=Sandwich, norm=RMSNorm),
    "parallel": dict(rule=Parallel),
    "rms with offset": dict(norm=partial(RMSNorm, offset=1.0)),
    "norm without gain": dict(norm=partial(LayerNorm, gain=False)),
    "rotary": dict(rotary=Rotary()),
    "rotary, part, interleaved": dict(rotary=Rotary(6, interleaved=True)),
    "rotary, scaled": dict(rotary=Rotary(magnitude=1.3)),
    "grouped, no bias": dict(n_kv_heads=2, bias=""),
    "narrow heads": dict(d_head=5, bias="o"),
    "wide heads": dict(d_head=104),
    "normed heads": dict(q_norm=PerLayer(lambda i: RMSNorm(12)), k_norm=PerLayer(lambda i: LayerNorm(12))),
    "window": dict(mask=causal & Window(2)),
    "alibi": dict(score_bias=ALiBi(4)),
    "scale": dict(scale=1.0),
    **{name: dict(ffn=each(FFN, D, 37, f)) for name, f in feedforward.ACTIVATIONS.items()},
    **{f"gated {name}": dict(ffn=each(FFN, D, 37, f, gated=True, bias=False)) for name, f in feedforward.ACTIVATIONS.items()},
}


def chunks(net: Model, ids: torch.Tensor, sizes: list[int], real=None, memories=None) -> tuple[torch.Tensor, Cache]:
    cache, out = Cache(ids.shape[1] + 2), []
    for begin, end in pairwise([0, *torch.tensor(sizes).cumsum(0).tolist()]):
        part = None if real is None else real[:, begin:end]
        out.append(net.run("decoder", cache.stream(ids[:, begin:end], part), memories, cache).x)
    return torch.cat(out, 1), cache


def used(cache: Cache) -> bool:
    return cache.programs.get("decoder") is not None


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_a_program_is_its_modules(shape):
    net = model(**shape)
    ids = torch.randint(VOCAB, (3, 9))
    real = torch.ones(3, 9, dtype=torch.bool)
    real[1, :4] = real[2, :1] = False
    for padding in (None, real):
        wide = copy.deepcopy(net).double()
        wanted = wide(decoder=Stream(ids, real=padding))["decoder"].x
        got, cache = chunks(net, ids, [4, 1, 3, 1], padding)
        assert used(cache)
        kept = torch.ones(3, 9, dtype=torch.bool) if padding is None else padding
        assert_close(got.double()[kept], wanted[kept], rtol=2e-5, atol=2e-5)


@torch.inference_mode()
def test_of_an_encoder_and_a_decoder_whose_beams_share_a_source():
    net = model(cross=True)
    source, ids = torch.randint(VOCAB, (2, 5)), torch.randint(VOCAB, (6, 4))
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    wide = copy.deepcopy(net).double()
    memory = wide.run("encoder", Stream(source, real=real))
    wanted = wide.run("decoder", ids, {"encoder": memory}).x
    got, cache = chunks(net, ids, [1, 1, 2], memories={"encoder": net.run("encoder", Stream(source, real=real))})
    assert used(cache)
    assert_close(got.double(), wanted, rtol=2e-5, atol=2e-5)


@torch.inference_mode()
def test_a_score_bias_of_a_side():
    table = RelativeBias(4, causal=True)
    net = model(score_bias=Lent(table))
    nn.init.normal_(table.weight)
    ids = torch.randint(VOCAB, (2, 7))
    wanted = copy.deepcopy(net).double()(decoder=ids)["decoder"].x
    got, cache = chunks(net, ids, [3, 1, 1, 2])
    assert used(cache)
    assert_close(got.double(), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("activations", ["int8", "float32"])
@torch.inference_mode()
def test_of_small_weights(bits, activations):
    net = quantise(model(rotary=Rotary(), ffn=each(FFN, D, 40, feedforward.silu, gated=True)), bits, activations=activations)
    ids = torch.randint(VOCAB, (2, 6))
    wanted = net(decoder=ids)["decoder"].x
    got, cache = chunks(net, ids, [1, 2, 1, 2])
    assert used(cache)
    # Where x is rounded, a last bit may take a value to the next of 127 steps.
    close = dict(rtol=0.0, atol=0.1) if activations == "int8" else dict(rtol=2e-5, atol=2e-5)
    assert_close(got, wanted, **close)


def steps(net: Model, rows: int = 2) -> Cache:
    cache = Cache(4)
    for _ in range(2):
        net.run("decoder", torch.ones(rows, 1, dtype=torch.long), cache=cache)
    return cache


@torch.inference_mode()
def test_what_a_program_does_not_know_stays_with_its_modules():
    assert used(steps(model()))
    net = model()
    net.decoder.blocks[1].ffn.register_forward_hook(lambda *given: None)
    assert not used(steps(net))
    assert not used(steps(model(score_bias=PerLayer(lambda i: Shaw(12)))))

    class Other(FFN):
        pass

    assert not used(steps(model(ffn=each(Other, D, 40))))
    assert not used(steps(model(ffn=each(FFN, D, 40, torch.tanh))))
    assert not used(steps(model().train()))
    assert not used(steps(model().double()))
    net = model()
    net.decoder.blocks[0].ffn.up_proj.weight.data = net.decoder.blocks[0].ffn.up_proj.weight.data.t().contiguous().t()
    assert not used(steps(net))


def test_gradients_need_the_modules():
    assert not used(steps(model()))
    with torch.no_grad():
        assert used(steps(model()))


@torch.inference_mode()
def test_a_new_generation_sees_changed_modules():
    net = model()
    steps(net)
    net.decoder.blocks[0].ffn.up_proj = Linear(D, 40)
    ids = torch.randint(VOCAB, (2, 4))
    got, cache = chunks(net, ids, [1, 1, 1, 1])
    assert used(cache)
    assert_close(got, net(decoder=ids)["decoder"].x, rtol=2e-5, atol=2e-5)


@torch.inference_mode()
def test_not_a_number_is_passed_on():
    net = model()
    net.decoder.blocks[0].ffn.up_proj.weight[3, 2] = float("nan")
    got, cache = chunks(net, torch.zeros(1, 2, dtype=torch.long), [1, 1])
    assert used(cache) and got.isnan().any()


# ---- the same bits ----


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_exact_rows_do_not_depend_on_what_is_beside_them(shape):
    net = exactly(model(**shape))
    ids = torch.randint(VOCAB, (5, 9))
    whole = net(decoder=ids)["decoder"].x
    cached, _ = chunks(net, ids, [9])
    parts, _ = chunks(net, ids, [4, 1, 3, 1])
    alone = torch.cat([chunks(net, ids[i : i + 1], [1] * 9)[0] for i in range(5)])
    assert torch.equal(whole, cached) and torch.equal(whole, parts) and torch.equal(whole, alone)
    scores = net.heads["lm"](whole)
    assert torch.equal(scores[2, 4], net.heads["lm"](whole[2, 4]))

    padded = torch.cat([torch.zeros(5, 3, dtype=ids.dtype), ids], 1)
    real = torch.ones(5, 12, dtype=torch.bool)
    real[:, :3] = False
    left, _ = chunks(net, padded, [5, 1, 6], real)
    assert torch.equal(left[:, 3:], whole)


@torch.inference_mode()
def test_exact_over_padded_sources():
    net = exactly(model(cross=True))
    source, ids = torch.randint(VOCAB, (1, 4)), torch.randint(VOCAB, (1, 5))
    alone, _ = chunks(net, ids, [1] * 5, memories={"encoder": net.run("encoder", source)})
    batch = torch.randint(VOCAB, (3, 7))
    batch[1, :4] = source
    real = torch.ones(3, 7, dtype=torch.bool)
    real[1, 4:] = False
    together, _ = chunks(net, ids.expand(3, -1), [5], memories={"encoder": net.run("encoder", Stream(batch, real=real))})
    assert torch.equal(together[1], alone[0])


def test_exact_says_what_it_cannot():
    with pytest.raises(InputError, match="exactly") as caught:
        exactly(model().double())
    assert any("float64" in fault for fault in caught.value.faults)
    net = exactly(model(score_bias=PerLayer(lambda i: Shaw(12))))
    with pytest.raises(InputError, match="Shaw"), torch.inference_mode():
        net(decoder=torch.ones(1, 2, dtype=torch.long))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 17])
@torch.no_grad()
def test_the_product_of_one_order(rows):
    torch.manual_seed(0)
    layer = Linear(77, 29)
    nn.init.normal_(layer.bias)
    x = torch.randn(rows, 77)
    wanted = x.double() @ layer.weight.double().t() + layer.bias.double()
    layer.packed = Fixed(layer.weight)
    assert_close(layer(x).double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer(x)[-1], layer(x[-1:])[0])
