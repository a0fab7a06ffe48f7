"""Which heads, units, layers and weights go, and what cannot."""

import copy

import pytest
import torch

from plait.compress import importance, magnitude, prune, quantise, two_of_four
from plait.compress.pruning import kept, spread
from plait.core.biases import ALiBi, SomeHeads
from plait.core.linear import Linear
from plait.core.memory import Memory
from plait.core.shape import shaped
from plait.errors import InputError
from plait.models import build

GPT2 = {"vocab_size": 29, "max_length": 64, "d_model": 32, "n_heads": 4, "n_layers": 2}
LLAMA = {"vocab_size": 29, "d_model": 32, "n_heads": 4, "n_layers": 2, "d_ff": 64, "n_kv_heads": 2, "max_length": 128}
IDS = torch.arange(24).view(2, 12)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return build("gpt2", GPT2).eval()


def test_the_lowest_of_all_parts_go_and_the_best_of_each_stays():
    scores = {"a": torch.tensor([1.0, 5.0, 2.0]), "b": torch.tensor([0.2, 0.1, 0.3]), "c": torch.tensor([9.0])}
    assert kept(scores, 0.3, "heads") == {"a": [0, 1, 2], "b": [2], "c": [0]}
    assert kept(scores, 0.5, "heads") == {"a": [1], "b": [2], "c": [0]}
    with pytest.raises(InputError, match=r"one must stay in each of 3 parts: choose at most 0\.57"):
        kept(scores, 0.9, "heads")
    with pytest.raises(InputError, match=r"none of the 7 heads would go; choose 0\.14 or more"):
        kept(scores, 0.05, "heads")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 33.0, float("nan")])
@pytest.mark.parametrize("what", ["heads", "layers"])
def test_a_share_is_between_0_and_1(net, what, share):
    before = list(net.state_dict())
    with pytest.raises(InputError, match="between 0 and 1"):
        prune(net, what, share)
    with pytest.raises(InputError, match="between 0 and 1"):
        magnitude(net, share)
    assert list(net.state_dict()) == before and not net.shape


def test_layers_go_evenly():
    assert spread(12, 0.5) == [0, 2, 4, 7, 9, 11]
    assert spread(4, 0.25) == [0, 2, 3]
    assert spread(2, 0.5) == [0]


def test_what_a_loss_does_not_need_goes_first(net):
    """A head, a unit and a layer that add nothing; by weights alone they would be as good as the others."""
    with torch.no_grad():
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.3)
        net.decoder.blocks[1].self_attn.o_proj.weight[:, 8:16] = 0
        net.decoder.blocks[0].ffn.down_proj.weight[:, 5] = 0

    def loss():
        return net.heads["lm"](net(decoder=IDS)["decoder"].x).square().sum()

    heads, units = importance(net, "heads", [loss, loss]), importance(net, "units", [loss])
    assert heads["decoder.blocks.1.self_attn"][1] == 0 and (heads["decoder.blocks.0.self_attn"] > 0).all()
    assert units["decoder.blocks.0.ffn"].argmin() == 5
    assert prune(net, "heads", 0.13, [loss]).shape[0]["heads"]["decoder.blocks.1.self_attn"] == [0, 2, 3]
    with pytest.raises(InputError, match="too little data"):
        importance(net, "heads", [])


def test_a_layer_that_does_nothing_goes_first():
    net = build("gpt2", {**GPT2, "n_layers": 4})
    with torch.no_grad():
        for name in ("self_attn.o_proj", "ffn.down_proj"):
            layer = net.decoder.blocks[1].get_submodule(name)
            layer.weight.zero_()
            layer.bias.zero_()
    expected = net.eval()(decoder=IDS)["decoder"].x
    prune(net, "layers", 0.25, [lambda: net.heads["lm"](net(decoder=IDS)["decoder"].x).square().sum()])
    assert list(net.shape) == [{"layers": {"decoder.blocks": [0, 2, 3]}}] and len(net.decoder.blocks) == 3
    torch.testing.assert_close(net(decoder=IDS)["decoder"].x, expected)


