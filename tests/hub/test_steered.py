"""Grammars, guesses, cancelled streams and inputs that fail, for texts of a language model with random weights."""

import io
import json
import re
import sys

import pytest
import torch

import plait as library
from plait import cli
from plait.errors import InputError
from plait.generate.running import Continuation, Running, continuing

PROMPTS = ["the door", "ab", "", "é漢"]


@pytest.fixture(scope="module")
def model(gpt2):
    return library.load(gpt2)


@pytest.fixture(scope="module")
def draft(gpt2):
    """A model of the same vocabulary that mostly says the same."""
    other = library.load(gpt2)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in other.net.parameters():
            p.add_(torch.randn_like(p), alpha=0.01)
    return other


# ---- grammars


PATTERN = r"[a-f]{3,6}-[0-9]{1,9}\."
SCHEMA = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "name": {"enum": ["Ann", "Bo"]},
        "n": {"type": "array", "maxItems": 2, "items": {"const": 7}},
    },
    "required": ["ok", "name", "n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("how", [{}, {"temperature": 1.5, "n": 3}, {"temperature": 1.0, "top_k": 1}, {"beams": 3, "n": 3}], ids=str)
def test_answers_follow_a_grammar(model, how):
    pytest.importorskip("llguidance")
    jsonschema = pytest.importorskip("jsonschema")
    texts = model.generate(PROMPTS, 20, regex=PATTERN, **how)
    texts = [text for some in texts for text in some] if "n" in how else texts
    assert all(re.fullmatch(PATTERN, text) for text in texts) and len(set(texts)) > 1
    for given in (SCHEMA, json.dumps(SCHEMA))[: 1 if how else 2]:
        texts = model.generate(PROMPTS[:2], 45, json_schema=given, **how)
        for text in [text for some in texts for text in some] if "n" in how else texts:
            jsonschema.validate(json.loads(text), SCHEMA)


def test_a_grammar_is_followed_in_any_batch_streamed_and_in_a_conversation(model):
    pytest.importorskip("llguidance")
    how = dict(max_new_tokens=20, regex="[a-c]{4,9}", temperature=1.0, seed=3)
    together = model.generate(PROMPTS, **how)
    assert (
        together == [model.generate(text, **how) for text in PROMPTS] == ["".join(model.generate(t, **how, stream=True)) for t in PROMPTS]
    )
    assert re.fullmatch("yes|no", model.chat([{"role": "user", "content": "So?"}], 9, regex="yes|no"))


def test_a_sentencepiece_answer_matches_without_the_space_before_its_first_word(tmp_path, words, peer_of):
    pytest.importorskip("llguidance")
    sentencepiece = pytest.importorskip("sentencepiece")
    peer_of("llama", vocab_size=300).save_pretrained(tmp_path)
    text = ["the cat sat and the dog ran", "a door is open", "windows are shut 0123456789"] * 4
    trainer = sentencepiece.SentencePieceTrainer.train
    trainer(sentence_iterator=iter(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=300, byte_fallback=True,
            hard_vocab_limit=False, minloglevel=2, bos_id=0, eos_id=1, unk_id=2)  # fmt: skip
    (tmp_path / "tokenizer.vocab").unlink()
    model = library.load(tmp_path)
    for prompt in ("the", "a door"):
        assert re.fullmatch("[a-z]{3} [a-z]{2}", model.generate(prompt, 30, regex="[a-z]{3} [a-z]{2}"))


def test_a_grammar_that_does_not_end_in_time_is_cut(model, gpt2, capsys):
    pytest.importorskip("llguidance")
    assert re.fullmatch("[ab]{6}", model.generate("x", 6, regex="[ab]{9}"))
    for most, ended in ((6, False), (9, False), (10, True)):  # the end is a token too
        words = ["run", str(gpt2), "x", "--regex", "[ab]{9}", "--max-new-tokens", str(most), "--json"]
        assert cli.main(words) == 0
        said = json.loads(capsys.readouterr().out)
        assert len(said["answer"]) == min(most, 9) and said["ended"] == ended


def test_grammars_that_cannot_be(model, gpt2, monkeypatch):
    pytest.importorskip("llguidance")
    for how, says in (
        (dict(regex="(a"), "(?s)this grammar cannot be used.*unclosed group"),
        (dict(json_schema={"type": "integer", "minimum": 3, "maximum": 2}), "greater than maximum"),
        (dict(json_schema='{"type": '), "json_schema: is no JSON"),
        (dict(json_schema="[]"), "expected an object"),
        (dict(json_schema={"enum": {1}}), "json_schema: is no JSON"),
        (dict(json_schema=3, regex=4), "(?s)json_schema=3: expected.*regex=4: expected"),
        (dict(json_schema={}, regex="a", beams=2, speculate="lookup"), "(?s)one grammar.*|speculation goes with one beam"),
        (dict(speculate="magic"), "speculate='magic': expected 'lookup', or a loaded model"),
    ):
        with pytest.raises(InputError, match=says):
            model.generate("a", **how)
    with pytest.raises(InputError, match=r"(?s)unclosed group.*input 2: .* room for 64"):
        model.generate(["a", "b" * 60], 9, regex="(a")
    with pytest.raises(InputError, match="input 1: after 2 tokens every next one is forbidden"):
        model.generate("a", 9, 5, regex="ab")  # ended, and may not end
    model.parts.__dict__["tokenizers"], kept = None, model.parts.tokenizers
    try:
        with pytest.raises(InputError, match="regex='a': this model has no tokenizer"):
            model.generate([1], 3, regex="a")
    finally:
        model.parts.__dict__["tokenizers"] = kept


def test_without_the_library_the_extra_is_named(gpt2, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert cli.main(["run", str(gpt2), "a", "--regex", "a"]) == 2
    assert "pip install 'plait[grammar]'" in capsys.readouterr().err


# ---- guesses


@pytest.mark.parametrize("how", [{}, {"temperature": 0.9, "seed": 4, "n": 2}, {"no_repeat_ngram_size": 3, "min_new_tokens": 12}], ids=str)
def test_guesses_change_no_text(model, draft, how):
    model.net.double()
    draft.net.double()
    try:
        plain = model.generate(PROMPTS[:2], 20, **how)
        for guess in ("lookup", draft):
            assert model.generate(PROMPTS[:2], 20, **how, speculate=guess) == plain
        if "n" not in how:
            stop = plain[0][7:9]
            streams = [model.generate(PROMPTS[0], 20, **how, stop=stop, speculate=guess, stream=True) for guess in (None, "lookup", draft)]
            assert len({"".join(stream) for stream in streams}) == 1
    finally:
        model.net.float()
        draft.net.float()


def test_a_grammar_and_guesses(model, draft):
    pytest.importorskip("llguidance")
    plain = model.generate(PROMPTS[:2], 20, regex="(abc|abd|[x-z]{2}){3,}")
    assert [model.generate(PROMPTS[:2], 20, regex="(abc|abd|[x-z]{2}){3,}", speculate=guess) for guess in ("lookup", draft)] == [
        plain,
        plain,
    ]


def test_who_cannot_guess(model, llama):
    other = library.load(llama)
    with pytest.raises(InputError, match=r"(?s)speculate=.*llama: expected a language model with the 257 ids.*room for 64"):
        model.generate("b" * 62, 9, speculate=other)


def test_guesses_on_the_command_line(gpt2, capsys):
    outs = []
    for words in ([], ["--speculate", "lookup"], ["--speculate", str(gpt2)]):
        assert cli.main(["run", str(gpt2), "the door", "b", "--max-new-tokens", "12", *words]) == 0
        outs.append(capsys.readouterr().out)
    assert len(set(outs)) == 1
    assert cli.main(["run", str(gpt2), "a", "--speculate", "lookup", "--beams", "2"]) == 2
    assert "speculation goes with one beam" in capsys.readouterr().err


# ---- grammars on the command line


def test_schemas_on_the_command_line(gpt2, tmp_path, capsys):
    pytest.importorskip("llguidance")
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"enum": ["Ann", "Bo"]}))
    for given in (str(file), '{"enum": ["Ann", "Bo"]}'):
        assert cli.main(["run", str(gpt2), "a", "--json-schema", given]) == 0
        assert capsys.readouterr().out in ('a"Ann"\n', 'a"Bo"\n')
    file.write_bytes(b"\xff")
    for given, says in (
        (str(tmp_path / "none.json"), "none.json: there is no such file"),
        (str(file), "is not UTF-8"),
        ('{"type": 3}', "this grammar cannot be used"),
        ("{", "is no JSON"),
    ):
        assert cli.main(["run", str(gpt2), "a", "b", "--json-schema", given]) == 2
        said = capsys.readouterr()
        assert says in said.err and said.out == "" and said.err.count(says) == 1


