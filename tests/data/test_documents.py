"""Files as documents, a part held out, and their ids in memory or on disk."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken

from plait.data import documents, store
from plait.data.documents import Piece, Texts, split, survey
from plait.data.sources import check_unchanged, digests
from plait.data.store import encoded, stored, too_large
from plait.errors import InputError
from plait.text.loaded import LoadedTokenizer
from plait.text.saving import with_roles
from plait.text.special import SpecialTokens
from plait.text.training import train_tokenizer

TEXT = "The first line.\r\nAnother one, é 中.\n\n  and the last without an end"


def write(folder, name, text) -> str:
    (folder / name).write_bytes(text.encode())
    return str(folder / name)


def read(texts) -> list[tuple[str, bool]]:
    """(text, whether it ends a document) of each piece."""
    return [(piece.text, piece.last) for piece in texts]


def test_a_text_file_is_one_document_as_it_stands(tmp_path, monkeypatch):
    path = write(tmp_path, "a.txt", TEXT)
    assert read(Texts([path])) == [(TEXT, True)]
    lines = [text for text, _ in read(Texts([path], lines=True))]
    assert lines == [
        "The first line.",
        "Another one, é 中.",
        "  and the last without an end",
    ]
    monkeypatch.setattr(documents, "CHUNK", 20)
    pieces = read(Texts([path, path]))
    assert "".join(text for text, _ in pieces) == TEXT * 2 and sum(last for _, last in pieces) == 2 and len(pieces) > 4


def test_rows_of_tables_are_documents(tmp_path):
    plain = write(tmp_path, "a.jsonl", '{"text": "one"}\n{"text": "two\\nlines"}\n')
    asked = write(tmp_path, "b.csv", "id,Prompt,completion\n1,two and two,is four\n")
    talk = [{"role": "user", "content": "hello"}]
    chat = write(tmp_path, "c.jsonl", json.dumps({"messages": talk}) + "\n")
    texts = Texts([plain, asked, chat])
    found = list(texts)
    assert [piece.parts for piece in found[:3]] == [
        (("one", True),),
        (("two\nlines", True),),
        (("two and two", False), ("is four", True)),
    ]
    assert found[3].messages == talk and texts.report.kept == 4
    assert read(Texts([write(tmp_path, "d.csv", "x,Body\n1,hello\n")], {"text": "Body"})) == [("hello", True)]


def test_faults_of_all_files_come_at_once(tmp_path):
    files = [write(tmp_path, "a.txt", ""), write(tmp_path, "b.txt", "a\0b"), write(tmp_path, "c.jsonl", '{"prompt": "x"}\n'), "absent.txt"]
    with pytest.raises(InputError) as caught:
        list(Texts(files))
    for phrase in ("a.txt: is empty", "b.txt:1: holds a NUL byte", "c.jsonl:1: missing column: 'text'", "absent.txt: no such file"):
        assert phrase in str(caught.value)


def test_the_end_of_a_single_text_is_held_out(monkeypatch):
    monkeypatch.setattr(documents, "CHUNK", 7)
    text = "0123456789" * 10
    pieces = [Piece(((text[i : i + 7], True),), "f", last=i + 7 >= 100) for i in range(0, 100, 7)]
    train, valid, _ = split(pieces, survey(pieces))
    assert "".join(text for text, _ in read(train)) == text[:90] and "".join(text for text, _ in read(valid)) == text[90:]
    assert [sum(last for _, last in read(part)) for part in (train, valid)] == [1, 1]


def test_documents_are_held_out_by_what_they_say():
    pieces = [Piece(((f"text {i % 150}", True),), "f") for i in range(300)]  # each twice
    sides = []
    for order in (pieces, pieces[::-1]):
        train, valid, _ = split(order, survey(order), seed=1)
        sides.append(tuple(frozenset(text for text, _ in read(part)) for part in (train, valid)))
        assert len(list(train)) + len(list(valid)) == 300 and not sides[-1][0] & sides[-1][1]
        assert len(sides[-1][1]) == 15
    assert sides[0] == sides[1]
    assert {piece.text for piece in split(pieces, survey(pieces), seed=2)[1]} != sides[0][1]


@pytest.mark.parametrize(
    "pieces", [[Piece((("a", False), ("b", True)), "f")], [Piece((("a", True),), "f")] * 5, [Piece((("a", True),), "f")]]
)
def test_what_cannot_be_split_is_told(pieces):
    with pytest.raises(InputError, match=r"more documents|the same text"):
        split(pieces, survey(pieces))


# ---- ids ----

CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


@pytest.fixture(scope="module")
def tokenizer() -> LoadedTokenizer:
    return with_roles(train_tokenizer("bpe", ["two and two is four, " * 20, TEXT], 300), "<s>", "")


@pytest.fixture(scope="module")
def chatty(tokenizer) -> LoadedTokenizer:
    added = {AddedToken(f"<|{name}|>", special=True, normalized=False): None for name in ("user", "assistant", "end")}
    return LoadedTokenizer(tokenizer.backend, "", SpecialTokens(dict(tokenizer.special.roles), added), CHAT)


def test_texts_stand_between_their_ends_and_prompts_are_not_learned(tokenizer):
    parts = (("two and two", False), (" is four", True))
    whole = tokenizer.encode("two and two is four")
    (ids, scored, last), (two, learned, _) = encoded([Piece((("two", True),), "f"), Piece(parts, "f")], tokenizer)
    assert ids == [tokenizer.bos_id, *tokenizer.encode("two"), tokenizer.eos_id] and all(scored) and last
    assert two == [tokenizer.bos_id, *whole, tokenizer.eos_id]
    assert tokenizer.decode([id for id, is_learned in zip(two, learned, strict=True) if is_learned]) == " is four" and learned[-1]
    assert tokenizer.decode([id for id, is_learned in zip(two, learned, strict=True) if not is_learned]) == "two and two"


def test_a_prompt_keeps_its_own_ids_where_the_answer_would_merge_with_it(tokenizer):
    prompt = next(
        text
        for text in ("tw", "an", "fou", "i")
        if tokenizer.encode(text) != tokenizer.encode("two and is four")[: len(tokenizer.encode(text))]
    )
    rest = {"tw": "o", "an": "d", "fou": "r", "i": "s"}[prompt]
    ((ids, scored, _),) = encoded([Piece(((prompt, False), (rest, True)), "f")], tokenizer)
    n = len(tokenizer.encode(prompt)) + 1
    assert ids[1:n] == tokenizer.encode(prompt) and scored[:n] == [False] * n and all(scored[n:])


def test_what_the_assistant_says_is_learned(chatty):
    talk = [("user", "two and two"), ("assistant", "is four"), ("user", "<|end|> and one"), ("assistant", "is one")]
    piece = Piece((("", True),), "f:1", messages=[{"role": role, "content": text} for role, text in talk])
    ((ids, scored, _),) = encoded([piece], chatty)
    said = [
        chatty.backend.decode([id for id, one in zip(ids, scored, strict=True) if one is wanted], skip_special_tokens=False)
        for wanted in (True, False)
    ]
    assert said[0] == "is four<|end|>\nis one<|end|>\n"
    assert said[1] == "<|user|>two and two<|end|>\n<|assistant|><|user|><|end|> and one<|end|>\n<|assistant|>"
    with pytest.raises(InputError, match=r"f:9: .*nothing to learn"):
        list(encoded([Piece((("", True),), "f:9", messages=[{"role": "user", "content": "x"}])], chatty))


def pieces_of(n: int) -> list[Piece]:
    texts = [Piece(((f"two and {i} is four", True),), "f", last=i % 3 != 1) for i in range(n)]
    return [*texts, Piece((("two", False), (" is", True)), "f")]


def test_on_disk_is_in_memory(tokenizer, tmp_path):
    memory, disk = stored(pieces_of(21), tokenizer, None), stored(pieces_of(21), tokenizer, tmp_path / "train", "a")
    assert isinstance(disk.texts.ids, np.memmap) and disk.texts.ids.dtype == np.uint16
    assert disk.fingerprint == memory.fingerprint and (disk.scored == memory.scored).all()
    assert np.array_equal(disk.texts.offsets, memory.texts.offsets) and len(disk.texts) == 14 + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train"]
    again = stored(iter([]), tokenizer, tmp_path / "train", "a")  # as it lies there: nothing is read
    assert again.fingerprint == memory.fingerprint
    other = stored(pieces_of(3), tokenizer, tmp_path / "train", "b")
    assert len(other.texts.ids) < len(memory.texts.ids)


def test_nothing_half_written_is_left(tokenizer, tmp_path):
    def broken():
        yield pieces_of(1)[0]
        raise InputError("the second file is gone")

    with pytest.raises(InputError, match="second file"):
        stored(broken(), tokenizer, tmp_path / "train", "a")
    assert list(tmp_path.iterdir()) == []


def test_large_files_go_to_disk(tmp_path, monkeypatch):
    path = write(tmp_path, "a.txt", "x" * 100)
    assert not too_large([path])
    monkeypatch.setattr(store, "IN_MEMORY", 99)
    assert too_large([path])


def test_a_changed_file_is_named(tmp_path):
    files = [write(tmp_path, name, name) for name in ("a.txt", "b.txt")]
    then = digests(files)
    check_unchanged(then, digests(files))
    write(tmp_path, "b.txt", "other")
    with pytest.raises(InputError) as caught:
        check_unchanged(then, digests(files))
    assert "b.txt: changed" in str(caught.value) and "a.txt" not in str(caught.value)
