"""Words to an instance of a verb's dataclass; faults all at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from plait.cli import page
from plait.cli.parse import options, parse
from plait.errors import InputError
from plait.verbs import VERBS, Verb, positional


@dataclass
class Toy:
    """Do something.

    And say more.
    """

    model: Annotated[str, positional, "what to use"]
    data: Annotated[list[Path], "FILES", "what to read"]
    input: Annotated[list[str], positional, "what to say"] = field(default_factory=list)
    steps: int | None = None
    rate: Annotated[float, "how fast"] = 0.5
    context: int | Literal["all"] = "all"
    method: Literal["one", "two"] = "one"
    names: list[str] | None = None
    json: bool = False
    shuffle: bool = True
    min_new_tokens: int = 0


def faults(*words: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse(Toy, list(words))
    return caught.value.faults or [caught.value.message]


def test_every_form_of_an_option():
    words = "m a b --data x y --steps 3 --rate=1e-3 --context 7 --method two --names n --json --no-shuffle --min_new_tokens -1".split()
    wanted = Toy("m", [Path("x"), Path("y")], ["a", "b"], 3, 1e-3, 7, "two", ["n"], True, False, -1)
    assert parse(Toy, words) == wanted


def test_defaults_are_the_dataclass_ones():
    assert parse(Toy, ["m", "--data", "x"]) == Toy("m", [Path("x")])


def test_options_may_stand_between_positionals():
    assert parse(Toy, ["m", "--json", "a", "--steps", "2", "b", "--data", "x"]).input == ["a", "b"]


def test_a_list_option_may_be_given_again():
    assert parse(Toy, ["m", "--data", "x", "--json", "--data", "y"]).data == [Path("x"), Path("y")]


def test_a_required_positional_after_a_list_gets_the_last_word():
    @dataclass
    class Move:
        files: Annotated[list[str], positional]
        to: Annotated[str, positional]

    assert parse(Move, ["a", "b", "c"]) == Move(["a", "b"], "c")


@pytest.mark.parametrize("text", ["-1", "-", "- a line of speech", "-.5", "", "ä ß 字"])
def test_texts_that_only_look_like_options_are_texts(text):
    assert parse(Toy, ["m", text, "--data", "x"]).input == [text]


def test_what_follows_two_dashes_is_text():
    assert parse(Toy, ["m", "--data", "x", "--", "--json", "-x"]).input == ["--json", "-x"]


def test_all_faults_are_told_at_once():
    found = faults("m", "--step", "3", "--rate", "fast", "--method", "on", "--data", "--steps", "1", "--steps", "2", "--json=yes")
    assert len(found) == 6
    assert "--step: no such option; did you mean --steps" in found[0]
    assert found[1] == "--data needs a value: --data FILES"
    assert found[2] == "--steps is given twice"
    assert found[3] == "--json takes no value: write --json or --no-json"
    assert "--rate fast: expected a number" in found
    assert "--method on: expected one or two; did you mean one?" in found


@pytest.mark.parametrize("word", ["nan", "x", "", "1,5"])
def test_what_is_no_number_is_said(word):
    assert faults("m", "--data", "x", "--rate", word) == [f"--rate {word}: expected a number"]


def test_a_union_names_all_it_takes():
    assert faults("m", "--data", "x", "--context", "some") == ["--context some: expected a whole number or all"]


def test_missing_arguments_are_named_with_their_help():
    assert faults() == ["MODEL is missing: what to use", "--data is missing: what to read"]


def test_a_list_that_took_the_model_is_named():
    assert "perhaps --data took it" in faults("--data", "x", "m")[0]


def test_an_unknown_option_is_blamed_once():
    assert faults("--unknown", "m", "--data", "x") == ["--unknown: no such option; for a text that begins with a dash put -- before it"]


def test_a_positional_given_by_name_says_how():
    assert "write MODEL without --model" in faults("--model", "m", "--data", "x")[0]


def test_words_too_many():
    assert faults_of(["a", "b", "c"]) == ["'b' 'c': not expected here"]


def faults_of(words: list[str]) -> list[str]:
    @dataclass
    class One:
        name: Annotated[str, positional]

    with pytest.raises(InputError) as caught:
        parse(One, words)
    return caught.value.faults or [caught.value.message]


def test_a_type_without_a_form_is_our_bug():
    @dataclass
    class Odd:
        table: dict[str, int]

    with pytest.raises(TypeError, match="table"):
        options(Odd)


def test_the_page_of_a_verb_shows_every_option(monkeypatch):
    monkeypatch.setitem(VERBS, "toy", Verb(__name__, "Toy", "Do something."))
    monkeypatch.setattr(Verb, "load", lambda self: Toy)
    text = page.of_verb("toy")
    assert text.startswith("usage: plait toy MODEL [INPUT ...] --data FILES ... [options]\n\nDo something.\n\nAnd say more.\n")
    for option in options(Toy):
        assert (option.placeholder if option.positional else option.flag[2:]) in text
    assert "--method one|two" in text and "how fast (default 0.5)" in text and "what to read (required)" in text and "--no-shuffle" in text
