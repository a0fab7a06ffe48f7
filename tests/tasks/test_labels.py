"""Words to entities in every scheme, the characters that pieces stand for, and windows."""

import itertools
import random

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from plait.errors import InputError
from plait.models import bert
from plait.tasks.encoding import Encoder, windows
from plait.tasks.labels import Entity, entities, row_of
from plait.text.loaded import LoadedTokenizer
from plait.text.saving import with_roles
from plait.text.special import SpecialTokens
from plait.text.training import train_tokenizer

# ---- schemes ----


def bio(kind, length, touches):
    return [f"B-{kind}", *[f"I-{kind}"] * (length - 1)]


def iob1(kind, length, touches):  # Ramshaw & Marcus 1995: B only after an entity of the same kind
    return [f"{'B' if touches else 'I'}-{kind}", *[f"I-{kind}"] * (length - 1)]


def bioes(kind, length, touches, end="E", single="S"):
    return [f"{single}-{kind}"] if length == 1 else [f"B-{kind}", *[f"I-{kind}"] * (length - 2), f"{end}-{kind}"]


def bilou(kind, length, touches):
    return bioes(kind, length, touches, "L", "U")


def io(kind, length, touches):
    return [kind] * length


@pytest.mark.parametrize("scheme", [bio, iob1, bioes, bilou, io])
def test_entities_written_in_a_scheme_are_read_back(scheme):
    draw = random.Random(0)
    for _ in range(60):
        labels, wanted, before = [], [], None
        while len(labels) < 12:
            kind, length = draw.choice(["PER", "LOC", "B-side", None]), draw.randint(1, 4)
            if kind is None or (scheme is io and (kind == before or kind == "B-side")):  # IO cannot part neighbours of one kind
                labels, before = [*labels, *["O"] * length], None
                continue
            wanted.append((kind, len(labels), len(labels) + length))
            labels += scheme(kind, length, kind == before)
            before = kind
        text = "".join(f"w{i:02} " for i in range(len(labels)))
        words = [Entity("", label, 0.5 + i / 100, 4 * i, 4 * i + 3) for i, label in enumerate(labels)]
        found = entities(text, words)
        assert [(e.label, e.start, e.end) for e in found] == [(kind, 4 * a, 4 * b - 1) for kind, a, b in wanted]
        for e, (_, a, b) in zip(found, wanted, strict=True):
            assert e.text == text[e.start : e.end] and e.score == pytest.approx(0.5 + (a + b - 1) / 200)


def test_labels_that_follow_no_scheme_begin_at_what_must_begin():
    words = [
        Entity("", label, 1.0, i, i + 1) for i, label in enumerate(["I-X", "E-X", "I-X", "S-X", "I-X", "E-Y", "E-Y", "I-Y", "O", "I-Y"])
    ]
    assert [(e.label, e.text) for e in entities("abcdefghij", words)] == [
        *[("X", "ab"), ("X", "c"), ("X", "d"), ("X", "e")],
        *[("Y", "f"), ("Y", "g"), ("Y", "h"), ("Y", "j")],
    ]


def test_parts_of_speech_stay_words():
    words = [Entity("", "NOUN", 1.0, 0, 3), Entity("", "NOUN", 1.0, 4, 6)]
    assert [e.text for e in entities("sea me", words, apart=True)] == ["sea", "me"]
    assert [e.text for e in entities("sea me", words)] == ["sea me"]


# ---- characters of pieces ----

TEXT = "  Änna's naïve 漢字 — \u0041\u030a x😀y,\n\tthe END… "


def byte_level():
    backend = tokenizers.Tokenizer(
        models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"</s>": 256}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 256), ("</s>", 256), trim_offsets=False)
    return backend


def unigram():  # knows few letters, so that unknown ones come in rows
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((c, -1.0 - i / 10) for i, c in enumerate("▁anthexEND"))]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, 0, False))
    backend.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Split("'", "isolated")])
    return backend


def word_pieces():
    letters = "abcdefghijklmnopqrstuvwxyz'—,…漢"
    vocab = {t: i for i, t in enumerate(["[UNK]", "[CLS]", "[SEP]", "[PAD]", *letters, *("##" + c for c in letters)])}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return backend


@pytest.mark.parametrize("make", [byte_level, unigram, word_pieces])
def test_pieces_are_traced_to_the_text_as_given(make):
    tokenizer = LoadedTokenizer(make(), special=SpecialTokens({"unk": "[UNK]" if make is word_pieces else "<unk>"}))
    encoder = Encoder(bert.build(bert.Config(vocab_size=tokenizer.vocab_size, d_model=8, n_heads=1, n_layers=1, d_ff=8)), tokenizer)
    for text in (TEXT, "", " ", "'''''", "the END", "😀😀 x"):
        found = encoder.pieces(text)
        assert found.ids == tokenizer.encode(text) and len(found.ids) == len(found.spans) == len(found.words)
        assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(found.spans))
        covered = {i for start, end in found.spans for i in range(start, end)}
        assert {i for i, c in enumerate(text) if not c.isspace()} - covered <= {text.find("\u030a")}  # marks that normalising drops
        assert all(text[start:end] == text[start:end].strip() for start, end in found.spans)
        for (start, end), token in zip(found.spans, tokenizer.tokens(found.ids), strict=True):
            if end == start + 1 and token.isascii() and token.isalpha():
                assert text[start].lower() == token.lower() or text[start] in "Äï"
    assert len(set(encoder.pieces("the END").words)) == 2


# ---- windows ----


@pytest.mark.parametrize("room", [1, 2, 3, 8, 21])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 21, 22, 100])
def test_windows_cover_a_text_and_overlap_by_half(length, room):
    found = windows(length, room)
    assert sorted({i for w in found for i in w}) == list(range(length)) and all(len(w) <= room for w in found)
    assert len(found) == 1 if length <= room else all(b.start == a.stop - room // 2 for a, b in itertools.pairwise(found))
    assert max(length, 1) / room <= len(found) <= 2 * length / room + 1
    with pytest.raises(InputError):
        windows(length, 0)


# ---- what is cut ----


@pytest.mark.parametrize("longest", range(5, 30))
def test_what_is_too_long_is_cut_where_it_is_longer(longest):
    tokenizer = with_roles(train_tokenizer("characters", ["abc"]), "<s>", "</s>")
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.enable_truncation(longest, strategy="longest_first")
    for one, two in (("a" * 3, "b" * 18), ("a" * 18, "b" * 3), ("a" * 11, "b" * 11), ("a" * 2, "b" * 2), ("a" * 10, "b" * 17)):
        ids, first, cut = row_of(tokenizer, [tokenizer.encode(one), tokenizer.encode(two)], longest)
        theirs = backend.encode(one, two)
        assert len(ids) == len(theirs.ids) <= longest and cut == (len(one) + len(two) + 3 > longest)
        assert abs(first - theirs.type_ids.index(1)) <= 1  # an odd place may go to either
    ids, first, cut = row_of(tokenizer, [tokenizer.encode("c" * 20)], longest)
    assert ids == backend.encode("c" * 20).ids and first == len(ids) and cut == (longest < 22)
