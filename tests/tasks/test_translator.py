"""Texts in, texts out: pieces of what is too long, order, batches; and the objective's parts."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from plait.data.corpus import Corpus
from plait.data.pairs import Pair
from plait.errors import InputError
from plait.models import build
from plait.tasks.translation import TeacherForcing, Translator, slice_of
from plait.text.training import train_tokenizer

TOKENIZER = train_tokenizer("characters", ["abc .!äé"])


def made(max_source=12, max_target=9, tokenizer=TOKENIZER, dropout=0.3) -> Translator:
    torch.manual_seed(0)
    v = tokenizer.vocab_size
    shape = dict(d_model=16, n_heads=2, n_layers=1, d_ff=16, dropout=dropout, tie="none")
    net = build("modern", dict(source_vocab=v, target_vocab=v, **shape)).double()
    for p in net.parameters():
        nn.init.normal_(p, mean=float(p.dim() == 1), std=0.4)
    return Translator(net, tokenizer, tokenizer, max_source, max_target)


@pytest.fixture
def echo():
    """A translator whose search answers with its input, so that what went in can be seen."""
    t = made()
    t.seen = []  # type: ignore[attr-defined]

    def search(rows, n_best, **_):
        from plait.generate.search import Hypothesis

        t.seen += rows  # type: ignore[attr-defined]
        return [[Hypothesis(ids, -1.0, -1.0, True), Hypothesis([], -2.0, -2.0, True)][:n_best] for ids in rows]

    t.search = search  # type: ignore[method-assign]
    return t


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("abc", ["abc"]),
        ("abc abc abc.", ["abc abc abc."]),  # exactly as long as the model takes
        ("abc. abc! abc abc.", ["abc. abc!", "abc abc."]),  # at the ends of sentences, as few pieces as they allow
        ("abc abc abc abc abc", ["abc abc abc", "abc abc"]),  # at spaces where a sentence is too long
        ("a.\nb\n\nc abcabcabc", ["a. b", "c abcabcabc"]),
        ("abc abc abc abc. b.", ["abc abc abc", "abc. b."]),
    ],
)
def test_what_is_too_long_goes_in_pieces(text, pieces, echo):
    (answer,) = echo([text])
    assert [TOKENIZER.decode(ids) for ids in echo.pieces(text)] == pieces
    assert answer.text == " ".join(pieces) and answer.score == -1.0
    assert len(echo.seen) == len(pieces) and all(len(ids) <= 12 for ids in echo.seen)


def test_nothing_is_ever_cut(echo):
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(list("abc  .!\n"), n)) for n in draw.integers(0, 90, 60)]
    texts = [t for t in texts if max(map(len, t.split()), default=0) <= 12]
    assert len(texts) > 30 and max(map(len, texts)) > 40
    for text, answer in zip(texts, echo(texts), strict=True):
        assert answer.text.split() == text.split()


def test_only_a_neighbour_may_be_cut(echo):
    """With neighbours, what is behind the source goes when there is no room; of the source itself nothing does."""
    echo.extend = lambda text: f"{text} aaaaaaaa"
    texts = ["abc", "abc abc", "abc abc abc.", "abc abc abc. abc"]
    echo(texts)
    seen = [TOKENIZER.decode(ids) for ids in echo.seen]
    assert sorted(seen) == sorted(["abc aaaaaaaa", "abc abc aaaa", "abc abc abc.", "abc abc abc.", "abc aaaaaaaa"])


def test_a_word_without_a_place_to_cut_is_refused_by_number(echo):
    with pytest.raises(InputError) as error:
        echo(["abc", "abcabc" * 3, "ok a", "c" * 13], first=5)
    said = str(error.value)
    assert "input 6: 'abcabcabcabcabcabc'... is 18 tokens" in said and "this model takes 12" in said and "larger --context" in said
    assert "input 8:" in said and "input 5" not in said and not echo.seen


def test_empty_texts_have_empty_answers(echo):
    answers = echo(["", "abc", "  \n ", "b"])
    assert [a.text for a in answers] == ["", "abc", "", "b"] and len(echo.seen) == 2
    assert echo([]) == []


def test_texts_are_read_as_training_read_them(echo):
    """Stripped, composed (NFC), in one line: else the tokens would be ones that training never saw."""
    echo(["  a\tb ", "a\u0308e\u0301", "a\r\nb"])
    assert sorted(TOKENIZER.decode(ids) for ids in echo.seen) == ["a b", "a b", "äé"]


def test_unknown_characters_are_read_as_unknown():
    translate = made()
    assert translate.encode("axb") == [TOKENIZER.encode("a")[0], TOKENIZER.unk_id, TOKENIZER.encode("b")[0]]
    answers = translate(["axb", "日本"])
    assert all("<unk>" not in a.text and "<s>" not in a.text and "<pad>" not in a.text for a in answers)


TEXTS = ["abc", "a", "cab bac", "b. a! c", "", "aa bb cc aa bb cc aa", "cccc", "a", "éä"]


def test_order_and_batches_do_not_change_answers():
    translate = made()
    wanted = [translate([text], n_best=2)[0] for text in TEXTS]
    assert len({a.text for a in wanted}) > 4
    for how in (dict(batch_tokens=1), dict(batch_tokens=60), dict()):
        for texts, answers in ((TEXTS, wanted), (TEXTS[::-1], wanted[::-1])):
            found = translate(texts, n_best=2, **how)
            assert [a.text for a in found] == [a.text for a in answers]
            assert [a.score for a in found] == pytest.approx([a.score for a in answers], abs=1e-9)
            assert [[t for t, _ in a.alternatives] for a in found] == [[t for t, _ in a.alternatives] for a in answers]
    assert translate.net.training  # as it was


def test_the_best_and_its_runners_up():
    translate = made()
    (answer,) = translate(["abc"], beams=4, n_best=4)
    assert len(answer.alternatives) == 3
    assert len({answer.text, *(text for text, _ in answer.alternatives)}) == 4
    assert translate(["abc"], beams=4)[0].alternatives == () and translate(["abc"], beams=4)[0].text == answer.text
    (pieces,) = translate(["abc abc abc abc abc"], beams=4, n_best=4)
    assert pieces.alternatives == ()  # of several pieces there is no one ranking


@pytest.mark.parametrize(("budget", "beams"), [(1, 1), (40, 2), (10**6, 4)])
def test_batches_hold_every_row_once_within_their_budget(budget, beams):
    translate, rows = made(), [[0] * n for n in (3, 1, 9, 4, 4, 12, 2)]
    batches = list(translate.batches(rows, budget, beams))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(len(rows[i]) for i in batch) * beams <= budget for batch in batches)


def batch_of(texts):
    corpus = Corpus.encode([Pair(a, b) for a, b in texts], TOKENIZER, TOKENIZER)
    return corpus.batch(np.arange(len(corpus)))


BATCH = batch_of([("abc", "a"), ("a", "abcabc"), ("abcab", "c"), ("b", "b"), ("cc", "aaa")])


@pytest.mark.parametrize("n", [1, 2, 3, 5, 99])
def test_parts_hold_the_rows_of_the_batch(n):
    forcing, net = TeacherForcing(0.1), made().net.eval()
    parts = forcing.parts(BATCH, n)
    assert len(parts) == min(n, 5) and sum(map(len, parts)) == 5
    assert sum(p.n_target for p in parts) == BATCH.n_target and sum(map(forcing.size, parts)) == forcing.size(BATCH)
    with torch.no_grad():
        whole, split = forcing.loss(net, BATCH), [forcing.loss(net, part) for part in parts]
    assert_close(sum(loss.plain for loss in split), whole.plain, rtol=0, atol=1e-12)
    assert sum(loss.count for loss in split) == whole.count == BATCH.n_target


def test_a_slice_drops_the_columns_that_nobody_needs():
    part = slice_of(BATCH, torch.tensor([0, 3]))
    assert part.source.shape == (2, 3) and part.target_in.shape == (2, 2)
    assert part.source[1].tolist()[:1] == TOKENIZER.encode("b") and part.n_target == 4
    assert part.target_out[0].tolist() == [*TOKENIZER.encode("a"), TOKENIZER.eos_id]


def test_smoothing_is_for_training_only():
    net, forcing = made(dropout=0.0).net, TeacherForcing(0.2)
    net.train()
    trained = forcing.loss(net, BATCH)
    net.eval()
    judged = forcing.loss(net, BATCH)
    assert judged.total.item() == judged.plain.item() != trained.total.item()
    assert_close(judged.plain, trained.plain, rtol=1e-12, atol=0)
