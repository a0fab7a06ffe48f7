"""Sentences with tags: the layouts people have, and every fault with its place."""

import gzip
import json

import pytest

from plait.data.conll import read_tagged
from plait.errors import InputError

TEXT = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

-DOCSTART- -X- O O
Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


@pytest.fixture
def write(tmp_path):
    def put(name, text):
        path = tmp_path / name
        data = text if isinstance(text, bytes) else text.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return put


@pytest.mark.parametrize("name", ["a.conll", "a.txt", "a.conll.gz"])
@pytest.mark.parametrize("change", [lambda t: t, lambda t: t.replace(" ", "\t"), lambda t: t.replace("\n", "\r\n"), lambda t: "\ufeff" + t])
def test_words_and_the_last_column(write, name, change):
    path = write(name, change(TEXT))
    found, report = read_tagged([path])
    assert [(one.words, one.tags) for one in found] == [(("EU", "rejects"), ("B-ORG", "O")), (("Peter", "Blackburn"), ("B-PER", "I-PER"))]
    assert [one.where for one in found] == [f"{path}:3", f"{path}:7"]
    assert str(report) == "read: 2 sentences kept"


def test_rows_of_lists(write):
    rows = [{"tokens": ["a b", "c"], "ner_tags": ["B-X", "O"]}, {"tokens": [], "ner_tags": []}]
    for text in ("\n".join(map(json.dumps, rows)), json.dumps(rows)):
        path = write("a.json", text)
        found, report = read_tagged([path])
        assert [(one.words, one.tags, one.where) for one in found] == [(("a b", "c"), ("B-X", "O"), f"{path}:1")]
        assert report.dropped["no words"].count == 1
    path = write("b.jsonl", json.dumps({"w": ["a"], "t": ["O"]}))
    assert read_tagged([path], {"tokens": "w", "tags": "t"})[0][0].words == ("a",)


def test_every_fault_has_its_place(write):
    conll = write("a.conll", "one O\nalone\n\ntwo O\n")
    rows = [
        {"tokens": ["a"], "tags": ["O", "O"]},
        {"tokens": ["a"], "tags": [3]},
        {"tokens": ["a", ""], "tags": ["O", "O"]},
        {"tokens": "a"},
    ]
    lines = write("a.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError) as caught:
        read_tagged([conll, lines, write("empty.conll", ""), conll.parent / "none.conll", write("b.conll", b"a\0b O\n")])
    text = "\n".join(caught.value.faults)
    for phrase in (
        "a.conll:2: no tag: 'alone'",
        "a.jsonl:4",
        "empty.conll: is empty",
        "none.conll: no such file",
        "b.conll:1: holds a NUL byte",
    ):
        assert phrase in text, phrase
    with pytest.raises(InputError) as caught:
        read_tagged([write("a.jsonl", "\n".join(map(json.dumps, rows[:3])))])
    text = "\n".join(caught.value.faults)
    for phrase in ("a.jsonl:1: 1 tokens with 2 tags", "a.jsonl:2: 3 is no tag", "not their numbers", "a.jsonl:3: '' is no token"):
        assert phrase in text, phrase


def test_a_sentence_with_an_unusable_line_is_dropped_whole(write):
    path = write("a.conll", "a O\nb\nc O\n\n" + "d O\n\n" * 200)
    found, report = read_tagged([path])
    assert len(found) == 200 and all(one.words == ("d",) for one in found)
    assert report.dropped["no tag"].examples == [f"{path}:2"]


def test_tags_that_continue_nothing_are_counted_where_beginnings_are_marked(write):
    path = write("a.conll", "a O\nb I-X\nc I-X\n\nd B-X\ne I-Y\nf E-Y\n")
    note = read_tagged([path])[1].noted["tag that continues an entity which none began"]
    assert note.count == 2 and note.examples == [f"{path}:1 word 2", f"{path}:5 word 2"]
    assert not read_tagged([write("iob1.conll", "a O\nb I-X\n")])[1].noted
