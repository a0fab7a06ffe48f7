"""Builds on meta; saved = loaded, in our names and in those of others; nothing is stored twice; every parameter learns."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from plait.core.model import parameters
from plait.models import PAGES, build, vocabulary
from plait.weights import config as keys
from plait.weights.rules import export, load
from plait.weights.source import Held


@pytest.mark.capability("build")
def test_builds_on_meta_and_comes_to_life(tiny, net, ends):
    with torch.device("meta"):
        twin = tiny().double()
    assert {p.device.type for p in twin.parameters()} == {"meta"}
    assert {name for name, _ in twin.named_buffers()} <= twin.state_dict().keys()  # to_empty leaves computed buffers as garbage
    assert ends.out(twin, ends.source(2, 5).to("meta"), ends.target(2, 4).to("meta")).shape[0] == 2
    twin = twin.double().to_empty(device="cpu")
    twin.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(*(ends.out(m, ends.source(2, 5), ends.target(2, 4)) for m in (twin, net)))
        assert torch.equal(*(ends.scores(m, ends.source(2, 5), ends.target(2, 4)) for m in (twin, net)))


@pytest.mark.capability("save")
def test_saved_is_loaded(tiny, net, ends, tmp_path):
    save_file(net.state_dict(), tmp_path / "model.safetensors")  # refuses memory that is shared
    twin = tiny().double()
    twin.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(*(ends.scores(m, ends.source(2, 5), ends.target(2, 4)) for m in (twin, net)))


@pytest.mark.capability("export")
def test_exported_is_loaded(released, settings, net):
    raw = keys.write(released.KEYS, vars(released.Config(**settings)))
    read = released.Config(**keys.read(released.KEYS, raw))
    rules = released.rules(read) if hasattr(released, "rules") else released.RULES
    with torch.device("meta"):
        twin = released.build(read)
    load(twin, Held(export(net, rules)), rules)
    found, wanted = twin.state_dict(), net.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(t, wanted[name]) for name, t in found.items())


@pytest.mark.capability("build")
def test_nothing_is_stored_or_counted_twice(net):
    state = net.state_dict()
    held = {name: t for name, t in state.items() if name not in dict(net.named_buffers())}  # frozen statistics are stored, not learned
    assert parameters(net) == sum(t.numel() for t in held.values())
    assert len({t.data_ptr() for t in state.values()}) == len(state)
    assert sorted(held) == sorted(name for name, _ in net.named_parameters())


@pytest.mark.capability("train")
def test_every_parameter_learns(net, ends):
    net.zero_grad()
    net.train()
    scores = ends.scores(net, ends.source(3, 6), ends.target(3, 5)).flatten(0, -2)
    torch.nn.functional.cross_entropy(scores, torch.arange(len(scores)) % scores.shape[-1]).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        attention = net.get_submodule(name.removesuffix(".k_proj.bias")) if name.endswith("k_proj.bias") else None
        if name.startswith(ends.blind):
            assert p.grad.abs().max() < 1e-9, name
        elif attention is not None and attention.rotary is None:  # shifts all scores of a query alike: softmax does not see it
            assert p.grad.abs().max() < 1e-12, name
        else:
            assert p.grad.abs().max() > 1e-12, name
    net.zero_grad()


@pytest.mark.capability("build")
def test_every_preset_builds_on_meta(arch):
    with torch.device("meta"):
        sizes = {name: parameters(build(arch, {**preset, **vocabulary(arch, 100, 100)})) for name, preset in PAGES[arch].PRESETS.items()}
    assert list(sizes.values()) == sorted(sizes.values())  # none smaller than the one before
    assert len({str(preset) for preset in PAGES[arch].PRESETS.values()}) == len(sizes)


@pytest.mark.capability("train")
def test_dropout_is_only_for_training(tiny, ends):
    torch.manual_seed(0)
    net = tiny(dropout=0.5).double()
    a, b = (ends.out(net, ends.source(2, 5), ends.target(2, 4)) for _ in range(2))
    assert not torch.equal(a, b)
    net.eval()
    a, b = (ends.out(net, ends.source(2, 5), ends.target(2, 4)) for _ in range(2))
    assert_close(a, b, rtol=0, atol=0)
