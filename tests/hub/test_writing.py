"""Checkpoints written again: bit for bit, and opened by the reference implementations of the formats."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import plait as library
from plait.errors import InputError
from plait.hub import writing
from plait.hub.writing import convert

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

KINDS = ("bert", "albert", "t5", "bart", "marian", "gpt2", "llama", "qwen2", "mistral")


def same(a: dict, b: dict) -> None:
    """Names and bits."""
    assert set(a) == set(b)
    for name, t in a.items():
        assert t.dtype == b[name].dtype and t.shape == b[name].shape, name
        assert torch.equal(t.contiguous().view(torch.uint8), b[name].contiguous().view(torch.uint8)), name


@torch.no_grad()
def logits(peer, ids):
    more = {"decoder_input_ids": ids.flip(1)} if peer.config.is_encoder_decoder else {}
    return peer(input_ids=ids, **more).logits


# ---- Hugging Face's layout ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_written_again_bit_for_bit(peer_of, kind, tmp_path):
    peer = peer_of(kind)
    peer.save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", "hf", tmp_path / "b")
    a, b = tmp_path / "a" / "model.safetensors", tmp_path / "b" / "model.safetensors"
    same(load_file(a), load_file(b))
    assert a.read_bytes() == b.read_bytes()  # the order and the header too
    before, after = (json.loads((tmp_path / x / "config.json").read_text()) for x in "ab")
    assert before == after
    again, ids = type(peer).from_pretrained(tmp_path / "b").eval(), torch.randint(3, 31, (2, 9))
    assert torch.equal(logits(peer, ids), logits(again, ids))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_and_old_pickles_with_tensors_that_a_model_computes(peer_of, dtype, tmp_path):
    """GPT-2's files held its causal masks, Marian's in pickles its sinusoids: what is left out or computed here is written again."""
    for kind in ("gpt2", "marian"):
        folder = tmp_path / kind
        peer = peer_of(kind).to(dtype)
        peer.config.save_pretrained(folder)
        state = dict(peer.state_dict())
        if kind == "gpt2":
            state["transformer.h.0.attn.bias"] = torch.ones(40, 40).tril().view(1, 1, 40, 40)
        else:
            assert "model.encoder.embed_positions.weight" in state
        torch.save(state, folder / "pytorch_model.bin")
        convert(folder, "hf", tmp_path / f"{kind}-out")
        same(load_file(tmp_path / f"{kind}-out" / "model.safetensors"), state)


def test_sinusoids_of_full_size_are_the_reference_bit_for_bit_and_others_a_fault(peer_of, tmp_path):
    from plait.hub.checkpoints import open_net

    peer = peer_of("marian", d_model=512, encoder_attention_heads=8, decoder_attention_heads=8, max_position_embeddings=512)
    peer.save_pretrained(tmp_path / "a")
    state, name = dict(peer.state_dict()), "model.decoder.embed_positions.weight"
    for found, exact in ((state[name], True), (torch.nextafter(state[name], torch.tensor(9.0)), False)):
        save_file({k: t.clone() for k, t in {**state, name: found}.items()}, tmp_path / "a" / "model.safetensors")
        certificate = open_net(tmp_path / "a")[1]
        assert certificate.computed[name].exact == exact and not certificate.dropped
        assert ("equal bit for bit" if exact else "equal within one rounding of float32") in str(certificate)
        convert(tmp_path / "a", "hf", tmp_path / f"out-{exact}")
        assert torch.equal(load_file(tmp_path / f"out-{exact}" / "model.safetensors")[name], found)
    interleaved = state[name].unflatten(1, (2, -1)).mT.flatten(1)
    save_file({k: t.clone() for k, t in {**state, name: interleaved}.items()}, tmp_path / "a" / "model.safetensors")
    with pytest.raises(InputError, match=rf"{name} \[512, 512\] differs from the sinusoids"):
        open_net(tmp_path / "a")


def test_large_models_are_written_in_shards(peer_of, llama, tmp_path, monkeypatch):
    whole = writing.write_model
    monkeypatch.setattr(writing, "write_model", lambda folder, tensors: whole(folder, tensors, shard=60_000))
    convert(llama, "hf", tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "b").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    convert(tmp_path / "b", "hf", tmp_path / "c")  # our own reader of shards
    peer = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "b").eval()
    same(peer.state_dict(), peer_of("llama").state_dict())


def test_minilm_is_written_again_as_it_was_released(real, tmp_path):
    folder = real("minilm")
    convert(folder, "hf", tmp_path / "b")
    for name in ("model.safetensors", "tokenizer.json", "1_Pooling/config.json", "modules.json"):
        assert (folder / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((folder / "config.json").read_text()) == json.loads((tmp_path / "b" / "config.json").read_text())
    assert np.array_equal(library.load(folder)("a b"), library.load(tmp_path / "b")("a b"))


# ---- what cannot be written ----


def test_a_place_that_is_taken_is_left_alone(llama, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "a.gguf").write_text("x")
    for to, name in (("hf", "full"), ("gguf", "full"), ("gguf", "a.gguf"), ("hf", "a.gguf")):
        with pytest.raises(InputError, match="choose another place"):
            convert(llama, to, tmp_path / name)
    assert (tmp_path / "a.gguf").read_text() == (tmp_path / "full" / "mine").read_text() == "x"
    (tmp_path / "empty").mkdir()
    convert(llama, "hf", tmp_path / "empty")


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_full_disk_leaves_nothing(to, llama, tmp_path, monkeypatch):
    def full(*arguments, **options):
        arguments[0].joinpath("half").touch() if to == "hf" else arguments[0].write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "write_model" if to == "hf" else "write_gguf", full)
    with pytest.raises(InputError, match="the disk is full"):
        convert(llama, to, tmp_path / "sub" / "out")
    assert not list((tmp_path / "sub").iterdir())


def test_a_parent_that_is_a_file(llama, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        convert(llama, "hf", tmp_path / "file" / "out")


def test_all_that_a_gguf_cannot_say_is_said_at_once(peer_of, tmp_path):
    """Windows, stretched positions and no tokenizer."""
    rope = dict(rope_type="yarn", rope_theta=10000.0, factor=8.0, original_max_position_embeddings=32)
    peer = peer_of("mistral", rope_parameters=rope)
    peer.save_pretrained(tmp_path / "a")
    with pytest.raises(InputError) as caught:
        convert(tmp_path / "a", "gguf", tmp_path / "b")
    said = str(caught.value)
    assert "window=7" in said and "yarn" in said and "holds no tokenizer" in said and not (tmp_path / "b").exists()


def test_other_pages_and_our_own_runs_are_refused_with_the_reason(peer_of, run, tmp_path):
    peer_of("bert").save_pretrained(tmp_path / "a")
    with pytest.raises(InputError, match="GGUF is written for models of the page llama"):
        convert(tmp_path / "a", "gguf", tmp_path / "b")
    for to in ("hf", "gguf"):
        with pytest.raises(InputError, match="is a run of the model 'modern', which was designed here"):
            convert(run, to, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_numbers_that_the_type_cannot_hold(llama, tmp_path):
    state = load_file(llama / "model.safetensors")
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"):
        state[name][0, 0] = 1e9
    save_file(state, llama / "model.safetensors")
    for dtype in ("f16", "q8_0"):
        with pytest.raises(InputError, match="too large for") as caught:
            convert(llama, "gguf", tmp_path / "b", dtype)
        assert len(caught.value.faults) == 2
    with pytest.raises(InputError, match="too large for float16"):
        convert(llama, "hf", tmp_path / "b", "f16")
    with pytest.raises(InputError, match="--dtype q8_0"):
        convert(llama, "hf", tmp_path / "b", "q8_0")
    convert(llama, "hf", tmp_path / "b", "bf16")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == "bfloat16"
