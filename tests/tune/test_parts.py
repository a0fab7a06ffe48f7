"""What small parts compute: their papers' formulas, also over quantised weights."""

import pytest
import torch
from torch.nn.functional import linear
from torch.testing import assert_close

from plait.core.linear import Linear
from plait.core.quantised import QuantisedLinear, place, quantised
from plait.errors import InputError
from plait.tune import (
    LoRA,
    attach,
    load_small,
    merge,
    mergeable,
    select,
    small,
    tuning_of,
)
from plait.tune.parts import Bottleneck, Directed, LowRank, Scaled

VOCAB = 29
IDS = torch.randint(0, VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))


def drawn(part):
    for p in part.parameters():
        torch.nn.init.normal_(p)
    return part.double()


def test_each_part_is_its_papers_formula():
    torch.manual_seed(0)
    layer, x = Linear(6, 4).double(), torch.randn(3, 6, dtype=torch.float64)
    torch.nn.init.normal_(layer.bias)
    w, b = layer.weight, layer.bias
    low = drawn(LowRank(6, 4, 2, 0.7))
    delta = 0.7 * low.b @ low.a
    assert_close(low(layer, x), linear(x, w + delta, b))
    directed = drawn(Directed(w, 2, 0.7))
    v = w + 0.7 * directed.b @ directed.a
    assert_close(directed(layer, x), linear(x, directed.m[:, None] * v / v.norm(dim=1, keepdim=True), b))
    outputs, inputs = drawn(Scaled(4, False)), drawn(Scaled(6, True))
    assert_close(outputs(layer, x), outputs.factor * linear(x, w, b))
    assert_close(inputs(layer, x), linear(x, w @ inputs.factor.diag(), b))
    bottleneck = drawn(Bottleneck(4, 3, torch.tanh))
    y = linear(x, w, b)
    assert_close(bottleneck(layer, x), y + bottleneck.up(torch.tanh(bottleneck.down(y))))
    for part in (low, directed, outputs, inputs):
        assert_close(linear(x, *part.merged(w, b)), part(layer, x))


def test_the_scale_is_alpha_by_rank_or_by_its_root(model):
    for name, scale in (("lora", 16 / 4), ("rslora", 16 / 2)):
        net = model()
        attach(net, tuning_of({"method": name, "rank": 4}))
        assert net.get_submodule("decoder.blocks.0.self_attn.q_proj").part.scale == scale


def test_the_way_back_of_dora_takes_the_length_as_given():
    """Section 4.3: the gradient of B is that of the formula with the norm a constant."""
    torch.manual_seed(0)
    layer, x = Linear(6, 4).double(), torch.randn(3, 6, dtype=torch.float64)
    part = drawn(Directed(layer.weight, 2, 1.0))
    part(layer, x).square().sum().backward()
    b = part.b.detach().requires_grad_()
    v = layer.weight.detach() + b @ part.a.detach()
    linear(x, part.m.detach()[:, None] * v / v.detach().norm(dim=1, keepdim=True), layer.bias).square().sum().backward()
    assert_close(part.b.grad, b.grad)


def test_dropout_falls_on_what_lora_adds_alone(model, moved, said):
    net = model()
    attach(net, LoRA(rank=2, dropout=0.5))
    moved(net)
    still = said(net)
    assert torch.equal(said(net), still)
    assert not torch.allclose(said(net.train()), still)
    select(net, None)
    assert torch.equal(said(net), said(net))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_gradient_goes_through_a_quantised_matrix(bits, rounding, dtype, monkeypatch):
    """grad W of the values that the codes stand for; rounding of x counts as none on the way back."""
    torch.manual_seed(0)
    monkeypatch.setattr("plait.core.quantised.AT_ONCE", 1)  # eight rows at a time
    layer = QuantisedLinear(quantised(torch.randn(37, 70), bits, rounding), torch.nn.Parameter(torch.randn(37)))
    x, grad = torch.randn(2, 5, 70, dtype=dtype, requires_grad=True), torch.randn(2, 5, 37, dtype=dtype)
    layer.to(dtype)(x).backward(grad)
    bound = dict(rtol=2e-2, atol=0.3) if dtype == torch.bfloat16 else dict(rtol=1e-5, atol=1e-4 if dtype == torch.float32 else 1e-9)
    assert_close(x.grad.double(), grad.double() @ layer.matrix.values(torch.float64), **bound)
    assert_close(layer.bias.grad.double(), grad.double().sum((0, 1)), **bound)
    with torch.no_grad():
        assert_close(layer(x), layer(x.clone().requires_grad_()))


@pytest.mark.parametrize("bits", [8, 4])
def test_lora_over_quantised_weights_learns(model, said, bits):
    net = model().float()
    place(net, {name: quantised(part.weight, bits) for name, part in net.named_modules() if type(part) is Linear and "blocks" in name})
    attach(net, LoRA(rank=4, targets=("*_proj",)))
    before = {name: t.clone() for name, t in net.state_dict().items() if "tunings" not in name}
    adam, losses = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 0.02), []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(said(net)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items() if "tunings" not in name)
    assert not mergeable(net)
    with pytest.raises(InputError, match="few bits") as error:
        merge(net)
    assert len(error.value.faults) == 14
    tuned = said(net).detach()
    fresh = model().float()
    place(fresh, {name: quantised(part.weight, bits) for name, part in fresh.named_modules() if type(part) is Linear and "blocks" in name})
    load_small(fresh, LoRA(rank=4, targets=("*_proj",)), small(net))
    assert_close(said(fresh), tuned)
