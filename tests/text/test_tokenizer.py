import hashlib
import pickle
import subprocess
import sys

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from plait.errors import InputError
from plait.text.tokenizer import SPECIAL, Tokenizer
from plait.text.training import KINDS, train_tokenizer

TEXTS = ["The door is open.", "Die Tür ist offen, {name}!", "größer 中文 句子 😀", "  a  b   c </s> <s> <unk> <pad>", "R IY D"] * 5
NASTY = [
    "😀👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "中文句子没有空格", "a\x00b\x01\x1b[0m\x7f\x85", "e\u0301 n\u0303 \u0301alone", "x" * 10_240, "é" * 10_240,
    " lead", "trail ", "a  b   c    ", "\n\n\t x\r\n", "\u2028\u3000\u00a0\ufeff",
    "▁ Ġ Ċ", "</s>", "a</s>b<pad> <unk> <s>", "", " ", "\U0010ffff\ue000",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    return {kind: train_tokenizer(kind, TEXTS + NASTY if kind == "characters" else TEXTS, 600) for kind in KINDS}


@pytest.mark.parametrize("kind", ["bpe", "unigram", "characters"])
@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_nasty_text_comes_back(trained, kind, text):
    ids = trained[kind].encode(text)
    assert trained[kind].decode(ids) == text
    assert not {0, 1, 2, 3} & set(ids)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example("</s><s>")
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back(trained, kind, text):
    ids = trained[kind].encode(text)
    assert trained[kind].decode(ids) == text and not {0, 1, 2, 3} & set(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_special_ids_are_fixed_and_never_come_from_text(trained, kind):
    tokenizer = trained[kind]
    assert [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id] == [0, 1, 2, 3]
    assert tuple(tokenizer.tokens(range(4))) == SPECIAL
    for name in SPECIAL:
        for text in (name, f"door {name} open", f"door{name}", f" {name} "):
            assert not {0, 1, 2} & set(tokenizer.encode(text))
    ids = tokenizer.encode("The door")
    assert tokenizer.decode([1, *ids, 2, 0, 0]) == tokenizer.decode(ids)
    assert max(ids) < tokenizer.vocab_size


def test_words():
    tokenizer = train_tokenizer("words", ["R IY D", "R EH D", "</s> R"], None)
    assert tokenizer.vocab_size == 8 and tokenizer.tokens(range(4, 8)) == ["R", "D", "EH", "IY"]
    assert tokenizer.decode(tokenizer.encode(" R  IY\tD\n")) == "R IY D"
    assert tokenizer.encode("R XX </s>") == [4, 3, 3]
    assert tokenizer.decode([4, 3, 5, 2]) == "R <unk> D"


def test_characters():
    tokenizer = train_tokenizer("characters", ["abca", "a b"], None)
    assert tokenizer.tokens(range(4, 8)) == ["a", "b", " ", "c"]
    assert tokenizer.encode("cabx") == [7, 4, 5, 3] and tokenizer.decode([7, 3, 4]) == "c<unk>a"
    assert train_tokenizer("characters", ["abca", "a b"], 6).vocab_size == 6


@pytest.mark.parametrize("kind", ["words", "characters"])
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x1c\x1d\x1e\x1f")))
@example("</s> a <pad> \r\n door")
@settings(max_examples=60, deadline=None)
def test_the_short_way_says_what_the_library_says(trained, kind, text):
    """Apart from U+001C to U+001F, whitespace for Python alone."""
    tokenizer = trained[kind]
    assert tokenizer._symbols
    library = tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == [3 if id in (0, 1, 2) else id for id in library]


def test_display_strings(trained):
    bpe = trained["bpe"]
    assert "".join(bpe.tokens(bpe.encode("The door"))).replace("▁", " ") == "The door"
    assert bpe.tokens(bpe.encode("ж")) == ["<0xD0>", "<0xB6>"]
    assert bpe.tokens([10**6]) == ["<id 1000000?>"]


@pytest.mark.parametrize("kind", KINDS)
def test_saved_is_loaded(trained, kind, tmp_path):
    trained[kind].save(tmp_path / "tokenizer.json")
    for again in (Tokenizer.load(tmp_path), Tokenizer.load(tmp_path / "tokenizer.json"), pickle.loads(pickle.dumps(trained[kind]))):
        assert again.encode_batch(TEXTS + NASTY) == trained[kind].encode_batch(TEXTS + NASTY)
        again.save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    assert train_tokenizer(str(tmp_path / "tokenizer.json"), []).vocab_size == trained[kind].vocab_size


def test_the_same_texts_give_the_same_file_in_another_process(trained, tmp_path):
    code = (
        "import sys, pathlib; from plait.text.training import *\n"
        "texts = pathlib.Path(sys.argv[2]).read_text().split('|')\n"
        "[train_tokenizer(k, texts, 600).save(f'{sys.argv[1]}/{k}{sys.argv[3]}.json') for k in KINDS]"
    )
    (tmp_path / "texts").write_text("|".join([*TEXTS, *(f"{a}{b} {b}" for a in ("open", "clos", "door") for b in ("ed", "ing", "s") * 9)]))
    for run in "12":
        subprocess.run([sys.executable, "-c", code, tmp_path, tmp_path / "texts", run], check=True)
    for kind in KINDS:
        first, second = (hashlib.sha256((tmp_path / f"{kind}{run}.json").read_bytes()).hexdigest() for run in "12")
        assert first == second, kind


def test_symbols_read_and_join_as_they_should():
    letters, phonemes = train_tokenizer("characters", ["read"]), train_tokenizer("words", ["R IY D"])
    assert letters.decode(letters.encode("dear")) == "dear" and phonemes.decode(phonemes.encode("D IY R")) == "D IY R"


def test_a_size_that_the_data_do_not_allow_is_reported():
    for kind in KINDS:
        tokenizer = train_tokenizer(kind, ["a b", "a b"], 5000)
        assert tokenizer.vocab_size < 300 and "5,000" in tokenizer.note and "5,000" in repr(tokenizer)
    assert not train_tokenizer("bpe", TEXTS, 262).note


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [[], [""], ["", " \n"]])
def test_no_text_is_an_error(kind, texts):
    with pytest.raises(InputError, match="no text"):
        train_tokenizer(kind, iter(texts))


def test_wrong_input(tmp_path):
    with pytest.raises(InputError, match="bpe, unigram, words or characters"):
        train_tokenizer("bpee", ["a"])
    with pytest.raises(InputError, match="at least 260"):
        train_tokenizer("bpe", ["a"], 100)
    with pytest.raises(InputError) as caught:
        train_tokenizer("bpe", ["a"]).encode_batch(["fine", "a\ud800", 5])  # type: ignore[list-item]
    assert len(caught.value.faults) == 2 and "text 2 of 3: character 1 is U+D800" in caught.value.faults[0]
    with pytest.raises(InputError, match="No such file"):
        Tokenizer.load(tmp_path / "no.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match=r"bad\.json: is no tokenizer.json"):
        Tokenizer.load(tmp_path / "bad.json")


def foreign(vocab, special):
    backend = tokenizers.Tokenizer(models.WordLevel({name: i for i, name in enumerate(vocab)}, unk_token=vocab[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(special)
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    return Tokenizer(backend)


def test_special_ids_of_other_peoples_files():
    bert = foreign(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"], ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    assert (bert.pad_id, bert.bos_id, bert.eos_id, bert.unk_id) == (0, 2, 3, 1)
    assert bert.encode("a a a a") == [4, 4, 4, 4]
    gpt2 = foreign(["a", "<|endoftext|>"], ["<|endoftext|>"])
    assert (gpt2.pad_id, gpt2.bos_id, gpt2.eos_id, gpt2.unk_id) == (1, 1, 1, None)
    t5 = foreign(["<pad>", "</s>", "<unk>", "a"], ["<pad>", "</s>", "<unk>"])
    assert (t5.pad_id, t5.bos_id, t5.eos_id, t5.unk_id) == (0, 0, 1, 2)
    with pytest.raises(InputError, match="ends a sequence"):
        foreign(["a"], [])
