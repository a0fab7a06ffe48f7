"""What random models write under a grammar is checked by Python's own `re` and `json`, and by jsonschema."""

import json
import re
import sys
from itertools import product

import pytest
import torch
from torch import nn

from plait.core.stream import Stream
from plait.errors import InputError
from plait.generate.constraints import Forced
from plait.generate.grammar import Grammar, Spelling, json_schema, regex
from plait.generate.required import Required
from plait.generate.running import Continuation
from plait.generate.search import search
from plait.generate.speculative import Lookup, Reader, speculating
from plait.text.spelling import spelled
from plait.text.training import train_tokenizer

llguidance = pytest.importorskip("llguidance")

TEXT = [
    '{"name": "Ann", "age": 17}',
    "the weather is mild and the river is high",
    "naïve café, 12:30",
    "a-b-c 0 1 2 3 4 5 6 7 8 9 true false null",
]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bc", None, True]}, "maxItems": 3},
        "at": {"anyOf": [{"type": "number"}, {"$ref": "#/$defs/point"}]},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
    "$defs": {"point": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"], "additionalProperties": False}},
}


class Table(nn.Module):
    """A random language model: a table of the scores of the next id by the last one and the place."""

    def __init__(self, vocab, seed):
        super().__init__()
        self.seed, self.vocab, self.weight = seed, vocab, nn.Parameter(torch.zeros(1))
        self.heads = {"lm": lambda hidden: hidden.clone()}

    def run(self, name, ids, memories=None, cache=None):
        rows = []
        for place, id in enumerate(ids[0].tolist(), cache.length):
            draws = torch.Generator().manual_seed(self.seed * 1000003 + place * 1009 + id)
            rows.append(torch.randn(self.vocab, generator=draws))
        cache.advance(len(rows))
        return Stream(torch.stack(rows)[None])


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def tokenizer(request, tmp_path_factory):
    """A byte-level vocabulary of ours, and a unigram one with a byte fallback as the SentencePiece library trains it."""
    if request.param == "byte-level":
        return train_tokenizer("bpe", TEXT, 330)
    sentencepiece = pytest.importorskip("sentencepiece")
    from plait.text.loading import load_tokenizer

    folder = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 4),
        model_prefix=str(folder / "spiece"),
        vocab_size=330,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def spelling(tokenizer):
    return Spelling(spelled(tokenizer), [tokenizer.eos_id])


def written(spelling, rules, seed, most=400, extra=0, constraints=()):
    """(the bytes of one greedy answer of a random model, whether it ended)"""
    vocab, (end,) = len(spelling.tokens) + extra, spelling.ready.eos_tokens
    prompt = [5, 6, 7]
    text = Continuation(prompt, most, [end], [Grammar(rules, spelling).at(len(prompt)), *constraints])
    list(speculating([(Reader(Table(vocab, seed)), text, Lookup())]))
    return b"".join(spelling.tokens[id] for id in text.ids), text.ended


@pytest.mark.parametrize(
    "pattern",
    [r"(mild|high|river)( and (a|the) [a-z]{2,5}){0,3}\.", r"\d{2}:\d{2}", r"[^\x00-\x7f]{3}", r"a/b\\c\n|d\+", "(?i:weather)", r"[a-z]*"],
)
@pytest.mark.parametrize("space", [False, True])
def test_every_answer_matches_the_expression(pattern, space, spelling):
    seen = set()
    for seed in range(6):
        data, ended = written(spelling, regex(pattern, space), seed, extra=3)
        text = data.decode()
        assert (re.fullmatch(f" ?(?:{pattern})" if space else pattern, text) is not None) == ended
        assert ended or pattern == r"[a-z]*"
        seen.add(text)
    assert len(seen) > 1  # the model still has a say


def test_every_answer_is_json_of_the_schema(spelling):
    jsonschema = pytest.importorskip("jsonschema")
    keys = set()
    for seed in range(12):
        data, ended = written(spelling, json_schema(SCHEMA), seed)
        assert ended
        value = json.loads(data)
        jsonschema.validate(value, SCHEMA)
        keys.add(tuple(value))
    assert len(keys) > 1


def test_beams_find_every_answer_of_the_grammar(tiny):
    """All that 'a(ba)*' allows within four ids, the end included, however it is cut into tokens."""
    tokens = [b"a", None, None, b"b", b"ab"]
    every = {ids for n in range(4) for ids in product([0, 3, 4], repeat=n)}
    wanted = {ids for ids in every if re.fullmatch(b"a(ba)*", b"".join(tokens[id] for id in ids))}
    grammar = Grammar(regex("a(ba)*"), Spelling(tokens, [2]), start=1)
    source = Stream(torch.tensor([[3, 4]]))
    (found,) = search(tiny(1), source, start=1, end=2, max_length=4, beams=64, n_best=64, constraints=[grammar])
    assert {tuple(h.ids) for h in found if h.ended} == wanted and len(wanted) > 3


