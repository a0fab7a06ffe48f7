"""GPT-NeoX against Hugging Face's on random weights in their own files: every option that changes the numbers.

The reference computes rotary tables and softmax in float32 whatever its weights are; to compare in float64 float32 means float64 here.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.errors import InputError
from plait.models import neox
from plait.weights import config as configs
from plait.weights.opening import open_source
from plait.weights.rules import export, load

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

SMALL = dict(vocab_size=61, hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=80, max_position_embeddings=64)
SMALL |= dict(initializer_range=0.3, attn_implementation="eager", bos_token_id=None, eos_token_id=None)
CASES: dict[str, dict] = {
    "plain": {},
    "sequential": dict(use_parallel_residual=False),
    "no biases": dict(attention_bias=False),
    "eps": dict(layer_norm_eps=0.1),
    "tanh": dict(hidden_act="gelu_new"),
    "fast": dict(hidden_act="gelu_fast"),
    "relu": dict(hidden_act="relu"),
    "silu": dict(hidden_act="silu"),
    "tied": dict(tie_word_embeddings=True),
    "old keys": dict(rotary_pct=0.5, rotary_emb_base=200),
    "whole heads": dict(rotary_pct=1.0),
    "half of a pair is cut off": dict(rotary_pct=0.4),  # 16 channels, 6.4 of them
    "nothing turned": dict(rotary_pct=0.0),
    "linear": dict(rotary_pct=0.5, rope_scaling=dict(rope_type="linear", factor=3.0)),
    "new keys": dict(rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.75)),
    "llama3": dict(
        rope_parameters=dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
            rope_theta=500.0,
            partial_rotary_factor=1.0,
        )
    ),
    "yarn": dict(
        rope_parameters=dict(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=4.0, rope_theta=500.0, partial_rotary_factor=0.5
        )
    ),
}


def peer(**options):
    """A reference model with nothing left at zero or one."""
    torch.manual_seed(0)
    net = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**{**SMALL, **options})).eval()
    for name, p in net.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm.weight" in name), std=options.get("initializer_range", 0.3))
    return net


def ours(folder: Path):
    """(the model of a folder as Hugging Face saves it, its certificate, its settings)"""
    settings = configs.read(neox.KEYS, json.loads((folder / "config.json").read_text("utf-8")))
    config = neox.Config(**settings)
    with torch.device("meta"):
        net = neox.build(config)
    certificate = load(net, open_source(folder), neox.rules(config))
    return net.eval(), certificate, settings


@pytest.mark.parametrize("case", CASES)
def test_float64_is_theirs(case, wide, tmp_path, gaps):
    theirs = peer(**CASES[case]).double()
    theirs.save_pretrained(tmp_path)
    net, certificate, _ = ours(tmp_path)
    assert certificate.dtypes == {"float64": len(certificate.claimed)}
    found = gaps(theirs, net)
    assert max(found.values()) < 1e-9, found


@pytest.mark.parametrize("case", ["plain", "sequential", "yarn"])
def test_float32_is_near_theirs(case, tmp_path, gaps):
    theirs = peer(**CASES[case], initializer_range=0.1)
    theirs.save_pretrained(tmp_path)
    net, _, _ = ours(tmp_path)
    found = gaps(theirs, net)
    assert max(found.values()) < 5e-5, found


@pytest.mark.parametrize("case", CASES)
def test_what_we_write_they_read(case, wide, tmp_path, batch):
    """Their file, our model, our config.json and our names: their own loader makes the same model of it."""
    theirs = peer(**CASES[case]).double()
    theirs.save_pretrained(tmp_path)
    net, certificate, settings = ours(tmp_path)
    written = configs.write(neox.KEYS, settings)
    assert configs.read(neox.KEYS, written) == settings
    first, again = load_file(tmp_path / "model.safetensors"), export(net, neox.rules(neox.Config(**settings)), certificate)
    assert set(again) == set(first) and all(torch.equal(again[name], first[name]) for name in first)
    out = tmp_path / "ours"
    out.mkdir()
    (out / "config.json").write_text(json.dumps(written), "utf-8")
    save_file(again, out / "model.safetensors", metadata={"format": "pt"})
    twin, report = type(theirs).from_pretrained(out, output_loading_info=True, dtype=torch.float64, attn_implementation="eager")
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids, _, _ = batch(False)
    with torch.no_grad():
        assert (twin.eval()(ids).logits - theirs(ids).logits).abs().max() < 1e-10  # gelu_fast has rounded constants


def test_files_of_the_first_releases(tmp_path, batch):
    """Tables that hold no parameter, and names without `gpt_neox.` where a model was saved without its head."""
    theirs = peer(tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path)
    tensors = {name.removeprefix("gpt_neox."): t for name, t in load_file(tmp_path / "model.safetensors").items()}
    for layer in range(3):
        tensors[f"layers.{layer}.attention.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
        tensors[f"layers.{layer}.attention.masked_bias"] = torch.tensor(-1e9)
        tensors[f"layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    net, certificate, settings = ours(tmp_path)
    ids, _, _ = batch(False)
    with torch.no_grad():
        assert (net.heads["lm"](net(ids)["decoder"].x) - theirs(ids).logits).abs().max() < 1e-2
    assert len(certificate.dropped) == 9 and certificate.bare == "gpt_neox."
    again = export(net, neox.rules(neox.Config(**settings)), certificate)
    assert set(again) == set(tensors) - set(certificate.dropped)


def test_the_options_matter(wide, tmp_path, batch):
    """Were an option without effect on these inputs, its parity would prove nothing."""
    peer().double().save_pretrained(tmp_path)
    net, _, settings = ours(tmp_path)
    ids, _, _ = batch(False)
    for change in (dict(residual="pre"), dict(turned=0.5), dict(turned=0.0), dict(rope_base=9000.0), dict(norm_eps=1e-3)):
        other = neox.build(neox.Config(**{**settings, **change})).double().eval()
        other.load_state_dict(net.state_dict())
        with torch.no_grad():
            assert (other(ids)["decoder"].x - net(ids)["decoder"].x).abs().max() > 1e-6, change


REFUSED = {
    "dynamic": (dict(rope_scaling=dict(type="dynamic", factor=2.0)), "rope scaling of type 'dynamic' is not supported"),
    "share": (dict(rotary_pct="all"), "rotary_pct='all' must be a number from 0 to 1"),
    "residual": (dict(use_parallel_residual="yes"), "use_parallel_residual='yes' must be of type bool"),
    "activation": (dict(hidden_act="mish"), "hidden_act='mish' is not known here: there is 'gelu'"),
    "unknown": (dict(rope_interleaved=True), "rope_interleaved=True is not understood"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_named(case):
    raw, message = REFUSED[case]
    with pytest.raises(InputError) as refused:
        configs.read(neox.KEYS, {"model_type": "gpt_neox", **raw})
    assert message in str(refused.value)


@pytest.mark.parametrize(("share", "message"), [(1.5, "no share of a head's channels"), (0.2, "d_rotary=3 is odd")])
def test_shares_that_cannot_be_turned_are_refused(share, message):
    with pytest.raises(ValueError, match=message):
        neox.build(neox.Config(8, 48, 3, 1, 8, turned=share))


def test_missing_keys_have_their_defaults():
    whole = json.loads(transformers.GPTNeoXConfig().to_json_string(use_diff=False))
    assert configs.read(neox.KEYS, whole) == configs.read(neox.KEYS, {"model_type": "gpt_neox"})
