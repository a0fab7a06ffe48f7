"""Llama, Mistral and Qwen2 against Hugging Face's on random weights in their own files: every option that changes the numbers.

The reference computes norms, rotary tables and softmax in float32 whatever its weights are; to compare in float64 it runs here with
float32 meaning float64.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.errors import InputError
from plait.models import llama
from plait.weights import config as configs
from plait.weights.opening import open_source
from plait.weights.rules import export, load

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

VOCAB, LENGTH = 61, 23
SMALL = dict(vocab_size=VOCAB, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
SMALL |= dict(max_position_embeddings=64, initializer_range=0.3, attn_implementation="eager", pad_token_id=None)
STRETCH = {
    "linear": dict(rope_type="linear", factor=3.0),
    "llama3": dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
    "yarn": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=4.0),
}
CASES: dict[str, tuple[str, dict]] = {
    "plain": ("Llama", {}),
    "no shared key heads": ("Llama", dict(num_key_value_heads=None)),
    "one key head": ("Llama", dict(num_key_value_heads=1)),
    "head_dim": ("Llama", dict(head_dim=20)),
    "biases": ("Llama", dict(attention_bias=True, mlp_bias=True)),
    "tied": ("Llama", dict(tie_word_embeddings=True)),
    "eps": ("Llama", dict(rms_norm_eps=0.1)),
    "theta": ("Llama", dict(rope_parameters=dict(rope_type="default", rope_theta=200.0))),
    "linear": ("Llama", dict(rope_parameters=dict(rope_theta=500.0, **STRETCH["linear"]))),
    "llama3": ("Llama", dict(rope_parameters=dict(rope_theta=500.0, **STRETCH["llama3"]))),
    "yarn": ("Llama", dict(rope_parameters=dict(rope_theta=500.0, **STRETCH["yarn"]))),
    "yarn magnitude": ("Llama", dict(rope_parameters=dict(rope_theta=10000.0, attention_factor=0.7, **STRETCH["yarn"]))),
    "yarn mscale": ("Llama", dict(rope_parameters=dict(rope_theta=500.0, mscale=0.7, mscale_all_dim=1.3, **STRETCH["yarn"]))),
    "yarn long": (  # where the ramp over channels begins and ends depends on the base and on the usual 32 and 1 turns
        "Llama",
        dict(rope_parameters=dict(rope_theta=500.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=4096)),
    ),
    "gelu": ("Llama", dict(hidden_act="gelu")),
    "gelu tanh": ("Llama", dict(hidden_act="gelu_pytorch_tanh")),
    "relu": ("Llama", dict(hidden_act="relu")),
    "mistral": ("Mistral", dict(sliding_window=5)),
    "mistral without window": ("Mistral", dict(sliding_window=None)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen2 window": ("Qwen2", dict(use_sliding_window=True, sliding_window=6, max_window_layers=1)),
    "qwen2 layers": (
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    ),
}


def peer(family: str, **options):
    """A reference model with nothing left at zero or one."""
    made = getattr(transformers, f"{family}Config")(**{**SMALL, **options})
    torch.manual_seed(0)
    net = getattr(transformers, f"{family}ForCausalLM")(made).eval()
    for name, p in net.named_parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p, mean=float("norm" in name), std=0.3)
    return net


def ours(folder: Path, dtype: torch.dtype):
    """(the model of a folder as Hugging Face saves it, its certificate)"""
    settings = configs.read(llama.KEYS, json.loads((folder / "config.json").read_text("utf-8")))
    with torch.device("meta"):
        net = llama.build(llama.Config(**settings))
    certificate = load(net, open_source(folder), llama.RULES, dtype=dtype)
    return net.eval(), certificate


@pytest.mark.parametrize("case", CASES)
def test_float64_is_theirs(case, wide, tmp_path, record_property, gaps):
    family, options = CASES[case]
    theirs = peer(family, **options).double()
    theirs.save_pretrained(tmp_path)
    net, certificate = ours(tmp_path, None)
    assert certificate.dtypes == {"float64": len(certificate.claimed)}
    found = gaps(theirs, net)
    record_property("gap", max(found.values()))
    assert max(found.values()) < 1e-9, found


@pytest.mark.parametrize("case", ["plain", "biases", "llama3", "yarn", "mistral", "qwen2 window"])
def test_float32_is_near_theirs(case, tmp_path, gaps):
    family, options = CASES[case]
    theirs = peer(family, **{**options, "initializer_range": 0.1})
    theirs.save_pretrained(tmp_path)
    net, _ = ours(tmp_path, None)
    found = gaps(theirs, net)
    assert max(found.values()) < 5e-5, found


@pytest.mark.parametrize("case", CASES)
def test_what_we_write_they_read(case, wide, tmp_path, batch):
    """Their file, our model, our config.json and our names: their own loader makes the same model of it."""
    family, options = CASES[case]
    theirs = peer(family, **options).double()
    theirs.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text("utf-8"))
    net, certificate = ours(tmp_path, None)
    settings = configs.read(llama.KEYS, raw)
    written = configs.write(llama.KEYS, settings)
    assert configs.read(llama.KEYS, written) == settings
    first, again = load_file(tmp_path / "model.safetensors"), export(net, llama.RULES, certificate)
    assert list(again) == list(certificate.claimed) and set(again) == set(first)
    assert all(torch.equal(again[name], first[name]) for name in first)
    out = tmp_path / "ours"
    out.mkdir()
    (out / "config.json").write_text(json.dumps(written), "utf-8")
    save_file(again, out / "model.safetensors", metadata={"format": "pt"})
    twin, report = type(theirs).from_pretrained(out, output_loading_info=True, dtype=torch.float64, attn_implementation="eager")
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids, _, _ = batch(False)
    with torch.no_grad():
        assert (twin.eval()(ids).logits - theirs(ids).logits).abs().max() < 1e-12


@pytest.mark.parametrize("case", ["plain", "head_dim", "theta", "llama3", "yarn magnitude", "mistral", "qwen2 layers"])
def test_the_options_matter(case, wide, tmp_path, batch):
    """Were an option without effect on these inputs, its parity would prove nothing."""
    family, options = CASES[case]
    peer(family, **options).double().save_pretrained(tmp_path)
    net, _ = ours(tmp_path, None)
    settings = configs.read(llama.KEYS, json.loads((tmp_path / "config.json").read_text("utf-8")))
    changes = {"plain": dict(n_kv_heads=2, rope_base=9000.0), "head_dim": dict(norm_eps=1e-5), "theta": dict(rope_base=250.0)}
    changes |= {"llama3": dict(stretch=None), "yarn magnitude": dict(stretch={**(settings["stretch"] or {}), "magnitude": 1.0})}
    changes |= {"mistral": dict(window=6), "qwen2 layers": dict(window=[None, 4, 4])}
    other = llama.build(llama.Config(**{**settings, **changes[case]})).double().eval()
    other.load_state_dict(net.state_dict())
    ids, _, _ = batch(False)
    with torch.no_grad():
        assert (other(ids)["decoder"].x - net(ids)["decoder"].x).abs().max() > 1e-6


ROPE = dict(rope_theta=10000.0)
REFUSED = {
    "dynamic": (dict(rope_scaling=dict(type="dynamic", factor=2.0)), "rope scaling of type 'dynamic' is not supported"),
    "longrope": (dict(rope_parameters=dict(rope_type="longrope", short_factor=[1.0], long_factor=[2.0])), "'longrope' is not supported"),
    "truncate": (dict(rope_scaling=dict(STRETCH["yarn"], truncate=False)), "truncate=false"),
    "partial": (dict(rope_parameters=dict(ROPE, partial_rotary_factor=0.5)), "partial_rotary_factor=0.5 is not supported"),
    "unknown in rope": (dict(rope_scaling=dict(STRETCH["linear"], wobble=2)), "wobble=2, which is not understood"),
    "no mapping": (dict(rope_scaling="linear"), "rope_scaling='linear'"),
    "no number": (dict(rope_scaling=dict(STRETCH["linear"], factor="2")), "factor='2' must be a number"),
    "no base": (dict(rope_theta="big"), "rope_theta='big' must be a number"),
    "negative": (dict(hidden_size=-8), "hidden_size=-8"),
    "lacking": (dict(rope_scaling=dict(rope_type="llama3", factor=2.0)), "lacks low_freq_factor, high_freq_factor"),
    "interleaved": (dict(rope_interleaved=True), "rope_interleaved=True is not understood"),
    "activation": (dict(hidden_act="mish"), "hidden_act='mish' is not known here: there is 'gelu'"),
    "unknown": (dict(residual_multiplier=0.5), "residual_multiplier=0.5 is not understood"),
    "quantised": (dict(quantization_config=dict(bits=4)), "quantization_config={'bits': 4} is not understood"),
    "cross": (dict(add_cross_attention=True), "add_cross_attention=True is not understood"),
    "mrope": (dict(model_type="qwen2", use_mrope=True), "use_mrope=True is not understood"),
    "layer type": (dict(model_type="qwen2", layer_types=["chunked_attention"]), "layer_types: chunked_attention is not supported"),
    "no window": (dict(model_type="qwen2", layer_types=["sliding_attention"]), "give no window"),
    "family": (dict(model_type="cohere"), "model_type='cohere': this page reads 'llama', 'mistral' or 'qwen2'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_named(case):
    raw, message = REFUSED[case]
    with pytest.raises(InputError) as refused:
        configs.read(llama.KEYS, {"model_type": "llama", **raw})
    assert message in str(refused.value)


@pytest.mark.parametrize("value", [dict(rope_scaling=None), dict(rope_interleaved=False, pretraining_tp=2, use_cache=False, novelty=None)])
def test_what_changes_nothing_is_let_through(value):
    assert configs.read(llama.KEYS, {"model_type": "llama", **value}) == configs.read(llama.KEYS, {"model_type": "llama"})


def test_old_keys_say_the_same():
    """Before `rope_parameters` and `layer_types` there were `rope_theta`, `rope_scaling` with `type`, and `max_window_layers`."""
    old = dict(model_type="llama", rope_theta=500.0, rope_scaling=dict(type="yarn", factor=4), max_position_embeddings=64)
    new = transformers.LlamaConfig(max_position_embeddings=64, rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=500.0))
    found = configs.read(llama.KEYS, old)
    assert found == configs.read(llama.KEYS, {"max_position_embeddings": 64, **json.loads(new.to_json_string(use_diff=False))}) | {
        "n_kv_heads": None,
        "d_head": None,
    }
    assert found["stretch"] | {"magnitude": 0} == dict(kind="yarn", factor=4.0, fast=32.0, slow=1.0, original_length=64, magnitude=0)
    windows = dict(use_sliding_window=True, sliding_window=6, max_window_layers=1, num_hidden_layers=3)
    types = transformers.Qwen2Config(**windows).layer_types
    found = configs.read(llama.KEYS, {"model_type": "qwen2", **windows})["window"]
    assert found == [6 if kind == "sliding_attention" else None for kind in types] == [None, 6, 6]


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2"])
def test_missing_keys_have_their_defaults(family):
    whole = json.loads(getattr(transformers, f"{family}Config")().to_json_string(use_diff=False))
    wanted = configs.read(llama.KEYS, whole)
    found = configs.read(llama.KEYS, {"model_type": whole["model_type"]})
    wanted |= {"d_head": None, "n_kv_heads": wanted["n_kv_heads"] if found["n_kv_heads"] else None}  # they store what follows from others
    assert found == wanted
