"""Speculative decoding loses nothing: greedy against plain greedy and search, drawn ids against the exact distribution by chi-square."""

import math
import random
from collections import Counter

import pytest
import torch
from torch import nn

from plait.core.stream import Stream
from plait.errors import InputError
from plait.generate.constraints import AtLeast, NoRepeat
from plait.generate.greedy import continued
from plait.generate.search import search
from plait.generate.speculative import Lookup, Reader, Smaller, Tally, speculated
from plait.models import build

VOCAB, START, END = 5, 1, 2


def language_model(arch, seed=0, vocab=13, **changes):
    torch.manual_seed(seed)
    shape = dict(d_model=16, n_heads=2, n_layers=1, d_ff=16, vocab_size=vocab, max_length=128, **changes)
    net = build(arch, shape).double().eval()
    for p in net.parameters():
        nn.init.normal_(p, mean=float(p.dim() == 1), std=0.3)
    return net


class Table(nn.Module):
    """A language model that is a table: the scores of the next id by the last one. It reads through a cache as models do."""

    def __init__(self, scores):
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.heads = {"lm": lambda hidden: hidden.clone()}

    def run(self, name, ids, memories=None, cache=None):
        cache.advance(ids.shape[1])
        return Stream(self.scores[ids])


def wrong(text, most):
    """A draft that is mostly wrong, and long."""
    return [(text[-1] + i * i) % VOCAB for i in range(most)], None


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("constraints", [(), (AtLeast(20, [4]), NoRepeat(4))], ids=["free", "constrained"])
def test_any_draft_leaves_the_greedy_answer_as_it_is(arch, constraints):
    net, other = language_model(arch), language_model("gpt2", 10)
    prompt = [3, 7, 1, 3, 7]
    plain = list(continued(net, prompt, 24, {4}, constraints))
    drafts = {"lookup": Lookup(shortest=1), "other": Smaller(Reader(other)), "itself": Smaller(Reader(net)), "wrong": wrong}
    for name, draft in drafts.items():
        tally = Tally()
        assert list(speculated(Reader(net), prompt, 24, draft, stop={4}, constraints=constraints, tally=tally)) == plain, name
        assert tally.passes + tally.accepted == len(plain) + (len(plain) < 24)  # an id each pass, and the guesses that stood
        if name == "itself" and not constraints:
            assert tally.passes <= 4


@pytest.mark.parametrize("arch", ["modern", "vaswani"])
@pytest.mark.parametrize("seed", range(2))
def test_decoders_that_read_a_source(arch, seed, tiny):
    net, small = tiny(seed, arch), tiny(seed + 5, arch)
    source = torch.tensor([[3, 4, 0, 3]])
    ((best,),) = search(net, Stream(source), start=START, end=END, max_length=20)
    with torch.no_grad():
        memories = [{"encoder": one.run("encoder", source)} for one in (net, small)]
    for draft in (Lookup([3, 4, 0, 3], shortest=1), Smaller(Reader(small, memories[1])), wrong):
        assert list(speculated(Reader(net, memories[0], room=21), [START], 20, draft, stop={END})) == best.ids


def test_copied_text_takes_few_passes():
    """A model that counts in circles, so that all but the first round is copied."""
    scores = torch.zeros(VOCAB, VOCAB)
    scores[torch.arange(VOCAB), (torch.arange(VOCAB) + 1) % VOCAB] = 5.0
    tally = Tally()
    found = list(speculated(Reader(Table(scores)), [0], 100, Lookup(), tally=tally))
    assert found == [(1 + i) % VOCAB for i in range(100)]
    assert tally.passes == 6 + 1 + 1 + math.ceil((100 - 6 - 5 - 9) / 17)  # the first round; then 4, 8 and 16 guesses and one more


