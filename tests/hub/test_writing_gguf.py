"""GGUFs written: the numbers, ids and scores that the format's own package, llama.cpp and the reference library find in them."""

import gc
import json

import numpy as np
import pytest
import sentencepiece
import torch
from tokenizers import pre_tokenizers

import plait as library
from plait.errors import InputError
from plait.hub import writing
from plait.hub.writing import convert
from plait.models import llama, llama_gguf
from plait.weights.gguf import GgufFile
from plait.weights.gguf_blocks import packed
from plait.weights.gguf_writer import Stored, write_gguf

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

TEXTS = ("the cat's at 100000\n\n  end", "Ünïcödé === 中文", " don't  the ", "")


@torch.no_grad()
def logits(peer, ids):
    more = {"decoder_input_ids": ids.flip(1)} if peer.config.is_encoder_decoder else {}
    return peer(input_ids=ids, **more).logits


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", [None, "f16", "bf16", "q8_0"])
def test_a_gguf_has_the_numbers_that_its_own_package_reads(words, peer_of, kind, dtype, tmp_path):
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


def test_q8_0_rounds_halves_away_from_zero():
    """Random numbers never lie on a half: here d is 1, and every number is one."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    values = torch.tensor([[127.0, *(i + 0.5 for i in range(-16, 15))]])
    wanted = gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(packed(values, "Q8_0").numpy(), wanted.reshape(-1))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_there_and_back_is_the_reference(kind, peer_of, words, tmp_path):
    """Hugging Face -> GGUF -> Hugging Face: the same tensors, ids and template; a GGUF written again has the same bytes."""
    peer = peer_of(kind, bos_token_id=0)
    peer.save_pretrained(tmp_path / "a")
    # Where config.json says qwen2, AutoTokenizer takes Qwen2's way of splitting words, whatever tokenizer.json says: so it says that one.
    qwen = transformers.Qwen2Tokenizer().backend_tokenizer
    words(tmp_path / "a", *((qwen.pre_tokenizer, qwen.normalizer) if kind == "qwen2" else ()))
    convert(tmp_path / "a", "gguf", tmp_path / "x.gguf")
    convert(tmp_path / "x.gguf", "gguf", tmp_path / "y.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "y.gguf").read_bytes()
    convert(tmp_path / "y.gguf", "hf", tmp_path / "b")
    again, ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval(), library.load(tmp_path / "x.gguf")
    state = peer.state_dict()
    assert type(again) is type(peer) and again.state_dict().keys() == state.keys()
    assert all(torch.equal(t, state[name]) for name, t in again.state_dict().items())
    before, after = (transformers.AutoTokenizer.from_pretrained(tmp_path / x) for x in "ab")
    for text in (*TEXTS, "e\u0301 </s> x"):
        assert before(text)["input_ids"] == after(text)["input_ids"]
        assert "</s>" in text or after(text)["input_ids"] == ours.encode(text)
    assert after.chat_template == before.chat_template == "{{ messages }}" and after.eos_token == "</s>"
    ids = torch.tensor([[5, 70, 280, 9]])
    np.testing.assert_allclose(ours.logits(ids)[0], logits(peer, ids)[0], atol=5e-5)


SPLITTERS = {
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
}


@pytest.mark.parametrize("name", SPLITTERS)
def test_how_words_are_split_is_found_by_what_it_does(words, name, llama, tmp_path):
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


def test_smollm2_as_released(real, tmp_path):
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


STRETCH = dict(rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
STRETCH |= dict(original_max_position_embeddings=32)


def test_llama_3s_stretch_goes_through_its_divisors(peer_of, words, tmp_path):
    """A GGUF has no key for it: the settings are found again in the tensor that it has instead, and written into a config.json."""
    peer = peer_of("llama", rope_parameters=STRETCH, max_position_embeddings=256)
    peer.save_pretrained(tmp_path / "a")
    words(tmp_path / "a")
    convert(tmp_path / "a", "gguf", tmp_path / "x.gguf")
    rates = 100.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    divisors = GgufFile(tmp_path / "x.gguf").read("rope_freqs.weight")
    torch.testing.assert_close(divisors.double(), rates / peer.model.rotary_emb.inv_freq.double(), rtol=1e-6, atol=0)
    convert(tmp_path / "x.gguf", "gguf", tmp_path / "y.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "y.gguf").read_bytes()
    convert(tmp_path / "x.gguf", "hf", tmp_path / "b")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "b").eval()
    assert again.config.rope_parameters == peer.config.rope_parameters
    ids = torch.randint(300, (1, 100), generator=torch.Generator().manual_seed(1))  # three times as far as the length it began with
    assert torch.equal(logits(again, ids), logits(peer, ids))
    np.testing.assert_allclose(library.load(tmp_path / "x.gguf").logits(ids)[0], logits(peer, ids)[0], atol=1e-4)


@pytest.mark.parametrize("size", ["llama-3.2-1b", "llama-3.2-3b"])
def test_the_stretch_of_released_sizes_is_found_in_float32(size):
    settings = llama.Config(**llama.PRESETS[size])
    width = settings.d_head or settings.d_model // settings.n_heads
    found = llama_gguf.divisors(settings.rope_base, settings.stretch, width).float()
    assert llama_gguf.stretch_of(found, settings.rope_base) == settings.stretch


@pytest.mark.parametrize("wrong", [[1.0] * 8, [1.0] * 4 + [8.0] * 4, [float("nan")] * 8, [0.0] * 8, [1.0, 1.1, 1.2, 7, 1.3, 8, 8, 8]])
def test_divisors_that_are_no_stretch_are_refused(wrong, peer_of, words, tmp_path):
    peer_of("llama", rope_parameters=STRETCH).save_pretrained(tmp_path / "a")
    words(tmp_path / "a")
    convert(tmp_path / "a", "gguf", tmp_path / "x.gguf")
    file = GgufFile(tmp_path / "x.gguf")
    stored = {name: Stored(file.types[name], file.shapes()[name], file.raw(name)) for name in file.shapes()}
    stored["rope_freqs.weight"] = Stored("F32", (8,), torch.tensor(wrong).view(torch.uint8))
    write_gguf(tmp_path / "y.gguf", file.metadata, stored, file.key_types)
    with pytest.raises(InputError, match=r"rope_freqs.weight|no model can be built"):
        library.load(tmp_path / "y.gguf")


# ---- llama.cpp ----


@pytest.fixture
def llama_cpp():
    """llama.cpp, through a package that carries it whole. Its logs go past pytest to the terminal."""
    api = pytest.importorskip("cyllama.llama.llama_cpp", reason="cyllama is not installed (pip install 'plait[bench]')")
    api.disable_logging()
    return api


def asked(api, path, ids, texts) -> tuple[np.ndarray, list[list[int]]]:
    """(scores [L, V] after each id, ids of each text) as llama.cpp has them of the GGUF at `path`, in float32 throughout."""

    class Model(api.LlamaModel):
        n_vocab = property(lambda self: self.get_vocab().n_vocab)  # `get_logits_ith` asks for it and the package lacks it

    how, within = api.LlamaModelParams(), api.LlamaContextParams()
    how.n_gpu_layers, within.n_ctx, within.n_threads, within.n_threads_batch = 0, 64, 1, 1
    within.flash_attn_type = within.type_k = within.type_v = 0  # none, F32, F32
    model = Model(str(path), how, False)
    context = api.LlamaContext(model, within, False)
    batch = api.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
    batch.set_batch(ids, 0, True)
    context.decode(batch)
    scores = np.array([context.get_logits_ith(i) for i in range(len(ids))])
    vocab = model.get_vocab()
    found = [vocab.tokenize(text, True, False) for text in texts]
    del vocab, context  # before the model that they point into
    gc.collect()
    return scores, found


@pytest.mark.parametrize(
    ("kind", "options"),
    [("llama", {}), ("qwen2", {}), ("llama", dict(num_key_value_heads=4, attention_bias=True)), ("llama", dict(rope_parameters=STRETCH))],
)
def test_llama_cpp_has_the_references_scores_and_our_ids(kind, options, llama_cpp, peer_of, words, tmp_path):
    peer = peer_of(kind, **options)
    peer.save_pretrained(tmp_path / "a")
    words(tmp_path / "a")
    convert(tmp_path / "a", "gguf", tmp_path / "x.gguf")
    ids = torch.randint(3, 290, (1, 50), generator=torch.Generator().manual_seed(1))
    scores, found = asked(llama_cpp, tmp_path / "x.gguf", ids[0].tolist(), TEXTS)
    np.testing.assert_allclose(scores, logits(peer, ids)[0], atol=1e-4)  # of up to 6; seen: 1e-5
    assert found == [library.load(tmp_path / "a").encode(text) for text in TEXTS]


@pytest.mark.parametrize("dtype", ["q8_0", "f16", "bf16"])
def test_llama_cpp_packs_the_same_bytes(dtype, llama_cpp, llama, tmp_path):
    """Our narrow file against the one that llama.cpp makes of our F32 one: tensors and keys."""
    convert(llama, "gguf", tmp_path / "x.gguf")
    convert(llama, "gguf", tmp_path / "ours.gguf", dtype)
    how = llama_cpp.LlamaModelQuantizeParams()
    how.nthread, how.ftype = 1, writing.FILE_TYPES[dtype.upper()]
    how.output_tensor_type = {"q8_0": 8, "f16": 1, "bf16": 30}[dtype]  # by itself it makes another choice for that one
    llama_cpp.model_quantize(str(tmp_path / "x.gguf"), str(tmp_path / "theirs.gguf"), how)
    ours, theirs = GgufFile(tmp_path / "ours.gguf"), GgufFile(tmp_path / "theirs.gguf")
    assert ours.metadata == theirs.metadata and ours.types == theirs.types and ours.key_types == theirs.key_types
    assert all(torch.equal(ours.raw(name), theirs.raw(name)) for name in ours.shapes())


@pytest.fixture
def pieces(peer_of, tmp_path):
    """A Llama with a SentencePiece model of byte pairs, as Llama 2 and Mistral have it, and more rows than pieces: (folder, the model)."""
    folder = tmp_path / "a"
    peer_of("llama", vocab_size=400, bos_token_id=1, eos_token_id=2).save_pretrained(folder)
    lines = ["Hello world, this is a test.", "中文句子", "the quick brown fox jumps", "über größer café", "12345 67890 don't", "a  b"] * 40
    how = dict(model_type="bpe", vocab_size=380, byte_fallback=True, split_digits=True, normalization_rule_name="identity")
    how |= dict(remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, hard_vocab_limit=False, minloglevel=2, num_threads=1)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), **how)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}))
    return folder, sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


PIECED = (*TEXTS, "Hello world", "  two  spaces\n", "Ω über 中文 123", " ", "x" * 50)


def test_a_sentencepiece_model_has_the_same_ids_before_in_and_after_a_gguf(pieces, tmp_path):
    folder, reference = pieces
    convert(folder, "gguf", tmp_path / "x.gguf")
    convert(tmp_path / "x.gguf", "hf", tmp_path / "b")
    wanted = [reference.encode(text) for text in PIECED]
    for place in (folder, tmp_path / "x.gguf", tmp_path / "b"):
        model = library.load(place)
        assert [model.encode(text) for text in PIECED] == [[1, *ids] for ids in wanted]
        assert [model.decode(ids) for ids in wanted] == [reference.decode(ids) for ids in wanted]


def test_llama_cpp_has_the_ids_of_sentencepiece(pieces, llama_cpp, tmp_path):
    folder, reference = pieces
    convert(folder, "gguf", tmp_path / "x.gguf")
    found = asked(llama_cpp, tmp_path / "x.gguf", [1, 5], PIECED)[1]
    assert found == [[1, *reference.encode(text)] for text in PIECED]
