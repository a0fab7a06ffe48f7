"""GPT-2's released sizes, names and shapes."""

import pytest
import torch

from plait.core.model import parameters
from plait.models.gpt2 import PRESETS, RULES, Config, build
from plait.weights.rules import export, load
from plait.weights.source import Held

RELEASED = {"distil": 81_912_576, "124m": 124_439_808, "medium": 354_823_168, "large": 774_030_080, "xl": 1_557_611_200}


@pytest.mark.parametrize("size", RELEASED)
def test_the_total_is_the_released_one(size):
    with torch.device("meta"):
        assert parameters(build(Config(**PRESETS[size]))) == RELEASED[size]


def names(layers: int, d: int, vocab: int, length: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of openai-community/gpt2's model.safetensors, written out."""
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocab, d), "wpe.weight": (length, d)}
    for i in range(layers):
        shapes |= {f"h.{i}.ln_{n}.{w}": (d,) for n in (1, 2) for w in ("weight", "bias")}
        for part, d_in, d_out in (("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, 4 * d), ("mlp.c_proj", 4 * d, d)):
            shapes |= {f"h.{i}.{part}.weight": (d_in, d_out), f"h.{i}.{part}.bias": (d_out,)}
    return shapes | {"ln_f.weight": (d,), "ln_f.bias": (d,)}


@pytest.mark.parametrize("size", RELEASED)
def test_every_released_name_and_shape_is_claimed(size):
    """On `meta`: the whole of each released file, tensor by tensor."""
    c = Config(**PRESETS[size])
    with torch.device("meta"):
        net = build(c)
        found = {name: tuple(t.shape) for name, t in export(net, RULES).items()}
    wanted = names(c.n_layers, c.d_model, c.vocab_size, c.max_length)
    assert found == {f"transformer.{name}": shape for name, shape in wanted.items()}


@pytest.mark.parametrize("leading", ["", "transformer."])
def test_there_and_back_bit_for_bit(leading):
    draw = torch.Generator().manual_seed(0)
    tensors = {
        leading + name: torch.randint(-(2**31), 2**31 - 1, shape, generator=draw).to(torch.int32).view(torch.float32)
        for name, shape in names(2, 12, 17, 8).items()
    }
    for i in range(2):  # a table of the file that holds no parameter
        tensors[f"{leading}h.{i}.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
    with torch.device("meta"):
        net = build(Config(17, 8, 12, 3, 2))
    certificate = load(net, Held(tensors), RULES)
    again = export(net, RULES, certificate)
    assert list(again) == [name for name in tensors if not name.endswith(".attn.bias")]
    for name, t in again.items():  # any bits, NaN among them
        assert torch.equal(t.view(torch.int32), tensors[name].view(torch.int32)), name
        assert t.is_contiguous()
    block = net.decoder.blocks[1]
    fused = tensors[f"{leading}h.1.attn.c_attn.weight"].view(torch.int32)
    for k, part in enumerate((block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)):
        assert torch.equal(part.weight.detach().view(torch.int32), fused[:, 12 * k : 12 * (k + 1)].T)


def test_the_start_is_the_papers():
    """Deviation 0.02, smaller by sqrt(2 n_layers) where a residual step ends, so that the stream does not grow with depth."""
    torch.manual_seed(0)
    net = build(Config(200, 64, 64, 4, 3))
    deviations = {name: p.std().item() for name, p in net.named_parameters() if p.dim() > 1}
    for name, found in deviations.items():
        wanted = 0.02 / 6**0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        assert abs(found / wanted - 1) < 0.05, name
    assert all((p == (0 if name.endswith("bias") else 1)).all() for name, p in net.named_parameters() if p.dim() == 1)
