"""Smaller by compressing: codes near their numbers, pruned = silenced, a saved shape builds the same model, dropped = not run."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from plait.compress import importance, moments, prune, quantise
from plait.core.attention import Attention
from plait.core.blocks import Stack
from plait.core.cache import Cache
from plait.core.feedforward import FFN
from plait.core.kernels import reference
from plait.core.linear import Linear
from plait.core.shape import shaped, size_of
from plait.models import build

EXACT = dict(rtol=1e-12, atol=1e-12)
WITHIN = {8: 0.06, 4: 0.45}  # of the norm of a tiny random model's vectors, activations rounded too: a real model has a tenth of it


def given(ends, rows=2, length=7):
    return ends.source(rows, length), ends.target(rows, length)


def scored(net, ends, batch):
    with torch.no_grad():
        return ends.scores(net, *batch)


def silenced(net: nn.Module, shape: dict) -> nn.Module:
    """The whole model, but what the shape does not keep adds nothing: by columns of the matrices behind it."""
    parts = dict(net.named_modules())
    with torch.no_grad():
        for name, kept in shape.get("heads", {}).items():
            part = parts[name]
            heads = part.o_proj.weight.view(len(part.o_proj.weight), size_of(part), -1)
            heads[:, [i for i in range(size_of(part)) if i not in kept]] = 0
        for name, kept in shape.get("units", {}).items():
            parts[name].down_proj.weight[:, [i for i in range(size_of(parts[name])) if i not in kept]] = 0
    return net


def chosen(net: nn.Module) -> dict:
    """Of every attention and feed-forward step other parts stay."""
    draw = torch.Generator().manual_seed(3)

    def some(n: int) -> list[int]:
        return sorted(torch.randperm(n, generator=draw)[: max(1, n // 2 + 1 if n < 3 else n // 2)].tolist())

    found = {kind: {n: p for n, p in net.named_modules() if isinstance(p, of)} for kind, of in (("heads", Attention), ("units", FFN))}
    return {kind: {name: some(size_of(part)) for name, part in parts.items()} for kind, parts in found.items()}


@pytest.fixture(scope="session")
def narrow(net):
    """(the model with half of its heads and units, the shape)"""
    shape = chosen(net)
    return shaped(copy.deepcopy(net), shape), shape


@pytest.mark.capability("quantise")
@pytest.mark.parametrize("bits", [8, 4])
def test_codes_give_nearly_the_same_vectors(net, ends, bits):
    batch = given(ends)
    whole = copy.deepcopy(net).float().eval()
    batch = tuple(x.float() if x.is_floating_point() else x for x in batch)
    expected, found = scored(whole, ends, batch), scored(quantise(copy.deepcopy(whole), bits), ends, batch)
    assert 0 < (found - expected).norm() / expected.norm() < WITHIN[bits]


@pytest.mark.capability("quantise")
def test_calibrated_codes_fill_the_same_bits(net, ends, monkeypatch):
    monkeypatch.setattr("plait.compress.calibration.ROWS", 10)
    whole = copy.deepcopy(net).float().eval()
    batch = tuple(x.float() if x.is_floating_point() else x for x in given(ends))
    found = moments(whole, [lambda: ends.scores(whole, *batch)])
    ways = (dict(), dict(method="gptq", moments=found))
    plain, small = (quantise(copy.deepcopy(whole), 4, only=["*.blocks.0.ffn.*"], **how) for how in ways)
    sizes = [{name: t.shape for name, t in one.state_dict().items()} for one in (plain, small)]
    assert sizes[0] == sizes[1] and any(not torch.equal(t, small.state_dict()[n]) for n, t in plain.state_dict().items())
    inner = {name for name, part in whole.named_modules() if type(part) is Linear and "blocks" in name}
    assert inner <= set(found)


@pytest.mark.capability("prune")
def test_pruned_is_silenced(net, ends, narrow):
    small, shape = narrow
    batch = given(ends)
    wanted = scored(silenced(copy.deepcopy(net), shape), ends, batch)
    assert_close(scored(small, ends, batch), wanted, **EXACT)
    small.kernel, kernel = reference, small.kernel
    assert_close(scored(small, ends, batch), wanted, **EXACT)
    small.kernel = kernel
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())


@pytest.mark.capability("prune")
def test_a_saved_shape_builds_the_same_model(net, ends, arch, settings, narrow):
    small, _ = narrow
    twice = prune(copy.deepcopy(small), "units", 0.3)  # a second pass goes on from the first
    said = json.loads(json.dumps(list(twice.shape)))
    with torch.device("meta"):
        built = build(arch, settings)
    for shape in said:
        shaped(built, shape)
    built.load_state_dict(twice.state_dict(), assign=True)
    assert list(built.shape) == said and len(said) == 2
    assert torch.equal(scored(built, ends, batch := given(ends)), scored(twice, ends, batch))


@pytest.mark.capability("prune")
def test_a_pruned_model_is_cached_as_uncached(ends, narrow):
    if not ends.causal:
        return
    small, _ = narrow
    source, x = given(ends)
    with torch.no_grad():
        memories, cache = ends.memories(small, source), Cache(7)
        parts = [small.run("decoder", part, memories, cache).x for part in x.split([3, 1, 1, 2], 1)]
        whole = small.run("decoder", x, memories).x
    assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-10)
    small = copy.deepcopy(small).float().eval()  # float32 with few rows: the native program, where there is one
    with torch.no_grad():
        memories, cache = ends.memories(small, source), Cache(7)
        parts = [small.run("decoder", part, memories, cache).x for part in x.split([3, 1, 1, 2], 1)]
    assert_close(torch.cat(parts, 1).double(), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.capability("prune")
def test_a_dropped_layer_is_not_run(net, ends, settings, arch):
    stacks = {name: part for name, part in net.named_modules() if isinstance(part, Stack) and size_of(part) > 1}
    shape = {"layers": {name: list(range(1, size_of(part))) for name, part in stacks.items()}}
    small, whole = shaped(copy.deepcopy(net), shape), copy.deepcopy(net)
    for name in stacks:
        stack = whole.get_submodule(name)
        stack.order = stack.order[1:]  # the weights of a layer that is not run stay there
    batch = given(ends)
    assert torch.equal(scored(small, ends, batch), scored(whole, ends, batch))
    built = shaped(build(arch, settings), small.shape[0])
    assert {n: p.shape for n, p in built.state_dict().items()} == {n: p.shape for n, p in small.state_dict().items()}


@pytest.mark.capability("prune")
def test_importance_is_the_loss_s_slope_along_a_gate(net, ends):
    """|∂loss/∂gate| of one row against a finite difference: the output of a head, a unit or a layer made a little larger."""
    batch, weights = given(ends, 1), {}

    def loss() -> torch.Tensor:
        scores = ends.scores(net, *batch)
        if not weights:
            weights["of"] = torch.randn(scores.shape, generator=torch.Generator().manual_seed(5), dtype=scores.dtype)
        return (scores * weights["of"]).sum()

    parts = dict(net.named_modules())
    for what in ("heads", "units"):
        found = importance(net, what, [loss])
        name = [name for name in found if "ffn" in name or "attn" in name][-1]
        part, step, sums = parts[name], 1e-6, []
        last = part.o_proj if what == "heads" else part.down_proj
        if sum(one is part for one in net.modules()) == 1 and any(len(s.order) > len(s) for s in net.modules() if isinstance(s, Stack)):
            continue  # a shared part has a gate for each time it runs
        if "attn" in name and any("time_attn" in other for other in parts):
            continue  # and a clip's frames are rows of their own
        before, most = last.weight.detach().clone(), found[name].topk(2).indices  # units may be dead
        with torch.no_grad():
            for i in most.tolist():
                ends_of = []
                for sign in (1, -1):
                    last.weight.view(len(before), size_of(part), -1)[:, i] *= 1 + sign * step
                    ends_of.append(float(loss()))
                    last.weight.copy_(before)
                sums.append(abs(ends_of[0] - ends_of[1]) / (2 * step))
        slopes = torch.tensor(sums, dtype=torch.float64)
        assert_close(found[name][most] / found[name][most].norm(), slopes / slopes.norm(), rtol=1e-4, atol=1e-5)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
