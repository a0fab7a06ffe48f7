"""Sets made of interface texts: what they hold, that their files are what the readers of their tasks read, and that parts are apart."""

import json
from contextlib import contextmanager

import pytest

from plait.data import builtin, interface, packages
from plait.data.conll import read_tagged
from plait.data.documents import Texts
from plait.data.squad import read_questions
from plait.data.tables import read_rows
from plait.places import cache_dir


class Small:
    """The files of a package, by their path."""

    def __init__(self, **texts):
        self.held = {
            f"x/components/{name.replace('_', '/translations/', 1)}.json": json.dumps(tree).encode() for name, tree in texts.items()
        }
        self.names = [*self.held, "x/components/lamp/other.json"]

    def read(self, name):
        return self.held[name]


LAMP = {
    "title": "Lamp",
    "error": {"no": "[%key:common::no%]", "bad": "Is the lamp on, or off?\n\nTurn  the Lamp on."},
    "a": "The lamp needs a password now.",
    "b": "Every password of yours stays here forever.",
    "c": "Turn the lamp on.\nNow.",
}
SMALL = Small(
    lamp_en=LAMP,
    fan_en={"a": "Turns {name} on if it is off."},
    lamp_de={"t": "Lampe", "u": "Lamp", "v": "Fan", "c": "Mach die Lampe an."},
    fan_sv={"a": "Fan"},
)


def test_a_document_holds_the_texts_of_a_component():
    found = [(key, record["text"]) for key, record in interface.documents(SMALL)]  # type: ignore[arg-type]
    lamp = ["Lamp", "Is the lamp on, or off? Turn the Lamp on.", LAMP["a"], LAMP["b"], "Turn the lamp on. Now."]
    assert found[:2] == [("fan", "Turns {name} on if it is off.\n"), ("lamp", "".join(f"{text}\n" for text in lamp))]
    assert found[2:] == [("lamp", "Lampe\nLamp\nFan\nMach die Lampe an.\n"), ("fan", "Fan\n")]  # German, Swedish


def test_languages_are_those_of_texts_in_one_language():
    """Lamp stands in English as it does in German, and Fan in two languages."""
    assert list(interface.languages(SMALL)) == [(text, {"text": text, "label": "de"}) for text in ("Lampe", "Mach die Lampe an.")]  # type: ignore[arg-type]


def test_marks_and_capitals_become_tags():
    found = [record for _, record in interface.punctuation(SMALL)]  # type: ignore[arg-type]
    assert found[0] == {
        "tokens": "is the lamp on or off turn the lamp on".split(),
        "tags": "CAP O O COMMA O QUESTION CAP O CAP PERIOD".split(),
    }
    assert len(found) == 4  # not what has a name of a place in it


def test_a_blank_is_filled_from_other_sentences():
    found = {record["answer"]: record for _, record in interface.blanks(SMALL)}  # type: ignore[arg-type]
    one = found["password"]
    assert one["question"] in ("The lamp needs a ____ now.", "Every ____ of yours stays here forever.")
    for record in found.values():
        assert record["context"][record["at"] :].startswith(record["answer"]) and record["context"].count(record["answer"]) == 1
        assert record["question"].replace("____", record["answer"]) not in record["context"]


@contextmanager
def no_package(package):
    yield SMALL


def test_the_files_are_what_the_tasks_read(monkeypatch, tmp_path):
    monkeypatch.setattr(builtin, "fetch", no_package)

    def file(kind):
        text, suffix, rows = builtin.written(f"home-assistant:{kind}", "all")
        path = tmp_path / (kind + suffix)
        path.write_bytes(text)
        return path, rows

    path, rows = file("languages")
    assert [row.values for row in read_rows([path], None, ("text", "label"))[0]] == [
        {"text": text, "label": "de"} for text in ("Lampe", "Mach die Lampe an.")
    ] and rows == 2
    path, rows = file("punctuation")
    assert [one.tags[-1] for one in read_tagged([path])[0]] == ["PERIOD", "PERIOD", "PERIOD", "PERIOD+CAP"] and rows == 4
    path, rows = file("blanks")
    asked = read_questions([path])[0]
    assert len(asked) == rows and ("password", asked[-1].context.index("password")) in asked[-1].answers
    path, rows = file("texts")
    assert [piece.text for piece in Texts([path])] == [record["text"] for _, record in interface.documents(SMALL)] and rows == 4  # type: ignore
    path, rows = file("en-de")
    assert path.read_text(encoding="utf-8") == "Turn the lamp on. Now.\tMach die Lampe an.\n" and rows == 1  # a line a pair


def test_the_sets_hold_what_the_list_says():
    if packages.find(builtin.HOME_ASSISTANT) is None:
        pytest.skip(f"homeassistant=={builtin.HOME_ASSISTANT.version} is neither installed nor in {cache_dir()}")
    for line in builtin.sets():
        kind = line.name.partition(":")[2]
        if kind not in builtin.FORMS:
            continue
        with builtin.fetch(builtin.HOME_ASSISTANT) as files:
            keys = [key for key, _ in builtin.FORMS[kind].records(files)]
        held = [key for key in keys if builtin.is_test(key)]
        assert len(keys) == line.rows, kind
        assert 0.03 < len(held) / len(keys) < 0.07, kind
