import json
import pickle
import random
import re
from importlib import import_module
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import transformers
from tokenizers import pre_tokenizers, trainers

from plait.errors import InputError
from plait.text.loading import load_pair, load_tokenizer
from plait.text.sentencepiece_file import read_sentencepiece

TEXTS = ["Hello world, this is a test of the thing.", "中文句子", "the quick brown fox jumps over the lazy dog", "über größer café",
         "12345 67890 don't </s> <s> [x]", "אבג שלום", "a\tb\n"] * 40  # fmt: skip
NASTY = [
    "Hello world, this is a test of the thing.", "😀👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "中文句子没有空格", "a\x00b\x01\x1b[0m\x7f\x85",
    "e\u0301 n\u0303 \u0301alone", "x" * 10_240, "é" * 10_240, " lead", "trail ", "  a  b   c    ", "\n\n\t x\r\n",
    "\u2028\u3000\u00a0\ufeff", "שלום עולם مرحبا", "▁ Ġ Ċ", "", " ", "   ", "\U0010ffff\ue000", "ﬁ ① ½ Ⅷ", "12345 don't I'LL",
    "<0x41>", "①②<0x0A>\n",
]  # fmt: skip
MARKED = ["</s>", "a</s>b<pad> <unk> <s>", "[CLS] x [SEP]a[MASK] b", "<|endoftext|>a <|endoftext|>", "<mask> a<mask> b", "<extra_id_0> is"]


def write(folder: Path, **files) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for name, content in files.items():
        name = re.sub("_(txt|json)$", r".\1", name)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), "utf-8", newline="")
    return folder


def same(ours, reference, texts=NASTY + MARKED, around=True):
    """All ids and the decoded text as transformers has them."""
    for text in texts:
        ids = ours.encode_marked(text)
        assert ids == reference.encode(text, add_special_tokens=False), text[:40]
        if around:
            assert ours.wrap(ids) == reference.encode(text), text[:40]
            assert ours.wrap(ids, ours.encode_marked(texts[0])) == reference.encode(text, texts[0]), text[:40]
        if text in NASTY:
            assert ours.encode(text) == ids, text[:40]
            expected = reference.decode(ids, clean_up_tokenization_spaces=False)
            assert ours.decode(ids) == expected, text[:40]


# ---- WordPiece ----

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghxyzHu.,中文句子é\u0301①\u2028", "##a", "##b", "##e", "##l", "##o",
         "hello", "Hello", "world", "cafe", "café", "lead", "tra", "##il", "1", "##2", "##3", "[", "]", "cl", "##s"]  # fmt: skip


@pytest.mark.parametrize("lower", [True, False, None])
@pytest.mark.parametrize("accents", [True, False, None])
@pytest.mark.parametrize("chinese", [True, False])
def test_wordpiece(tmp_path, lower, accents, chinese):
    config = {"do_lower_case": lower, "strip_accents": accents, "tokenize_chinese_chars": chinese, "tokenizer_class": "BertTokenizer"}
    if lower is None:
        del config["do_lower_case"]
    write(tmp_path, vocab_txt="\n".join(WORDS) + "\n", tokenizer_config_json=config)
    ours = load_tokenizer(tmp_path)
    reference = transformers.BertTokenizer.from_pretrained(tmp_path)
    same(ours, reference)
    assert ours.wrap([5, 6], [7]) == [2, 5, 6, 3, 7, 3]
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == (2, 3, 0, 1)
    assert ours.ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def test_line_ends_and_one_file_alone(tmp_path):
    write(tmp_path, vocab_txt="\r\n".join(WORDS), other_txt="\n".join(WORDS))
    assert load_tokenizer(tmp_path).encode("hello") == load_tokenizer(tmp_path / "other.txt").encode("hello") == [WORDS.index("hello")]


