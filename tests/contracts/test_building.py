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


def ids(rows, length, seed=0):
    return torch.randint(0, 29, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.capability("build")
def test_builds_on_meta_and_comes_to_life(tiny, net, ends):
    with torch.device("meta"):
        twin = tiny()
    assert {p.device.type for p in twin.parameters()} == {"meta"}
    assert list(twin.buffers()) == []  # to_empty leaves computed buffers as garbage
    assert ends.out(twin, ids(2, 5).to("meta"), ids(2, 4).to("meta")).shape[:2] == (2, 4)
    twin = twin.double().to_empty(device="cpu")
    twin.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(*(ends.out(m, ids(2, 5), ids(2, 4, 1)) for m in (twin, net)))
        assert torch.equal(*(ends.scores(m, ids(2, 5), ids(2, 4, 1)) for m in (twin, net)))


@pytest.mark.capability("save")
def test_saved_is_loaded(tiny, net, ends, tmp_path):
    save_file(net.state_dict(), tmp_path / "model.safetensors")  # refuses memory that is shared
    twin = tiny().double()
    twin.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(*(ends.scores(m, ids(2, 5), ids(2, 4, 1)) for m in (twin, net)))


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
    assert parameters(net) == sum(t.numel() for t in state.values())
    assert len({t.data_ptr() for t in state.values()}) == len(state)
    assert sorted(state) == sorted(name for name, _ in net.named_parameters())


@pytest.mark.capability("train")
def test_every_parameter_learns(net, ends):
    net.zero_grad()
    net.train()
    logits = ends.scores(net, ids(3, 6), ids(3, 5, 1))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids(3, 5, 2).flatten()).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        attention = net.get_submodule(name.removesuffix(".k_proj.bias")) if name.endswith("k_proj.bias") else None
        if attention is not None and attention.rotary is None:  # shifts all scores of a query alike: softmax does not see it
            assert p.grad.abs().max() < 1e-12, name
        else:
            assert p.grad.abs().max() > 1e-12, name
    net.zero_grad()


@pytest.mark.capability("build")
def test_every_preset_builds_on_meta(arch):
    with torch.device("meta"):
        sizes = {name: parameters(build(arch, {**preset, **vocabulary(arch, 100, 100)})) for name, preset in PAGES[arch].PRESETS.items()}
    assert list(sizes.values()) == sorted(sizes.values())  # each larger than the one before
    assert len(set(sizes.values())) == len(sizes)


@pytest.mark.capability("train")
def test_dropout_is_only_for_training(tiny, ends):
    torch.manual_seed(0)
    net = tiny(dropout=0.5)
    a, b = (ends.out(net, ids(2, 5), ids(2, 4)) for _ in range(2))
    assert not torch.equal(a, b)
    net.eval()
    a, b = (ends.out(net, ids(2, 5), ids(2, 4)) for _ in range(2))
    assert_close(a, b, rtol=0, atol=0)
