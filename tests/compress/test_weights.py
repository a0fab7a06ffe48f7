"""Quantising whole models, keeping them, and GGUF's blocks, against the `gguf` package's own formulas."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.compress import from_gguf, quantise, restore
from plait.core.heads import Tied, pooled
from plait.core.linear import Linear
from plait.core.quantised import Quantised, QuantisedLinear, quantised
from plait.errors import InputError
from plait.models import PAGES, build, vocabulary

VOCAB = 29


@pytest.fixture(autouse=True)
def kernels(monkeypatch, tmp_path_factory):
    """Kernels have tests of their own (tests/core/test_quantised.py): here torch does the work."""
    monkeypatch.setattr("plait.core.quantised._native", lambda: None)


def made(arch: str, device: str = "cpu"):
    page = PAGES[arch]
    known = page.Config.__dataclass_fields__
    wanted = {**page.PRESETS["tiny"], **vocabulary(arch, VOCAB, VOCAB), "dropout": 0.0}
    torch.manual_seed(0)
    with torch.device(device):
        return build(arch, {name: value for name, value in wanted.items() if name in known}).eval()


def scores(net) -> torch.Tensor:
    ids = torch.arange(24).view(2, 12) % VOCAB
    queries = torch.arange(7).expand(2, -1)  # of detectors
    feed = dict.fromkeys(net.towers, ids)
    if (takes := net.takes(net.towers[0])) != "ids":
        shape = (2, 4, 3, 8, 8) if takes == "clips" else (2, 3, 64, 64)
        feed = dict.fromkeys(net.towers, queries) | {net.towers[0]: torch.randn(shape, generator=torch.Generator().manual_seed(0))}
    head = next(iter(net.heads), None)
    with torch.no_grad():
        stream = net(**feed)[net.towers[-1]]
        if head is None:
            return stream.x
        found = net.heads[head](pooled(net.heads[head], stream) if takes != "ids" and head != "detect" else stream.x)
        return torch.cat(found, -1) if isinstance(found, tuple) else found


@pytest.mark.parametrize(("bits", "activations"), [(8, "int8"), (4, "float32")])
@pytest.mark.parametrize("arch", PAGES)
def test_every_model_computes_with_the_numbers_of_its_codes(arch, bits, activations):
    """A twin of plain layers that holds the numbers of the codes gives the same scores; those of the weights are near."""
    net = made(arch)
    before, names = scores(net), set(net.state_dict())
    small = quantise(copy.deepcopy(net), bits, activations=activations)
    left = [name for name, part in small.named_modules() if type(part) in (Linear, Tied)]
    assert not left
    numbers = {f"{name[:-7]}.weight": part.values() for name, part in small.named_modules() if isinstance(part, Quantised)}
    assert set(numbers) <= names
    if activations == "float32":
        net.load_state_dict(numbers, strict=False)
        torch.testing.assert_close(scores(small), scores(net), rtol=1e-4, atol=1e-4)
    error = (scores(small) - before).norm() / before.norm()
    assert 1e-5 < error < (0.06 if bits == 8 else 0.4)


@pytest.mark.parametrize("arch", ["gpt2", "t5", "bart", "albert"])
def test_saved_is_loaded_bit_for_bit(arch, tmp_path):
    net = quantise(quantise(made(arch), 8, only=["*.tokens"]), 4)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    back = restore(made(arch, "meta"), load_file(tmp_path / "model.safetensors"))
    assert list(back.state_dict()) == list(net.state_dict())
    assert all(torch.equal(t, back.state_dict()[name]) for name, t in net.state_dict().items())
    assert torch.equal(scores(back), scores(net))


def test_a_tied_output_shares_the_embedding():
    net = quantise(made("gpt2"), 8)
    assert net.heads["lm"].tokens.part is net.decoder.embed.tokens
    assert not any(name.startswith("heads") for name in net.state_dict())
    assert {m.bits for m in net.modules() if isinstance(m, Quantised)} == {8}


def test_a_second_pass_takes_the_rest():
    net = quantise(quantise(made("llama"), 8, only=["*.embed.tokens", "heads.*"]), 4)
    bits = {name: part.bits for name, part in net.named_modules() if isinstance(part, Quantised)}
    assert {name for name in bits if bits[name] == 8} == {name for name in bits if "blocks" not in name}
    assert isinstance(net.decoder.blocks[0].ffn.gate_proj, QuantisedLinear)


def test_a_gradient_goes_through_to_what_is_trained():
    """What an adapter needs: positions and norms learn, the codes do not."""
    net = quantise(made("gpt2"), 4)
    net.heads["lm"](net(decoder=torch.tensor([[1, 2, 3]]))["decoder"].x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in net.named_parameters() if "k_proj" not in name)


def test_what_makes_no_sense_is_refused_with_all_faults():
    net = made("gpt2")
    before = net.state_dict()
    with pytest.raises(InputError) as caught:
        quantise(net, 5, only=["encoder.*"], activations="int4")
    assert len(caught.value.faults) == 3
    net.decoder.blocks[0].ffn.up_proj.weight.data[3, 4] = float("nan")
    net.decoder.blocks[1].ffn.up_proj.weight.data[:] = 1e8
    with pytest.raises(InputError) as caught:
        quantise(net)
    assert [fault.split(":")[0] for fault in caught.value.faults] == [f"decoder.blocks.{i}.ffn.up_proj" for i in (0, 1)]
    assert list(net.state_dict()) == list(before)
    with pytest.raises(InputError, match="no Linear"):
        quantise(quantise(made("gpt2")))
    with pytest.raises(InputError, match="load the checkpoint first"):
        quantise(made("gpt2", "meta"))


def test_a_state_that_does_not_fit_is_refused_with_all_faults():
    state = quantise(made("gpt2"), 8).state_dict()
    name = "decoder.blocks.0.ffn.up_proj"
    broken = {
        **state,
        f"{name}.matrix.codes": state[f"{name}.matrix.codes"][:, :, :3],
        "decoder.blocks.0.ffn.down_proj.matrix.size": torch.tensor([32, 127]),
        "decoder.norm.weight": torch.ones(31),
        "decoder.blocks.7.ffn.up_proj.matrix.codes": torch.zeros(1),
    }
    del broken["decoder.norm.bias"], broken["decoder.blocks.1.self_attn.q_proj.matrix.scale"]
    with pytest.raises(InputError) as caught:
        restore(made("gpt2", "meta"), broken)
    assert {fault.split(":")[0] for fault in caught.value.faults} == {
        name,
        "decoder.blocks.0.ffn.down_proj",
        "decoder.norm.weight",
        "decoder.norm.bias",
        "decoder.blocks.7.ffn.up_proj",
        "decoder.blocks.1.self_attn.q_proj",
    }


# ---- GGUF ----


def gguf_blocks(w: torch.Tensor, kind: str):
    gguf = pytest.importorskip("gguf")
    of_type = gguf.GGMLQuantizationType[kind]
    data = gguf.quants.quantize(w.numpy(), of_type)
    return torch.from_numpy(data.reshape(-1)), torch.from_numpy(gguf.quants.dequantize(data, of_type))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_gguf_blocks_are_taken_as_they_are(kind):
    torch.manual_seed(0)
    w = torch.randn(50, 96) * torch.logspace(-6, 2, 50)[:, None]  # scales below float16's normal numbers, too
    data, expected = gguf_blocks(w, kind)
    matrix = from_gguf(data, kind, (50, 96), activations="float32")
    if kind == "Q4_1":  # one rounding there, two in numpy
        torch.testing.assert_close(matrix.values(), expected, rtol=0, atol=1e-5)
    assert torch.equal(matrix.values(torch.float64).float(), expected) or kind == "Q4_1"
    x = torch.randn(3, 96)
    torch.testing.assert_close(matrix(x).double(), x.double() @ expected.double().t(), rtol=1e-5, atol=1e-4)
    assert matrix.codes.nbytes + matrix.scale.nbytes + (0 if matrix.least is None else matrix.least.nbytes) == len(data) // 50 * 56


def test_gguf_blocks_of_other_types_are_refused():
    with pytest.raises(InputError, match=r"Q6_K blocks .* Q8_0, Q4_0 or Q4_1 are"):
        from_gguf(torch.zeros(210, dtype=torch.uint8), "Q6_K", (1, 256))


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize(("bits", "kind"), [(8, "Q8_0"), (4, "Q4_0"), (4, "Q4_1")])
def test_the_error_is_no_worse_than_that_of_llama_cpp_s_formats(bits, kind, heavy):
    rng = np.random.default_rng(0)
    w = torch.from_numpy((rng.standard_t(3, (256, 512)) if heavy else rng.standard_normal((256, 512))).astype(np.float32) * 0.02)
    x = torch.from_numpy(rng.standard_normal((64, 512)))
    exact = x @ w.double().t()

    def error(numbers: torch.Tensor) -> float:
        return float((x @ numbers.double().t() - exact).norm() / exact.norm())

    assert error(quantised(w, bits).values()) <= 1.005 * error(gguf_blocks(w, kind)[1])
