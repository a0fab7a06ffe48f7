"""Released sizes, names and shapes of Llama and of what shares its page."""

import pytest
import torch

from plait.core.model import parameters
from plait.models.llama import PRESETS, RULES, Config, build, gguf_rules
from plait.weights.rules import export, load
from plait.weights.source import Held

RELEASED = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "qwen2-0.5b": 494_032_768,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-3.2-1b": 1_235_814_400,
    "smollm2-1.7b": 1_711_376_384,
    "llama-3.2-3b": 3_212_749_824,
    "llama-2-7b": 6_738_415_616,
    "mistral-7b": 7_241_732_096,
    "qwen2-7b": 7_615_616_512,
    "llama-3-8b": 8_030_261_248,
    "llama-2-13b": 13_015_864_320,
}


# Mistral's first release is Llama 3 8B with another vocabulary and a window, so it is no preset of its own.
SIZES = {**PRESETS, "mistral-7b": dict(d_ff=14336, n_kv_heads=8, max_length=32768, norm_eps=1e-5, window=4096)}


def test_every_preset_has_its_total():
    assert set(SIZES) == {"tiny", *RELEASED}


@pytest.mark.parametrize("size", RELEASED)
def test_the_total_is_the_released_one(size):
    with torch.device("meta"):
        assert parameters(build(Config(**SIZES[size]))) == RELEASED[size]


def names(c: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of meta-llama's model.safetensors as Hugging Face has them, written out."""
    d, f, k = c.d_model, c.d_ff, c.d_head or c.d_model // c.n_heads
    q, kv = c.n_heads * k, (c.n_kv_heads or c.n_heads) * k
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, d)}
    for i in range(c.n_layers):
        layer = f"model.layers.{i}."
        shapes |= {layer + "input_layernorm.weight": (d,), layer + "post_attention_layernorm.weight": (d,)}
        shapes |= {layer + f"mlp.{name}_proj.weight": (f, d) for name in ("gate", "up")}
        shapes |= {layer + "mlp.down_proj.weight": (d, f), layer + "self_attn.o_proj.weight": (d, q)}
        for name, width in (("q", q), ("k", kv), ("v", kv)):
            shapes[layer + f"self_attn.{name}_proj.weight"] = (width, d)
            if name in c.bias:
                shapes[layer + f"self_attn.{name}_proj.bias"] = (width,)
    shapes["model.norm.weight"] = (d,)
    return shapes if c.tie else {**shapes, "lm_head.weight": (c.vocab_size, d)}


@pytest.mark.parametrize("size", RELEASED)
def test_every_released_name_and_shape_is_claimed(size):
    c = Config(**SIZES[size])
    with torch.device("meta"):
        found = {name: tuple(t.shape) for name, t in export(build(c), RULES).items()}
    assert found == names(c)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("bias", ["", "qkv"])
def test_there_and_back_bit_for_bit(tie, bias):
    c = Config(17, 12, 3, 2, 20, n_kv_heads=1, d_head=6, bias=bias, tie=tie)
    draw = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randint(-(2**15), 2**15 - 1, shape, generator=draw).to(torch.int16).view(torch.bfloat16)
        for name, shape in names(c).items()
    }
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    with torch.device("meta"):
        net = build(c)
    certificate = load(net, Held(tensors), RULES)
    assert list(certificate.dropped) == ["model.layers.0.self_attn.rotary_emb.inv_freq"]
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16} and certificate.dtypes == {"bfloat16": len(tensors) - 1}
    again = export(net, RULES, certificate)
    assert set(again) == set(names(c))
    for name, t in again.items():
        assert torch.equal(t.view(torch.int16), tensors[name].view(torch.int16)), name


def test_the_start_is_the_papers():
    """Deviation 0.02, smaller by sqrt(2 n_layers) where a residual step ends, so that the stream does not grow with depth."""
    torch.manual_seed(0)
    net = build(Config(200, 64, 4, 3, 128))
    deviations = {name: p.std().item() for name, p in net.named_parameters() if p.dim() > 1}
    for name, found in deviations.items():
        wanted = 0.02 / 6**0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        assert abs(found / wanted - 1) < 0.05, name
    assert all((p == (0 if name.endswith("bias") else 1)).all() for name, p in net.named_parameters() if p.dim() == 1)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_gguf_there_and_back(architecture):
    """Names as llama.cpp writes them; for its architecture llama q and k are re-ordered, head by head, from halves to pairs."""
    c = Config(17, 12, 2, 2, 20, n_kv_heads=1, bias="qkv", tie=True)
    torch.manual_seed(0)
    net = build(c)
    made = export(net, gguf_rules(c, architecture))
    assert set(made) == {
        "token_embd.weight",
        "output_norm.weight",
        *(
            f"blk.{i}.{name}.weight"
            for i in range(2)
            for name in ("attn_norm", "ffn_norm", "ffn_up", "ffn_gate", "ffn_down", "attn_output")
        ),
        *(f"blk.{i}.attn_{name}.{w}" for i in range(2) for name in "qkv" for w in ("weight", "bias")),
    }
    q = net.decoder.blocks[1].self_attn.q_proj.weight.detach()
    pairs = q.reshape(2, 2, 3, 12).swapaxes(1, 2).reshape(12, 12)  # convert_hf_to_gguf.py's permute
    assert torch.equal(made["blk.1.attn_q.weight"], pairs if architecture == "llama" else q)
    with torch.device("meta"):
        twin = build(c)
    load(twin, Held(made), gguf_rules(c, architecture))
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), net.parameters(), strict=True))
