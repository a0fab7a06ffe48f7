"""Released sizes, names and shapes of GPT-NeoX and of the Pythia suite."""

import pytest
import torch

from plait.core.model import parameters
from plait.models.neox import PRESETS, Config, build, rules
from plait.weights.rules import export, load
from plait.weights.source import Held

# Table 1 of the Pythia paper gives the totals of 70m to 12b, table 1 of GPT-NeoX-20B's its own; no paper prints that of 14m.
RELEASED = {
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "20b": 20_554_567_680,
}


def test_every_preset_has_its_total():
    assert set(PRESETS) == {"tiny", "pythia-14m", *RELEASED}


@pytest.mark.parametrize("size", RELEASED)
def test_the_total_is_the_released_one(size):
    with torch.device("meta"):
        assert parameters(build(Config(**PRESETS[size]))) == RELEASED[size]


def names(c: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of EleutherAI's model.safetensors, written out."""
    d, f = c.d_model, c.d_ff
    shapes: dict[str, tuple[int, ...]] = {"gpt_neox.embed_in.weight": (c.vocab_size, d)}
    for i in range(c.n_layers):
        layer = f"gpt_neox.layers.{i}."
        shapes |= {f"{layer}{norm}_layernorm.{w}": (d,) for norm in ("input", "post_attention") for w in ("weight", "bias")}
        parts = ("attention.query_key_value", d, 3 * d), ("attention.dense", d, d), ("mlp.dense_h_to_4h", d, f), ("mlp.dense_4h_to_h", f, d)
        for part, d_in, d_out in parts:
            shapes |= {f"{layer}{part}.weight": (d_out, d_in), f"{layer}{part}.bias": (d_out,)}
    return shapes | {f"gpt_neox.final_layer_norm.{w}": (d,) for w in ("weight", "bias")} | {"embed_out.weight": (c.vocab_size, d)}


@pytest.mark.parametrize("size", RELEASED)
def test_every_released_name_and_shape_is_claimed(size):
    c = Config(**PRESETS[size])
    with torch.device("meta"):
        found = {name: tuple(t.shape) for name, t in export(build(c), rules(c)).items()}
    assert found == names(c)


def test_there_and_back_bit_for_bit():
    c = Config(17, 12, 3, 2, 20, turned=0.5)
    draw = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randint(-(2**15), 2**15 - 1, shape, generator=draw).to(torch.int16).view(torch.float16)
        for name, shape in names(c).items()
    }
    with torch.device("meta"):
        net = build(c)
    again = export(net, rules(c), load(net, Held(tensors), rules(c)))
    assert list(again) == list(tensors)
    for name, t in again.items():  # any bits, NaN among them
        assert torch.equal(t.view(torch.int16), tensors[name].view(torch.int16)), name
    fused = tensors["gpt_neox.layers.1.attention.query_key_value.weight"].view(torch.int16)
    for k, name in enumerate("qkv"):
        weight = net.get_parameter(f"decoder.blocks.1.self_attn.{name}_proj.weight").detach()
        for head in range(3):
            rows = fused[12 * head + 4 * k : 12 * head + 4 * (k + 1)]
            assert torch.equal(weight.view(torch.int16)[4 * head : 4 * (head + 1)], rows)


def test_the_start_is_the_papers():
    """Section 2.1.3: deviation sqrt(2 / 5d), and 2 / (n_layers sqrt(d)) where a step ends."""
    torch.manual_seed(0)
    net = build(Config(200, 64, 4, 3, 256))
    for name, p in net.named_parameters():
        if p.dim() > 1:
            wanted = 2 / 3 / 64**0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else (2 / 320) ** 0.5
            assert abs(p.std().item() / wanted - 1) < 0.05, name
        else:
            assert (p == (0 if name.endswith("bias") else 1)).all(), name