def even(counts, expected, rows):
    """Whether counts agree with those expected, in `rows` draws of a fixed number each: so not one time in 10,000 by chance."""
    assert sum(counts.values()) == pytest.approx(sum(expected.values()))
    cells = {cell: e for cell, e in expected.items() if e > 0}
    if any(counts[cell] for cell in counts if cell not in cells):
        return False
    statistic, freedom = sum((counts[cell] - e) ** 2 / e for cell, e in cells.items()), len(cells) - rows
    # Wilson & Hilferty 1931: the cube root of chi-square over its freedom is nearly normal
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom)) < 3.72


def hotter(scores, ids):
    scores.mul_(0.6)


def not_three(scores, ids):
    scores[:, 3] = float("-inf")


@pytest.mark.parametrize("name", ["smaller", "hotter", "certain", "lookup"])
def test_drawn_ids_have_the_models_own_distribution(name):
    """What follows each id, in 3000 ids: the row of the table, whatever was guessed."""
    torch.manual_seed(3)
    net, small = Table(torch.randn(VOCAB, VOCAB).double()), Table(torch.randn(VOCAB, VOCAB).double())
    p = net.scores.detach().clone()
    p[:, 3] = float("-inf")
    p = p.softmax(1).tolist()
    draws = random.Random(0)
    draft = {
        "smaller": Smaller(Reader(small), random=draws.random),
        "hotter": Smaller(Reader(net), [hotter], draws.random),  # guesses ids that the model may not write, too
        "certain": Smaller(Reader(small)),
        "lookup": Lookup(shortest=1),
    }[name]
    tally, counts = Tally(), Counter()
    for _ in range(10):
        found = list(speculated(Reader(net), [4], 300, draft, constraints=[not_three], random=draws.random, tally=tally))
        counts.update(zip([4, *found], found))
    begins = Counter({a: sum(counts[a, b] for b in range(VOCAB)) for a in range(VOCAB)})
    wanted = {(a, b): begins[a] * p[a][b] for a in begins for b in range(VOCAB) if begins[a]}
    assert not even(counts, {(a, b): begins[a] / 4 for a, b in wanted if b != 3}, len(begins))  # it can tell distributions apart
    assert even(counts, wanted, sum(n > 0 for n in begins.values()))
    assert 0.1 * tally.proposed < tally.accepted < 0.9 * tally.proposed
    assert tally.passes + tally.accepted == 3000


def test_what_cannot_go_on_is_said():
    net = Table(torch.zeros(VOCAB, VOCAB))
    assert list(speculated(Reader(net), [1], 0, Lookup())) == []
    with pytest.raises(InputError, match="nothing to continue"):
        list(speculated(Reader(net), [], 3, Lookup()))

    def nothing(scores, ids):
        if ids.shape[1] == 3:
            scores.fill_(float("-inf"))

    found = speculated(Reader(net), [1], 5, Smaller(Reader(net)), constraints=[nothing])
    assert [next(found), next(found)] == [0, 0]
    with pytest.raises(InputError, match="no token may follow the 3 so far"):
        next(found)
    with pytest.raises(InputError, match="no finite numbers"):
        list(speculated(Reader(Table(torch.full((VOCAB, VOCAB), math.nan))), [1], 5, Lookup()))
    wide = Table(torch.eye(VOCAB + 2).roll(1, 1))
    with pytest.raises(InputError, match="same vocabulary"):
        list(speculated(Reader(net), [4], 5, lambda text, most: ([VOCAB], None)))
    with pytest.raises(InputError, match="it has 7 ids"):
        list(speculated(Reader(net), [4], 5, Smaller(Reader(wide), random=lambda: 0.0)))


def test_the_longest_and_latest_match_is_proposed():
    text = [1, 2, 3, 9, 2, 3, 8, 5, 2, 3, 7, 1, 2, 3]
    assert Lookup()(text, 2) == ([9, 2], None)  # three ids match at the start, two later
    assert Lookup(longest=2)(text, 3) == ([7, 1, 2], None)
    assert Lookup(shortest=4)(text, 3) == ([], None)
    assert Lookup([7, 1, 2, 3, 6, 6])(text, 9) == ([6, 6], None)
    assert Lookup()([5], 3) == ([], None)