def test_a_row_that_left_the_grammar_gets_nothing():
    spelling = Spelling([b"a", b"b", None], [2])
    scores = torch.zeros(4, 5)
    Grammar(regex("ab?"), spelling, 1)(scores, torch.tensor([[9, 0, 1], [9, 0, 0], [9, 1, 0], [9, 0, 2]]))
    allowed = [row.isfinite().nonzero().flatten().tolist() for row in scores]
    assert allowed == [[2], [], [], [2]]


def test_what_cannot_be_met_is_said(spelling):
    for rules, part in [
        (regex("(a"), "unclosed group"),
        (regex("a(?=b)"), "look-ahead"),
        (json_schema({"type": "integer", "minimum": 3, "maximum": 2}), "greater than maximum"),
        (json_schema({"type": "thing"}), "thing"),
        (json_schema({"not": {"type": "string"}}), "not"),
    ]:
        with pytest.raises(InputError, match="this grammar cannot be used") as caught:
            Grammar(rules, spelling)
        assert part in str(caught.value) and "<state>" not in str(caught.value)
    few = Spelling([b"a", b"b", None], [2])
    with pytest.raises(InputError, match="nothing this vocabulary can write"):
        Grammar(regex("c|d"), few)
    found = speculating([(Reader(Table(3, 0)), Continuation([0], 9, [2], [Grammar(regex("aa[xyz]"), few, 1)]), Lookup())])
    with pytest.raises(InputError, match="after 2 tokens every next one is forbidden"):
        list(found)
    for ends in ([], [7]):
        with pytest.raises(InputError, match="how an answer ends"):
            Spelling([b"a"], ends)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InputError, match=r"plait\[grammar\]"):
        Spelling([b"a", None], [1])


def test_spellings_join_to_the_decoded_text(tokenizer):
    tokens = spelled(tokenizer)
    for text in [*TEXT, "Zürich \u4e2d 😀"]:
        ids = tokenizer.encode(text)
        assert b"".join(tokens[id] for id in ids).decode().lstrip(" ") == tokenizer.decode(ids) == text
    assert tokens[tokenizer.eos_id] is None


@pytest.mark.parametrize(
    ("words", "most"), [([[3, 3, 0]], 4), ([[3, 3, 0]], 7), ([[0, 3], [0, 0, 0]], 8), ([[0, 3], [3, 0, 3]], 8), ([[3, 0, 3, 0]], 8)]
)
def test_required_words_are_written_in_time(words, most):
    """Whatever a model chooses: from each text every id that is left is taken, to the limit."""
    rule, running, ended = Required(words, [2], start=1, limit=1 + most), torch.tensor([[1]]), []
    for _ in range(most):
        scores = torch.full((len(running), 4), float("-inf"))
        scores[:, [0, 2, 3]] = 0.0
        rule(scores, running)
        assert scores.isfinite().any(1).all()  # no text is left without a way on
        row, id = scores.isfinite().nonzero(as_tuple=True)
        running = torch.cat([running[row], id[:, None]], 1)
        ended += running[id == 2].tolist()
        running = running[id != 2]
    found = [text[1:-1] for text in ended] + [text[1:] for text in running.tolist()]
    holds = [all(any(text[i : i + len(word)] == word for i in range(most)) for word in words) for text in found]
    assert found and all(holds)
    free = [text for n in range(most) for text in product([0, 3], repeat=n)]
    could = sum(all(any(list(text[i : i + len(word)]) == word for i in range(most)) for word in words) for text in free)
    assert len(ended) >= could / 2  # and few texts with all words in them are out of reach


def test_required_words_without_room_leave_nothing_to_write():
    scores = torch.zeros(1, 5)
    Required([[3, 4]], [2], start=1, limit=3)(scores, torch.tensor([[1]]))
    assert not scores.isfinite().any()


def test_a_forced_prefix_and_then_a_grammar(spelling, tokenizer):
    prefix = tokenizer.encode("the")
    data, ended = written(spelling, regex("the [a-z]{3}", space=True), 0, constraints=[Forced(dict(enumerate(prefix, 3)))])
    assert ended and re.fullmatch("the [a-z]{3}", data.decode().lstrip(" "))
