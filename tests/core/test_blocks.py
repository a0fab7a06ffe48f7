"""Blocks, stacks, shared layers, and makers called with the layer's index."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from plait.core.attention import Attention
from plait.core.blocks import Block, PerLayer, Stack, body, each
from plait.core.cache import Cache
from plait.core.feedforward import FFN
from plait.core.kernels import sdpa
from plait.core.masks import Window, causal
from plait.core.model import Model, Tower, parameters
from plait.core.norms import LayerNorm
from plait.core.residual import Pre
from plait.core.stream import Call, Stream


class Noted(nn.Module):
    """A step that says where it is called and multiplies."""

    def __init__(self, layer, log):
        super().__init__()
        self.weight, self.log = nn.Parameter(torch.tensor(float(layer + 2))), log

    def forward(self, x, call, path):
        self.log.append((self.weight.item(), path))
        return x * self.weight


class Plain(Pre):
    norms = ()

    def forward(self, x, steps):
        for step, () in steps:
            x = step(x)
        return x


def noted(order=None, n=3, names=("a", "b")):
    log = []
    blocks = [Block(Plain(), lambda: LayerNorm(1), {name: Noted(i, log) for name in names}) for i in range(n)]
    return Stack(blocks, order), log


def test_steps_run_in_order_and_know_their_path():
    stack, log = noted()
    x = torch.ones(1, 1, 1)
    out = stack(x, Call(Stream(x), sdpa), ("tower",))
    assert log == [(float(i + 2), ("tower", i, name)) for i in range(3) for name in "ab"]
    assert out.item() == (2 * 3 * 4) ** 2


def test_order_runs_blocks_again_with_depths_of_their_own():
    stack, log = noted(order=[0, 2, 0, 2], names=("a",))
    x = torch.ones(1, 1, 1)
    stack(x, Call(Stream(x), sdpa), ("tower",))
    assert log == [(2.0, ("tower", 0, "a")), (4.0, ("tower", 1, "a")), (2.0, ("tower", 2, "a")), (4.0, ("tower", 3, "a"))]
    with pytest.raises(ValueError, match=r"order=\(0, 3\) names a block outside 0\.\.2"):
        noted(order=[0, 3])
    with pytest.raises(ValueError, match="outside"):
        noted(order=[-1])


def test_step_names_become_parameter_names():
    block = Block(Pre(), lambda: LayerNorm(8), {"self_attn": Attention(8, 2), "ffn": FFN(8, 16)})
    heads = {name.rsplit(".", 1)[0] for name in block.state_dict()}
    assert heads == {
        *(f"self_attn.{p}_proj" for p in "qkvo"), "ffn.up_proj", "ffn.down_proj", "self_attn_norm", "ffn_norm",
    }  # fmt: skip


def small(n_layers, share=None):
    norm = lambda: LayerNorm(8)  # noqa: E731
    return body(n_layers, norm, lambda i: Pre(), share, self_attn=each(Attention, 8, 2, mask=causal), ffn=each(FFN, 8, 16))


def test_shared_layers_are_counted_and_stored_once():
    one = parameters(small(1))
    assert parameters(small(6)) == 6 * one
    assert parameters(small(6, share=1)) == one
    assert parameters(small(6, share=2)) == 2 * one
    stack = small(6, share=2)
    assert stack.order == (0, 0, 0, 1, 1, 1)
    state = stack.state_dict()
    assert len({t.data_ptr() for t in state.values()}) == len(state)
    assert {name.split(".")[0] for name in state} == {"0", "1"}
    assert small(3).order == (0, 1, 2)


@pytest.mark.parametrize("share", [1, 2, None])
def test_a_cache_keeps_shared_layers_apart(share):
    torch.manual_seed(0)
    net = Model(only=Tower(nn.Identity(), small(4, share))).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    whole, cache = net(x)["only"].x, Cache(7)
    parts = [net.run("only", cache.stream(part), cache=cache).x for part in x.split([3, 1, 2, 1], dim=1)]
    assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-12)
    assert len(cache.buffers) == 4  # one for each depth, not for each set of weights


def test_shared_layers_equal_copies():
    torch.manual_seed(0)
    shared, copies = small(3, share=1), small(3)
    for block in copies:
        block.load_state_dict(shared[0].state_dict())
    x = torch.randn(2, 5, 8)
    assert torch.equal(*(stack(x, Call(Stream(x), sdpa), ()) for stack in (shared, copies)))


def test_each_makes_anew_and_fills_in_per_layer_values():
    maker = each(FFN, 8, PerLayer([16, 24, 32]), bias=PerLayer(lambda i: i == 1))
    made = [maker(i) for i in range(3)]
    assert [ffn.up_proj.weight.shape[0] for ffn in made] == [16, 24, 32]
    assert [ffn.up_proj.bias is not None for ffn in made] == [False, True, False]
    assert maker(0) is not maker(0)
    alternating = each(Attention, 8, 2, mask=PerLayer(lambda i: Window(2) if i % 2 else causal))
    assert [alternating(i).mask for i in range(3)] == [causal, Window(2), causal]


def test_masks_of_different_layers_do_not_mix():
    """Two masks in one forward, over the same places: each layer must get its own."""
    torch.manual_seed(0)
    stack = body(2, lambda: LayerNorm(8), lambda i: Pre(), self_attn=each(Attention, 8, 2, mask=PerLayer([causal, Window(0)])))
    x = torch.randn(1, 5, 8)
    together = stack(x, Call(Stream(x), sdpa), ())
    apart = x
    for block in stack:
        apart = block(apart, Call(Stream(x), sdpa), ())
    assert torch.equal(together, apart)