# ---- texts that fail, and those that are left


def failing(length, how):
    """A rule under which a text of so many ids so far has no next one; the prompt's first id says which texts."""

    def rule(scores, ids):
        scores[(ids[:, 0] == 7) & (ids.shape[1] == length)] = how

    return rule


@pytest.mark.parametrize("how", [float("-inf"), float("nan")])
def test_a_text_that_fails_leaves_and_the_others_go_on(model, how):
    def texts(*rules):
        return [Continuation([first, 5], 6, rules=rules, name=f"text {first}") for first in (7, 8, 7, 9)]

    plain, found = texts(), texts(failing(4, how))
    list(continuing(Running(model.net), [([text], None) for text in plain]))
    running = Running(model.net)
    with pytest.raises(InputError, match=r"(?s)text 7: after 2 tokens.*text 7: after 2 tokens"):
        list(continuing(running, [([text], None) for text in found]))
    assert [text.ids for text in found] == [text.ids[: 2 if text.prompt[0] == 7 else 6] for text in plain] and not len(running)


def test_a_stream_that_is_left_leaves_the_running_batch(model):
    running, other = Running(model.net), Continuation([3], 9)
    mine = [[Continuation([first, 5], 6)] for first in range(4)]
    running.join(other)
    stream = continuing(running, [(some, None) for some in mine], at_once=3)
    assert len([next(stream) for _ in range(4)]) == 4
    stream.close()
    assert running.rows == [other] and not running.waiting
    while len(running):
        running.step()
    assert other.ids == model.generate([3], 9)


