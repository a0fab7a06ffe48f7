"""Training from a built-in set by its name, and eval on its test part."""

import json

import pytest

from plait.data import builtin
from plait.data.interface import Record
from plait.hub import load

KINDS = {"fruit": "apple pear plum fig lime", "tool": "saw axe drill file rasp"}
TEXTS = [(f"{a} {name} {b}", kind) for kind, names in KINDS.items() for name in names.split() for a in "abcde" for b in "vwxyz"]
TINY = ["--preset", "modern-encoder-tiny", "--batch-tokens", "256", "--warmup", "3", "--evaluations", "2", "--tokenizer", "words"]


@pytest.fixture
def named(monkeypatch, tmp_path):
    """home-assistant:languages, made of texts of this file."""

    def records(files) -> list[Record]:
        return [(text, {"text": text, "label": kind}) for text, kind in TEXTS]

    class Nothing:
        def __enter__(self): ...
        def __exit__(self, *_): ...

    monkeypatch.setattr(builtin, "fetch", lambda package: Nothing())
    monkeypatch.setitem(builtin.FORMS, "languages", builtin.Form("classify", "", 0, ".tsv", records, builtin.table_of))
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    return "home-assistant:languages"


def test_from_a_name_to_its_test_part(named, plait, tmp_path):
    test = {text for text, _ in TEXTS if builtin.is_test(text)}
    code, said, err = plait("train", "classify", "--data", named, "--out", tmp_path / "run", "--steps", "30", *TINY)
    assert code == 0 and "its train part" in err, err
    assert len((tmp_path / "cache/sets/home-assistant-languages.train.tsv").read_text().splitlines()) == 1 + len(TEXTS) - len(test)
    code, said, err = plait("eval", tmp_path / "run", "--out", tmp_path / "answers.jsonl")
    found = json.loads(said)
    assert code == 0 and "its test part" in err and found["n"] == len(test)
    assert {json.loads(line)["text"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()} == test
    assert found["metrics"]["accuracy"] > 90 and found["baselines"]["majority"]["accuracy"] < 90
    assert load(str(tmp_path / "run")).labels == [*KINDS]


def test_a_named_set_becomes_a_file(named, plait, tmp_path):
    code, said, _ = plait("data", named, "--part", "test", "--out", tmp_path / "t.tsv")
    assert code == 0 and json.loads(said)["rows"] == len((tmp_path / "t.tsv").read_text().splitlines()) - 1
    code, said, _ = plait("data", "--json")
    assert code == 0 and '"classify"' in said


def test_an_unknown_set_says_which_there_are(refused, tmp_path):
    refused(["train", "classify", "--data", "home-assistant:tongues", "--out", tmp_path / "r", "--steps", "2"], "home-assistant:languages")
