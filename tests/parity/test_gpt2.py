"""GPT-2 against Hugging Face's on random weights in their own files: every option that changes the numbers.

The reference computes the loss in float32 whatever its weights are; to compare in float64 float32 means float64 here.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.errors import InputError
from plait.models import gpt2
from plait.weights import config as configs
from plait.weights.opening import open_source
from plait.weights.rules import export, load

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

VOCAB, LENGTH = 61, 23
SMALL = dict(vocab_size=VOCAB, n_positions=32, n_embd=48, n_layer=3, n_head=4, initializer_range=0.3, attn_implementation="eager")
SMALL |= dict(bos_token_id=None, eos_token_id=None)
CASES: dict[str, dict] = {
    "plain": {},
    "n_inner": dict(n_inner=50),
    "eps": dict(layer_norm_epsilon=0.1),
    "gelu": dict(activation_function="gelu"),
    "relu": dict(activation_function="relu"),
    "silu": dict(activation_function="silu"),
    "gelu_fast": dict(activation_function="gelu_fast"),
    "gelu_accurate": dict(activation_function="gelu_accurate"),
    "tanh": dict(activation_function="gelu_pytorch_tanh"),
    "quick": dict(activation_function="quick_gelu"),
    "square": dict(activation_function="relu2"),
    "unscaled": dict(scale_attn_weights=False),
    "depth": dict(scale_attn_by_inverse_layer_idx=True),
    "depth alone": dict(scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True),
    "untied": dict(tie_word_embeddings=False),
}


def peer(**options):
    """A reference model with nothing left at zero or one."""
    torch.manual_seed(0)
    net = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**SMALL, **options})).eval()
    for name, p in net.named_parameters():
        torch.nn.init.normal_(p, mean=float(".ln_" in name and name.endswith("weight")), std=options.get("initializer_range", 0.3))
    return net


def ours(folder: Path, dtype: torch.dtype):
    """(the model of a folder as Hugging Face saves it, its certificate)"""
    settings = configs.read(gpt2.KEYS, json.loads((folder / "config.json").read_text("utf-8")))
    with torch.device("meta"):
        net = gpt2.build(gpt2.Config(**settings))
    certificate = load(net, open_source(folder), gpt2.RULES, dtype=dtype)
    return net.eval(), certificate


@pytest.mark.parametrize("case", CASES)
def test_float64_is_theirs(case, wide, tmp_path, gaps):
    theirs = peer(**CASES[case]).double()
    theirs.save_pretrained(tmp_path)
    net, certificate = ours(tmp_path, None)
    assert certificate.dtypes == {"float64": len(certificate.claimed)}
    found = gaps(theirs, net)
    assert max(found.values()) < 1e-9, found


@pytest.mark.parametrize("case", ["plain", "depth", "untied"])
def test_float32_is_near_theirs(case, tmp_path, gaps):
    theirs = peer(**CASES[case], initializer_range=0.1)
    theirs.save_pretrained(tmp_path)
    net, _ = ours(tmp_path, None)
    found = gaps(theirs, net)
    assert max(found.values()) < 5e-5, found


def test_scores_in_float32_are_the_same_function(tmp_path, gaps):
    """reorder_and_upcast_attn only says in which precision scores are computed; stanford-crfm's models have it with 1 / layer."""
    theirs = peer(reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True, initializer_range=0.1)
    theirs.save_pretrained(tmp_path)
    assert max(gaps(theirs, ours(tmp_path, None)[0]).values()) < 5e-5


@pytest.mark.parametrize("case", CASES)
def test_what_we_write_they_read(case, tmp_path, batch):
    theirs = peer(**CASES[case]).double()
    theirs.save_pretrained(tmp_path)
    net, certificate = ours(tmp_path, None)
    settings = configs.read(gpt2.KEYS, json.loads((tmp_path / "config.json").read_text("utf-8")))
    written = configs.write(gpt2.KEYS, settings)
    assert configs.read(gpt2.KEYS, written) == settings
    first, again = load_file(tmp_path / "model.safetensors"), export(net, gpt2.RULES, certificate)
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


def test_files_of_the_first_release(tmp_path, batch):
    """Names without `transformer.`, masks stored as tensors, and in pickles the tied head once more."""
    theirs = peer()
    theirs.save_pretrained(tmp_path)
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(tmp_path / "model.safetensors").items()}
    for layer in range(SMALL["n_layer"]):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    net, certificate = ours(tmp_path, None)
    ids, _, _ = batch(False)
    with torch.no_grad():
        assert (net.heads["lm"](net(ids)["decoder"].x) - theirs(ids).logits).abs().max() < 1e-2
    assert len(certificate.dropped) == 6 and certificate.ties["lm_head.weight"].found == "copy" and certificate.bare == "transformer."
    again = export(net, gpt2.RULES, certificate)
    assert set(again) == set(tensors) - set(certificate.dropped)
    assert all(torch.equal(again[name], tensors[name]) for name in again)


def test_the_options_matter(tmp_path, batch):
    peer().double().save_pretrained(tmp_path)
    net, _ = ours(tmp_path, None)
    ids, _, _ = batch(False)
    settings = configs.read(gpt2.KEYS, json.loads((tmp_path / "config.json").read_text("utf-8")))
    for change in (dict(scores="depth"), dict(scores="both"), dict(activation="gelu"), dict(norm_eps=1e-3)):
        other = gpt2.build(gpt2.Config(**{**settings, **change})).double().eval()
        other.load_state_dict(net.state_dict())
        with torch.no_grad():
            assert (other(ids)["decoder"].x - net(ids)["decoder"].x).abs().max() > 1e-6


def test_dropouts_are_read_each_for_itself():
    settings = configs.read(gpt2.KEYS, {"model_type": "gpt2", "resid_pdrop": 0.2, "embd_pdrop": 0.0, "attn_pdrop": 0.2})
    assert (settings["dropout"], settings["embed_dropout"], settings["attention_dropout"]) == (0.2, 0.0, None)
    net = gpt2.build(gpt2.Config(**{**settings, **dict(vocab_size=9, d_model=8, n_heads=2, n_layers=1)}))
    assert net.decoder.embed.dropout.p == 0.0
    assert net.decoder.blocks[0].self_attn.dropout == net.decoder.blocks[0].residual.dropout == 0.2
    written = configs.write(gpt2.KEYS, settings)
    assert (written["resid_pdrop"], written["embd_pdrop"], written["attn_pdrop"]) == (0.2, 0.0, 0.2)


REFUSED = {
    "activation": (dict(activation_function="mish"), "activation_function='mish' is not known here: there is 'gelu'"),
    "cross": (dict(add_cross_attention=True), "add_cross_attention=True is not understood"),
    "unknown": (dict(alibi=True), "alibi=True is not understood"),
    "scales": (dict(scale_attn_weights="yes"), "must be true or false"),
    "size": (dict(n_embd="768"), "n_embd='768' must be of type int"),
    "pruned": (dict(pruned_heads={"0": [1]}), "pruned_heads={'0': [1]} is not understood"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_named(case):
    raw, message = REFUSED[case]
    with pytest.raises(InputError) as refused:
        configs.read(gpt2.KEYS, {"model_type": "gpt2", **raw})
    assert message in str(refused.value)


def test_missing_keys_have_their_defaults():
    whole = json.loads(transformers.GPT2Config().to_json_string(use_diff=False))
    assert configs.read(gpt2.KEYS, whole) == configs.read(gpt2.KEYS, {"model_type": "gpt2"})