def test_no_tokens_and_a_stop_that_is_never_met(model, gpt2, capsys):
    for how in ({}, {"temperature": 1.0}, {"beams": 2}, {"speculate": "lookup"}, {"stop": "never"}):
        assert model.generate(PROMPTS, 0, **how) == [""] * 4
    assert list(model.generate("a", 0, stream=True)) == []
    assert cli.main(["run", str(gpt2), "a", "--max-new-tokens", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"input": "a", "answer": "", "ended": False}
    assert (
        model.generate("a", 12, stop="never met")
        == model.generate("a", 12)
        == "".join(model.generate("a", 12, stop="never met", stream=True))
    )


@pytest.mark.parametrize("batch", ["1", "3", "64"])
def test_lines_that_fail_do_not_stop_the_others(gpt2, model, batch, capsys, monkeypatch):
    """Too long for the context; after which nothing may come (an end that may not come)."""
    lines = ["a", "b" * 60, "c", "d", "e" * 70, "é", "g"]
    wanted = [line if len(line) > 50 else line + model.generate(line, 8) for line in lines]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode()), encoding="utf-8"))
    words = ["run", str(gpt2), "--max-new-tokens", "8", "--batch", batch]
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert said.out == "".join(("" if len(line) > 50 else line) + "\n" for line in wanted)
    assert said.err.startswith("plait: 2 of 7 inputs cannot be answered\n")
    assert "  - input 2: is 60 tokens long" in said.err and "  - input 5: is 70 tokens long" in said.err
    assert cli.main([*words, *lines, "--json"]) == 2
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["input"] for row in rows] == lines
    assert [i for i, row in enumerate(rows) if "error" in row] == [1, 4] and rows[0]["input"] + rows[0]["answer"] == wanted[0]


def test_wrong_options_are_said_once(gpt2, capsys):
    assert cli.main(["run", str(gpt2), "a", "b", "c", "--top-p", "0.5", "--seed=-1"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("seed=-1") == 1


def test_an_empty_text_where_nothing_begins_one(model, gpt2, monkeypatch, capsys):
    monkeypatch.setattr(model, "start", None)
    with pytest.raises(InputError, match=r"(?s)input 2: is empty, .*input 4: is empty"):
        model.generate(["a", "", "b", ""], 3)
