"""Words with tags as pieces with answers: what is learned is what the Tagger reads, in windows too."""

import random

import pytest
import torch

from plait import models
from plait.data.examples import IGNORED, Examples
from plait.tasks.labels import Tagger
from plait.tasks.tagging import Tagging, pieced, rows_of, spread
from plait.text.saving import with_roles
from plait.text.training import train_tokenizer

WORDS = "Anna's U.S.-based aunt, Dr. Öz, didn't see 3.5% of New-York — ok? x".split()
LABELS = ["O", "B-A", "I-A", "B-B", "I-B"]
NUMBERS = {label: i for i, label in enumerate(LABELS)}


@pytest.fixture(params=["bpe", "unigram", "words"])
def tokenizer(request):
    return with_roles(train_tokenizer(request.param, [" ".join(WORDS)] * 3, 300), "<s>", "</s>")


@pytest.mark.parametrize(
    ("tag", "parts"),
    [
        ("B-X", ["B-X", "I-X", "I-X"]),
        ("I-X", ["I-X", "I-X", "I-X"]),
        ("E-X", ["I-X", "I-X", "E-X"]),
        ("L-X", ["I-X", "I-X", "L-X"]),
        ("S-X", ["B-X", "I-X", "E-X"]),
        ("U-X", ["B-X", "I-X", "L-X"]),
        ("O", ["O"] * 3),
        ("NOUN", ["NOUN"] * 3),
        ("B-side", ["B-side", "I-side", "I-side"]),
    ],
)
def test_a_tag_over_parts_is_one_entity(tag, parts):
    assert spread(tag, 3) == parts and spread(tag, 1) == [tag]


class Told(Tagger):
    """A tagger whose scores are the answers of training: what it finds is what was taught."""

    def __init__(self, tokenizer, answers, max_length=64):
        super().__init__(None, tokenizer, max_length, LABELS)  # type: ignore[arg-type]
        self.answers = answers

    def probabilities(self, texts):
        chosen = [[max(answer, 0) for answer in self.answers]]
        return [torch.nn.functional.one_hot(torch.tensor(row), len(LABELS)).float() for row in chosen]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_taught_is_what_the_tagger_finds_in_the_text(tokenizer, seed):
    draw = random.Random(seed)
    words, tags = draw.sample(WORDS, 8), []
    while len(tags) < 8:
        kind, n = draw.choice(["A", "B", None]), draw.randint(1, 3)
        tags += ["O"] * n if kind is None else [f"B-{kind}", *[f"I-{kind}"] * (n - 1)]
    tags = tags[:8]
    one = pieced(tokenizer, words, tags, NUMBERS)
    assert one.ids == tokenizer.encode(" ".join(words))
    assert all(one.answers[first] == NUMBERS[tag] for first, tag in zip(one.firsts, tags, strict=True))
    wanted, at = [], 0
    for word, tag in zip(words, tags, strict=True):
        if tag[0] == "B":
            wanted.append([tag[2:], at, at + len(word)])
        elif tag[0] == "I":
            wanted[-1][2] = at + len(word)
        at += len(word) + 1
    found = Told(tokenizer, one.answers)([" ".join(words)])[0]
    assert [[e.label, e.start, e.end] for e in found] == wanted


def test_a_word_of_which_nothing_is_left_has_no_place():
    from tokenizers import normalizers, pre_tokenizers

    tokenizer = with_roles(train_tokenizer("bpe", ["abc"] * 3, 300), "<s>", "</s>")
    tokenizer.backend.normalizer = normalizers.Replace("\u200b", "")  # type: ignore[assignment]
    tokenizer.backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    one = pieced(tokenizer, ["a", "\u200b", "b"], ["B-A", "O", "B-B"], NUMBERS)
    assert one.firsts[1] is None and [one.answers[i] for i in (one.firsts[0], one.firsts[2])] == [1, 3]  # type: ignore[index]


@pytest.mark.parametrize("longest", [6, 7, 11, 200])
def test_windows_ask_for_each_tag_once_where_the_tagger_takes_it_from(tokenizer, longest):
    one = pieced(tokenizer, WORDS, ["B-A"] * len(WORDS), NUMBERS)
    rows = list(rows_of(one, tokenizer, longest))
    assert all(len(ids) == len(answers) <= longest for ids, answers in rows)
    assert sum(answer != IGNORED for _, answers in rows for answer in answers) == sum(answer != IGNORED for answer in one.answers)
    # The loss of the rows is that of the Tagger's own probabilities.
    torch.manual_seed(0)
    net = models.build(
        "modern-encoder", dict(vocab_size=400, d_model=16, n_heads=2, n_layers=1, d_ff=16, head="tag", labels=5, dropout=0.0)
    )
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    net.eval()
    with torch.no_grad():
        losses = [
            Tagging().loss(net, Examples(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool), torch.tensor([answers]))).total
            for ids, answers in rows
            if set(answers) != {IGNORED}
        ]
    (table,) = Tagger(net, tokenizer, longest, LABELS).probabilities([one.ids])
    wanted = -sum(table[i, answer].log() for i, answer in enumerate(one.answers) if answer != IGNORED)
    assert float(sum(losses)) == pytest.approx(float(wanted), rel=1e-4)