def test_a_key_head_goes_with_its_queries():
    net = build("llama", LLAMA)
    whole = copy.deepcopy(net)
    prune(net, "heads", 0.25)
    (name, (group,)) = next((n, k) for n, k in net.shape[0]["heads"].items() if len(k) == 1)
    part, was = net.get_submodule(name), whole.get_submodule(name)
    assert torch.equal(part.q_proj.weight, was.q_proj.weight.view(2, 16, 32)[group])
    assert torch.equal(part.k_proj.weight, was.k_proj.weight.view(2, 8, 32)[group])


def test_biases_and_learned_keys_go_with_their_heads(net):
    part = net.decoder.blocks[0].self_attn
    part.score_bias, part.memory = ALiBi(4), Memory(3, 4, 8)
    whole = copy.deepcopy(net)
    shaped(net, {"heads": {"decoder.blocks.0.self_attn": [0, 3]}})
    with torch.no_grad():
        whole.decoder.blocks[0].self_attn.o_proj.weight[:, 8:24] = 0
        assert isinstance(part.score_bias, SomeHeads) and part.memory.k.shape == (2, 3, 8)
        torch.testing.assert_close(net(decoder=IDS)["decoder"].x, whole(decoder=IDS)["decoder"].x)


def test_what_does_not_fit_is_refused_with_all_faults(net):
    before = {name: t.shape for name, t in net.state_dict().items()}
    with pytest.raises(InputError) as caught:
        shaped(
            net,
            {"heads": {"decoder.blocks.0.self_attn": [], "decoder.blocks.1.self_attn": [0, 4], "decoder.blocks.0.ffn": [1], "x": [0]}},
        )
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "decoder.blocks.0.self_attn",
        "decoder.blocks.1.self_attn",
        "decoder.blocks.0.ffn",
        "x",
    ]
    with pytest.raises(InputError, match="not of depth"):
        shaped(net, {"depth": {}})
    assert {name: t.shape for name, t in net.state_dict().items()} == before
    with pytest.raises(InputError, match="quantised or adapted cannot be made narrower"):
        prune(quantise(net, 8), "heads", 0.3)
    with pytest.raises(InputError, match="no matrix of the model's blocks"):
        two_of_four(net)


def test_a_share_of_each_matrix_of_the_blocks_becomes_zero(net):
    head = copy.deepcopy(net.decoder.embed.state_dict())
    with torch.no_grad():  # what is packed for speed must not stay as it was
        whole = copy.deepcopy(net)
        magnitude(net, 0.4)
    for name, part in net.named_modules():
        if type(part) is Linear:
            size, was = part.weight, whole.get_submodule(name).weight
            assert (size == 0).sum() == round(0.4 * size.numel())
            assert torch.equal(size[size != 0], was[size != 0]) and was[size == 0].abs().max() <= size[size != 0].abs().min()
    assert all(torch.equal(t, head[name]) for name, t in net.decoder.embed.state_dict().items())


def test_two_of_four_keeps_the_two_largest(net):
    whole = copy.deepcopy(net)
    two_of_four(net)
    part, was = (one.decoder.blocks[0].ffn.up_proj.weight.unflatten(1, (-1, 4)) for one in (net, whole))
    assert ((part != 0).sum(-1) == 2).all()
    assert torch.equal(part.abs().sum(-1), was.abs().topk(2, -1).values.sum(-1))


def test_with_moments_a_weight_counts_with_its_input(net):
    name = "decoder.blocks.0.ffn.up_proj"
    scale = torch.ones(32)
    scale[:16] = 1e4  # the first half of the inputs is a hundred times as large
    magnitude(net, 0.5, {name: torch.diag(scale)})
    weight = net.get_submodule(name).weight
    assert (weight[:, :16] == 0).float().mean() < 0.1 and ((weight == 0).sum(1) == 16).all()
