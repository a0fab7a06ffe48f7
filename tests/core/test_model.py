"""Models: towers, what feeds what, errors, counting, resetting."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from plait.core.attention import Attention, CrossAttention
from plait.core.biases import RelativeBias
from plait.core.blocks import body, each
from plait.core.embeddings import Embed, Tokens
from plait.core.heads import Tied
from plait.core.kernels import reference
from plait.core.masks import causal
from plait.core.model import Model, Tower, matching, parameters, reset
from plait.core.norms import LayerNorm
from plait.core.residual import Pre
from plait.core.stream import Lent, Stream, Watcher

D = 8


def stack(**steps):
    return body(2, lambda: LayerNorm(D), lambda i: Pre(), **steps)


def model():
    """Two encoders and a decoder that reads both; the decoder's embedding is the first encoder's; a shared T5 table."""
    torch.manual_seed(0)
    tokens, table = Tokens(11, D), RelativeBias(2, 8, 12)
    attend = each(Attention, D, 2)
    return Model(
        {"lm": Tied(tokens)},
        text=Tower(Embed(tokens=tokens), stack(self_attn=each(Attention, D, 2, score_bias=Lent(table))), LayerNorm(D), table=table),
        picture=Tower(nn.Identity(), stack(self_attn=attend)),
        decoder=Tower(
            Embed(tokens=Lent(tokens)),
            stack(
                self_attn=each(Attention, D, 2, mask=causal),
                text_attn=each(CrossAttention, D, 2, source="text"),
                picture_attn=each(CrossAttention, D, 2, source="picture"),
            ),
        ),
    )


IDS, PICTURE, TARGET = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.randn(2, 5, D), torch.tensor([[7, 8], [9, 10]])


def test_towers_feed_each_other_by_name_and_order():
    net = model()
    named = net(decoder=TARGET, text=IDS, picture=PICTURE)
    assert list(named) == ["text", "picture", "decoder"]
    for name, s in net(IDS, PICTURE, TARGET).items():
        assert torch.equal(s.x, named[name].x)
    for changed in (dict(text=IDS + 1), dict(picture=PICTURE * 2)):
        assert not torch.equal(net(**{"text": IDS, "picture": PICTURE, "decoder": TARGET, **changed})["decoder"].x, named["decoder"].x)
    assert list(net(text=IDS)) == ["text"]
    by_hand = net.run("decoder", TARGET, {"text": named["text"], "picture": named["picture"]})
    assert torch.equal(by_hand.x, named["decoder"].x)
    assert net.heads["lm"](named["decoder"].x).shape == (2, 2, 11)


def test_inputs_that_fit_no_tower():
    net = model()
    with pytest.raises(ValueError, match=r"no tower called \['encoder'\]: this model has \['text', 'picture', 'decoder'\]"):
        net(encoder=IDS)
    with pytest.raises(ValueError, match="4 inputs for 3 towers"):
        net(IDS, PICTURE, TARGET, TARGET)


def test_shared_parts_are_stored_and_counted_once():
    net = model()
    names = list(net.state_dict())
    assert [n for n in names if "tokens" in n] == ["text.embed.tokens.weight"]
    assert [n for n in names if "table" in n or "score_bias" in n] == ["text.table.weight"]
    attention, norm = 4 * (D * D + D), 2 * D
    assert parameters(net) == 11 * D + 8 * 2 + norm + 2 * (attention + norm) * 2 + 2 * 3 * (attention + norm)
    assert parameters(net) == sum(t.numel() for t in net.state_dict().values())


def test_a_deep_copy_is_whole():
    net = model()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert net(text=IDS)["text"].x.abs().max() > 0
    assert twin.heads["lm"].weight is twin.text.embed.tokens.weight
    assert twin.heads["lm"](torch.ones(1, D)).abs().max() == 0


def test_a_watcher_sees_what_leaves_the_blocks_it_asks_for_and_changes_nothing():
    class Some(Watcher):
        def __init__(self):
            self.seen = {}

        def wants(self, path):
            return len(path) == 2 and path != ("decoder", 0)

        def see(self, path, found):
            self.seen[path] = found

    net, watch = model(), Some()
    plain = net(IDS, PICTURE, TARGET)
    streams = net(IDS, PICTURE, TARGET, watch=watch)
    assert all(torch.equal(plain[tower].x, streams[tower].x) for tower in plain)
    assert list(watch.seen) == [("text", 0), ("text", 1), ("picture", 0), ("picture", 1), ("decoder", 1)]
    assert torch.equal(watch.seen["decoder", 1], streams["decoder"].x)  # this tower has no norm behind its blocks
    assert torch.equal(net.text.norm(watch.seen["text", 1]), streams["text"].x)
    watch.seen["text", 0].sum().backward()
    assert net.text.embed.tokens.weight.grad.abs().sum() > 0


def test_the_kernel_may_be_chosen():
    net = model().double()
    a = net(IDS, PICTURE.double(), TARGET)["decoder"].x
    net.kernel = reference
    assert_close(net(IDS, PICTURE.double(), TARGET)["decoder"].x, a, rtol=1e-10, atol=1e-12)


def test_reset_draws_anew_and_puts_the_generator_back():
    net = model()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    reset(net, 3)
    assert torch.equal(torch.get_rng_state(), state)
    first = {k: v.clone() for k, v in net.state_dict().items()}
    reset(net, 3)
    for name, value in net.state_dict().items():
        assert torch.equal(value, first[name])
        assert torch.equal(value, before[name]) == (name.endswith("bias") or "norm" in name), name
    reset(net)
    assert not torch.equal(torch.get_rng_state(), state)


def test_matching_finds_by_suffix_or_says_so():
    net = model()
    assert len(matching(net, "q_proj.weight")) == 2 + 2 + 6
    assert len(matching(net, "q_proj.weight", "o_proj.bias")) == 20
    with pytest.raises(ValueError, match=r"no parameter ends with 'qproj.weight'"):
        matching(net, "q_proj.weight", "qproj.weight")


def test_streams_keep_what_is_known_of_the_entries():
    real = torch.tensor([[True, True, False], [True, True, True]])
    out = model()(text=Stream(IDS, real=real))["text"]
    assert out.real is real
