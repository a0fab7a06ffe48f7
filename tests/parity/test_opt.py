"""OPT against Hugging Face's on random weights in their own files: every option that changes the numbers."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.errors import InputError
from plait.models import opt
from plait.weights import config as configs
from plait.weights.opening import open_source
from plait.weights.rules import export, load

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

SMALL = dict(vocab_size=61, hidden_size=48, num_hidden_layers=3, num_attention_heads=3, ffn_dim=80, max_position_embeddings=64)
SMALL |= dict(word_embed_proj_dim=48, attn_implementation="eager", bos_token_id=None, eos_token_id=None, pad_token_id=None)
CASES: dict[str, dict] = {
    "plain": {},
    "350m": dict(do_layer_norm_before=False, word_embed_proj_dim=20),
    "narrow embeddings": dict(word_embed_proj_dim=20),
    "post": dict(do_layer_norm_before=False),
    "no final norm": dict(_remove_final_layer_norm=True),
    "no biases": dict(enable_bias=False),
    "plain norms": dict(layer_norm_elementwise_affine=False),
    "gelu": dict(activation_function="gelu"),
    "untied": dict(tie_word_embeddings=False),
    "untied and narrow": dict(tie_word_embeddings=False, word_embed_proj_dim=20),
}


def peer(**options):
    """A reference model with nothing left at zero or one."""
    torch.manual_seed(0)
    net = transformers.OPTForCausalLM(transformers.OPTConfig(**{**SMALL, **options})).eval()
    for name, p in net.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm.weight" in name), std=0.3)
    return net


def ours(folder: Path):
    """(the model of a folder as Hugging Face saves it, its certificate, its config)"""
    config = opt.Config(**configs.read(opt.KEYS, json.loads((folder / "config.json").read_text("utf-8"))))
    with torch.device("meta"):
        net = opt.build(config)
    return net.eval(), load(net, open_source(folder), opt.rules(config)), config


@pytest.mark.parametrize("case", CASES)
def test_float64_is_theirs(case, wide, tmp_path, gaps):
    theirs = peer(**CASES[case]).double()
    theirs.save_pretrained(tmp_path)
    found = gaps(theirs, ours(tmp_path)[0])
    assert max(found.values()) < 1e-9, found


@pytest.mark.parametrize("case", ["plain", "350m"])
def test_float32_is_theirs(case, tmp_path, gaps):
    theirs = peer(**CASES[case])
    theirs.save_pretrained(tmp_path)
    found = gaps(theirs, ours(tmp_path)[0])
    assert max(found.values()) < 5e-5 * 20, found  # logits reach 20 here


@pytest.mark.parametrize("case", CASES)
def test_written_again_it_is_the_same(case, tmp_path):
    theirs = peer(**CASES[case])
    theirs.save_pretrained(tmp_path)
    net, certificate, config = ours(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    again = export(net, opt.rules(config), certificate)
    assert set(again) == set(tensors) and all(torch.equal(again[name], tensors[name]) for name in tensors)
    raw = configs.write(opt.KEYS, asdict(config))
    back = transformers.OPTForCausalLM(transformers.OPTConfig(**raw))
    save_file(export(net, opt.rules(config)), tmp_path / "bare.safetensors")
    missing = back.load_state_dict(load_file(tmp_path / "bare.safetensors"), strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}


REFUSED = {
    "layerdrop": (dict(layerdrop=0.1), "layerdrop=0.1 is not understood"),
    "activation": (dict(activation_function="mish"), "activation_function='mish' is not known here"),
    "unknown": (dict(alibi=True), "alibi=True is not understood"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_named(case):
    raw, message = REFUSED[case]
    with pytest.raises(InputError) as refused:
        configs.read(opt.KEYS, {"model_type": "opt", **raw})
    assert message in str(refused.value)
