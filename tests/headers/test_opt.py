"""OPT's released sizes: names, shapes and totals as the reference builds them on `meta` from the released settings."""

import pytest
import torch

from plait.core.model import parameters
from plait.models.opt import PRESETS, Config, build, rules
from plait.weights.rules import export, load
from plait.weights.source import Held

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
SIZES = [size for size in PRESETS if size != "tiny"]


def reference(c: Config):
    config = transformers.OPTConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        ffn_dim=c.d_ff,
        word_embed_proj_dim=c.d_embed or c.d_model,
        do_layer_norm_before=c.residual == "pre",
        max_position_embeddings=c.max_length,
    )
    with torch.device("meta"):
        return transformers.OPTForCausalLM(config)


@pytest.mark.parametrize("size", SIZES)
def test_names_shapes_and_totals(size):
    c = Config(**PRESETS[size])
    theirs = reference(c)
    with torch.device("meta"):
        net = build(c)
    wanted = {name: tuple(t.shape) for name, t in theirs.state_dict().items() if name != "lm_head.weight"}  # tied
    assert {name: tuple(t.shape) for name, t in export(net, rules(c)).items()} == wanted
    assert parameters(net) == sum(p.numel() for p in theirs.parameters())


def test_there_and_back_bit_for_bit():
    c = Config(17, 12, 3, 2, 20, d_embed=8, residual="post", max_length=9)
    draw = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randint(-(2**15), 2**15 - 1, tuple(t.shape), generator=draw).to(torch.int16).view(torch.bfloat16)
        for name, t in reference(c).state_dict().items()
        if name != "lm_head.weight"
    }
    with torch.device("meta"):
        net = build(c)
    again = export(net, rules(c), load(net, Held(tensors), rules(c)))
    assert list(again) == list(tensors)
    assert all(torch.equal(again[name].view(torch.int16), tensors[name].view(torch.int16)) for name in tensors)