def test_smiles(tmp_path):
    words = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "c", "C", "(", ")", "O", "1", "Cl", ">>", "[C@H]", "."]
    tokenizer = load_tokenizer(write(tmp_path, vocab_txt="\n".join(words)))
    ids = tokenizer.encode("CC(Cl)[C@H]>> c1N!")
    assert ids == [7, 7, 8, 12, 9, 14, 13, 6, 11, 2]
    assert tokenizer.decode(ids[:-1]) == "CC(Cl)[C@H]>>c1" and tokenizer.wrap(ids[:1]) == [3, 7, 4]


# ---- byte-level BPE ----


@pytest.fixture(scope="module")
def byte_pairs():
    """vocab.json and merges.txt of 400 tokens without special ones."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(backend.to_str())["model"]
    return list(model["vocab"]), "#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])) + "\n"


def test_gpt2(tmp_path, byte_pairs):
    names, merges = byte_pairs
    write(tmp_path, vocab_json={name: id for id, name in enumerate([*names, "<|endoftext|>"])}, merges_txt=merges)
    ours = load_tokenizer(tmp_path)
    same(ours, transformers.GPT2Tokenizer.from_pretrained(tmp_path))
    assert ours.eos_id == ours.bos_id == ours.pad_id == len(names) and ours.vocab_size == len(names) + 1
    for text in NASTY + MARKED:
        assert ours.decode(ours.encode(text)) == text and ours.eos_id not in ours.encode(text)


@pytest.mark.parametrize("space", [True, False])
def test_roberta(tmp_path, byte_pairs, space):
    names, merges = byte_pairs
    vocab = {name: id for id, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", *names, "<mask>"])}
    config = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": space}
    mask = {"content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
    write(tmp_path, vocab_json=vocab, merges_txt=merges, tokenizer_config_json=config, special_tokens_map_json={"mask_token": mask})
    ours, reference = load_tokenizer(tmp_path), transformers.RobertaTokenizer.from_pretrained(tmp_path)
    same(ours, reference)
    assert ours.wrap([5], [6]) == [0, 5, 2, 2, 6, 2]
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (0, 2, 1)


def test_qwen2(tmp_path, byte_pairs):
    names, merges = byte_pairs
    added = {str(len(names) + i): {"content": t, "special": True} for i, t in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write(tmp_path, vocab_json={name: id for id, name in enumerate(names)}, merges_txt=merges, tokenizer_config_json=config)
    ours = load_tokenizer(tmp_path)
    same(ours, transformers.Qwen2Tokenizer.from_pretrained(tmp_path), [*NASTY, *MARKED, "<|im_start|>user\n12345 e\u0301<|im_end|>"])
    assert ours.eos_id == len(names) + 2 and ours.pad_id == len(names) and ours.vocab_size == len(names) + 3


def test_tokenizer_json_wins_and_is_what_transformers_reads(tmp_path, byte_pairs):
    names, merges = byte_pairs
    write(tmp_path / "a", vocab_json={name: id for id, name in enumerate([*names, "<|endoftext|>"])}, merges_txt=merges)
    ours = load_tokenizer(tmp_path / "a")
    write(
        tmp_path / "b", vocab_txt="\n".join(WORDS), tokenizer_config_json={"eos_token": "<|endoftext|>", "chat_template": "{{ bos_token }}"}
    )
    ours.save(tmp_path / "b" / "tokenizer.json")
    again = load_tokenizer(tmp_path / "b")
    same(again, transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "b"))
    assert again.chat_template == "{{ bos_token }}"


# ---- SentencePiece ----

IDENTITY = dict(normalization_rule_name="identity", remove_extra_whitespaces=False)
KINDS = {
    "unigram": dict(model_type="unigram", vocab_size=120),
    "unigram with bytes": dict(model_type="unigram", vocab_size=400, byte_fallback=True),
    "unigram with symbols": dict(model_type="unigram", vocab_size=150, user_defined_symbols=["<sep>"]),
    "unigram without prefix": dict(model_type="unigram", vocab_size=150, add_dummy_prefix=False),
    "unigram folded": dict(model_type="unigram", vocab_size=120, normalization_rule_name="nmt_nfkc_cf"),
    "unigram raw": dict(model_type="unigram", vocab_size=120, **IDENTITY),
    "t5": dict(model_type="unigram", vocab_size=120, pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
    "bpe": dict(model_type="bpe", vocab_size=150),
    "bpe with symbols": dict(model_type="bpe", vocab_size=400, byte_fallback=True, user_defined_symbols=["<sep>", "▁▁", "\n"], **IDENTITY),
    "llama": dict(model_type="bpe", vocab_size=420, byte_fallback=True, **IDENTITY),
}


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spm")
    for name, how in KINDS.items():
        prefix = str(folder / name.replace(" ", "-"))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS), model_prefix=prefix, hard_vocab_limit=False, minloglevel=2, num_threads=1, **how
        )
    return lambda name: folder / (name.replace(" ", "-") + ".model")


@pytest.mark.parametrize("name", KINDS)
def test_sentencepiece(spm, name):
    ours, reference = load_tokenizer(spm(name)), sentencepiece.SentencePieceProcessor(model_file=str(spm(name)))
    for text in [*NASTY, "a<sep>b <sep> c", "<sep>", "</s>", "a</s>b<s> <unk>"]:
        ids = reference.encode(text)
        assert ours.encode(text) == ids, text[:40]
        if ours.unk_id not in ids:  # SentencePiece writes " ⁇ ", we <unk>
            assert ours.decode(ids) == reference.decode(ids), text[:40]


def vocabulary(file: Path) -> list[tuple[str, float]]:
    reader = sentencepiece.SentencePieceProcessor(model_file=str(file))
    return [(reader.id_to_piece(id), reader.get_score(id)) for id in range(reader.get_piece_size())]


def test_t5(spm, tmp_path):
    (tmp_path / "spiece.model").write_bytes(spm("t5").read_bytes())
    write(tmp_path, tokenizer_config_json={"tokenizer_class": "T5Tokenizer", "extra_ids": 100})
    extra = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    # Given as parts: transformers reads a .model only where protobuf is installed.
    charsmap = read_sentencepiece(spm("t5")).charsmap
    reference = transformers.T5Tokenizer(vocab=[*vocabulary(spm("t5")), *extra], _spm_precompiled_charsmap=charsmap)
    ours = load_tokenizer(tmp_path)
    assert ours.backend.token_to_id("<extra_id_0>") == ours.vocab_size - 1 == reference.convert_tokens_to_ids("<extra_id_0>")
    # transformers drops U+0085, which is white but not in the character map; SentencePiece calls it unknown, as ours does.
    same(ours, reference, [text for text in NASTY if "\x85" not in text])
    assert load_tokenizer(tmp_path / "spiece.model").vocab_size == ours.vocab_size and ours.wrap([5], [6]) == [5, 1, 6, 1]
    assert ours.pad_id == ours.bos_id == 0 and ours.eos_id == 1 and ours.unk_id == 2


def test_llama(spm, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(spm("llama").read_bytes())
    write(tmp_path, tokenizer_config_json={"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    scores = vocabulary(spm("llama"))
    vocab = {text: id for id, (text, _) in enumerate(scores)}
    convert = import_module("transformers.convert_slow_tokenizer")  # the package may also hold a function of this name
    merges = convert.generate_merges(vocab, dict(scores))
    ours, reference = load_tokenizer(tmp_path), transformers.LlamaTokenizer(vocab=vocab, merges=merges, legacy=False)
    # transformers gives no prefix to a text that begins with a space, where SentencePiece does.
    same(ours, reference, [text for text in NASTY if not text.startswith((" ", "▁"))], around=False)
    assert ours.wrap([5]) == [1, 5] and ours.bos_id == 1 and ours.eos_id == 2


def test_marian(spm, tmp_path):
    (tmp_path / "source.spm").write_bytes(spm("unigram").read_bytes())
    (tmp_path / "target.spm").write_bytes(spm("unigram folded").read_bytes())
    pieces = sorted({text for side in ("unigram", "unigram folded") for text, _, type in read_sentencepiece(spm(side)).pieces if type == 1})
    random.Random(0).shuffle(pieces)
    vocab = {text: id for id, text in enumerate(["</s>", "<unk>", ">>fra<<", *pieces[:-6], "😀", "<pad>"])}  # some pieces have no id
    write(tmp_path, vocab_json=vocab, tokenizer_config_json={"tokenizer_class": "MarianTokenizer"})
    with pytest.warns(UserWarning, match="sacremoses"):
        reference = transformers.MarianTokenizer.from_pretrained(tmp_path)
    source, target = load_pair(tmp_path)
    texts = [text for text in NASTY if text.strip()]
    for text in [*texts, ">>fra<< Hello world", ">>deu<< Hello", "a >>fra<< b", "😀", "a 😀 b"]:
        ids = reference.encode(text, add_special_tokens=False)
        assert source.encode(text) == ids, text[:40]
        assert source.wrap(ids) == [*ids, 0]
        with_target = reference(text_target=text, add_special_tokens=False)["input_ids"]
        assert target.encode(text) == with_target, text[:40]
        if source.unk_id not in with_target:
            assert target.decode(with_target) == reference.decode(with_target, use_source_tokenizer=False), text[:40]
    assert (source.eos_id, source.unk_id, source.pad_id, source.bos_id) == (0, 1, len(vocab) - 1, len(vocab) - 1)
    for again in (pickle.loads(pickle.dumps(target)), load_tokenizer(tmp_path / "target.spm")):
        assert again.encode("Hello world") == target.encode("Hello world") != source.encode("Hello world")
    with pytest.raises(InputError, match="text 1 of 2: a int"):
        source.encode_batch([3, "a"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="copy its files"):
        source.save(tmp_path / "tokenizer.json")


def test_marian_with_a_vocabulary_a_side(spm, tmp_path):
    for side in ("source", "target"):
        (tmp_path / f"{side}.spm").write_bytes(spm("unigram").read_bytes())
    pieces = [text for text, _, type in read_sentencepiece(spm("unigram")).pieces if type == 1]
    vocab, target_vocab = ({text: id for id, text in enumerate(["</s>", "<unk>", *row, "<pad>"])} for row in (pieces, pieces[::-1]))
    config = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": True}
    write(tmp_path, vocab_json=vocab, target_vocab_json=target_vocab, tokenizer_config_json=config)
    with pytest.warns(UserWarning, match="sacremoses"):
        reference = transformers.MarianTokenizer.from_pretrained(tmp_path)
    source, target = load_pair(tmp_path)
    assert source.encode("Hello world") == reference("Hello world", add_special_tokens=False)["input_ids"]
    wanted = reference(text_target="Hello world", add_special_tokens=False)["input_ids"]
    assert target.encode("Hello world") == wanted != source.encode("Hello world")


# ---- wrong files ----


def faults_of(path, **more) -> str:
    with pytest.raises(InputError) as caught:
        load_tokenizer(path, **more)
    return str(caught.value)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ["holds no tokenizer"]),
        ({"vocab.json": "{}"}, ["vocab.json without merges.txt"]),
        ({"tokenizer.json": '{"version": "1.0",'}, ["tokenizer.json", "line 1"]),
        ({"tokenizer.json": "[1, 2]"}, ["is no tokenizer.json"]),
        ({"tokenizer.json": '{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}'}, ["its character map says"]),
        ({"tokenizer.json": '{"normalizer": {"normalizers": [{"type": "Precompiled"}]}}'}, ["is not in base64"]),
        ({"tokenizer.json": b"\xff\xfe{"}, ["tokenizer.json:1", "not UTF-8"]),
        ({"vocab.json": '{"a": 0,\n "b"', "merges.txt": ""}, ["vocab.json:2", "not valid JSON"]),
        ({"vocab.json": "[" * 100_000, "merges.txt": ""}, ["not valid JSON"]),
        ({"vocab.json": '["a"]', "merges.txt": ""}, ["JSON list"]),
        ({"vocab.json": '{"a": 0, "b": "1", "c": true, "d": -1, "e": 0}', "merges.txt": ""},
         ["'b' has the id '1'", "'c'", "'d'", "'e' has the id 0 of 'a'"]),
        ({"vocab.json": '{"a": 0, "a": 1}', "merges.txt": ""}, ["'a' occurs twice"]),
        ({"vocab.json": '{"a": 0, "b": 3}', "merges.txt": ""}, ["go up to 3", "1, 2 have no token"]),
        ({"vocab.json": '{"a": 0, "b": 99999999999}', "merges.txt": ""}, ["go up to 99999999999"]),
        ({"vocab.json": '{"a": 0, "b": 1, "ab": 2}', "merges.txt": "#version\na b\na x\nab\na  b\nb a\n"},
         ["merges.txt:3: merges 'a' and 'x', but the vocabulary has no 'x' and no 'ax'",
          "merges.txt:4", "merges.txt:5", "merges.txt:6", "no 'ba'"]),
        ({"vocab.json": '{"a": 0, "b": 1, "ab": 2}', "merges.txt": b"a b\n\xff\n"}, ["merges.txt:2: is not UTF-8"]),
        ({"vocab.json": '{"a": 0}', "merges.txt": ""}, ["no token that ends a sequence"]),
        ({"vocab.txt": "[UNK]\na\n\nb\na\n"}, ["vocab.txt:3: is empty", "vocab.txt:5: 'a' stands in line 2"]),
        ({"vocab.txt": "a\nb"}, ["has no [UNK]"]),
        ({"vocab.txt": "[UNK]\n[SEP]", "tokenizer_config.json": '{"do_lower_case": "yes"}'}, ["do_lower_case is 'yes'"]),
        ({"vocab.txt": "[UNK]\n[SEP]", "tokenizer_config.json": '{"unk_token": 3, "sep_token": {"content": 4}}'},
         ["unk_token is 3", "sep_token"]),
        ({"a.model": b"", "b.model": b""}, ["several .model files"]),
        ({"a.model": b""}, ["it has no pieces"]),
        ({"a.model": b"<html>not found</html>"}, ["a.model: is no SentencePiece model"]),
        ({"source.spm": b"x", "vocab.json": '{"</s>": 0, "<unk>": 1}'}, ["source.spm: is no SentencePiece model"]),
        ({"source.spm": b"x", "vocab.json": '{"a": 0}'}, ["has no </s>", "has no <unk>"]),
        ({"source.spm": b"x"}, ["vocab.json: cannot be read"]),
        ({"a.model": b"x", "tokenizer_config.json": '{"tokenizer_class": "XLMRobertaTokenizer"}'}, ["load its tokenizer.json"]),
        ({"a.model": b"x", "config.json": '{"model_type": "xlm-roberta"}'}, ["XLMRobertaTokenizer", "load its tokenizer.json"]),
        ({"vocab.txt": "[UNK]\n[SEP]", "tokenizer_config.json": '{"tokenizer_class": "EsmTokenizer"}'}, ["EsmTokenizer"]),
        ({"vocab.json": '{"a": 0}', "merges.txt": "", "tokenizer_config.json": '{"tokenizer_class": "WhisperTokenizer"}'}, ["Whisper"]),
        ({"vocab.json": '{"a": 0, "a</w>": 1, "<|endoftext|>": 2}', "merges.txt": ""}, ["CLIPTokenizer is not one of GPT2"]),
    ],
    ids=range(32),
)  # fmt: skip
def test_wrong_files(tmp_path, files, expected):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    message = faults_of(tmp_path)
    assert all(part in message for part in (*expected, str(tmp_path))), message


def test_wrong_paths(tmp_path):
    assert "does not exist" in faults_of(tmp_path / "nowhere")
    assert "expected 'source' or 'target'" in faults_of(tmp_path, side="left")
