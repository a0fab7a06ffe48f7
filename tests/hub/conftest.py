"""A run folder as training leaves it, and checkpoints as the reference library saves them, with weights that nobody trained."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import plait as library
from plait.data.packages import find
from plait.hub.zoo import ZOO, folder_of
from plait.models import build
from plait.text.training import train_tokenizer
from plait.weights.opening import open_source


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    for name, letters in (("tokenizer.json", "a b c d e f g h"), ("target_tokenizer.json", "A B C D E F G H")):
        train_tokenizer("words", [letters]).save(folder / name)
    config = dict(source_vocab=12, target_vocab=12, d_model=16, n_heads=2, n_layers=2, d_ff=32, dropout=0.1)
    torch.manual_seed(3)
    net = build("modern", config)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    save_file(net.state_dict(), folder / "model.safetensors")
    described = {"format": 1, "task": "translation", "arch": "modern", "config": config, "max_source": 20, "max_target": 9}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


# ---- checkpoints of others ----

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


@pytest.fixture
def peer_of():
    """peer_of(kind, options of its config ...) -> a tiny model of the reference library."""
    return made


def made(kind: str, **options):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
    model, config, sizes = PEERS[kind]
    torch.manual_seed(0)
    net = getattr(transformers, model)(getattr(transformers, config)(**{**sizes, **options})).eval()
    for name, p in net.named_parameters():
        if "embed_positions" not in name or kind != "marian":
            torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    return net


@pytest.fixture(scope="session")
def words():
    return add_words


def add_words(folder: Path, pre=None, normalizer=None) -> Path:
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
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def llama(tmp_path) -> Path:
    made("llama").save_pretrained(tmp_path / "llama")
    return add_words(tmp_path / "llama")


TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """A tiny GPT-2 of random weights with byte-level tokens and a chat template."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
    place = tmp_path_factory.mktemp("gpt2")
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    (place / "vocab.json").write_text(json.dumps({name: id for id, name in enumerate(names)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "chat_template": TEMPLATE}))
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=257, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=256, eos_token_id=256)
    net = transformers.GPT2LMHeadModel(config)
    for name, p in net.named_parameters():
        torch.nn.init.normal_(p, mean=float("ln" in name and p.ndim == 1 and "weight" in name), std=0.4)
    net.save_pretrained(place)
    (place / "generation_config.json").unlink(missing_ok=True)
    return place


@pytest.fixture
def real():
    """real(name) -> the folder of a released checkpoint, where its package is in the cache."""

    def folder(name: str) -> Path:
        if find(ZOO[name].package) is None:
            pytest.skip(f"{ZOO[name].package.wheel} is not in the cache (`plait run {name} ...` brings it)")
        return folder_of(name)

    return folder


@pytest.fixture(scope="session")
def smollm2():
    """(ours, the reference's Llama with the file's numbers): GGUF keeps the rows of q and k in pairs, the reference in halves."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
    if find(ZOO["smollm2"].package) is None:
        pytest.skip("smollm2 is not in the cache (`plait run smollm2 ...` brings it)")
    source = open_source(folder_of("smollm2"))
    settings = dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9)
    settings |= dict(num_key_value_heads=3, rms_norm_eps=1e-5, tie_word_embeddings=True, max_position_embeddings=8192, rope_theta=100000.0)
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
    names |= {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"} | {f"ffn_{x}": f"mlp.{x}_proj" for x in ("up", "gate", "down")}
    state = {"model.embed_tokens.weight": source.read("token_embd.weight"), "model.norm.weight": source.read("output_norm.weight")}
    for i in range(30):
        for theirs, hf in names.items():
            t = source.read(f"blk.{i}.{theirs}.weight")
            if theirs in ("attn_q", "attn_k"):
                t = t.view(-1, 32, 2, 576).swapaxes(1, 2).reshape(t.shape)
            state[f"model.layers.{i}.{hf}.weight"] = t
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    with torch.device("meta"):
        peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    peer = transformers.LlamaForCausalLM(peer.config)
    peer.load_state_dict(state)
    return library.load("smollm2"), peer.eval()
