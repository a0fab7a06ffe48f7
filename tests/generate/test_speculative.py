"""Speculative decoding changes nothing: ids against those of a plain running batch and of search, greedy and drawn."""

import math

import pytest
import torch
from torch import nn

from plait.core.stream import Stream
from plait.errors import InputError
from plait.generate.constraints import AtLeast, NoRepeat
from plait.generate.running import Continuation, Running, continuing
from plait.generate.sampling import Draws, Temperature
from plait.generate.search import search
from plait.generate.speculative import Lookup, Reader, Smaller, Tally, speculating
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
    return [([*text.prompt, *text.ids][-1] + i * i) % VOCAB for i in range(most)]


def ids_of(reader, text, draft, tally=None):
    for one, _ in speculating([(reader, text, draft)], tally):
        assert one is text
    return text.ids


@pytest.mark.parametrize(("arch", "drawn"), [("gpt2", True), ("llama", False)])
@pytest.mark.parametrize("rules", [(), (AtLeast(20, [4]), NoRepeat(4))], ids=["free", "ruled"])
def test_any_draft_leaves_the_text_as_it_is(arch, drawn, rules):
    net, other, prompt = language_model(arch), language_model("gpt2", 10), [3, 7, 1, 3, 7]

    def text(k):
        return Continuation(prompt, 24, [4], (*rules, Temperature(0.7)), Draws.of(5, k, prompt) if drawn else None)

    drafts = {"lookup": Lookup(shortest=1), "other": Smaller(Reader(other)), "itself": Smaller(Reader(net)), "wrong": wrong}
    rejected = dict.fromkeys(drafts, 0)
    for k in range(6 if drawn else 1):
        plain = text(k)
        list(continuing(Running(net), [([plain], None)]))
        for name, draft in drafts.items():
            found, tally = text(k), Tally()
            assert ids_of(Reader(net), found, draft, tally) == plain.ids, name
            assert found.log_prob == pytest.approx(plain.log_prob, rel=1e-9) and found.ended == plain.ended
            assert tally.passes + tally.accepted == len(plain.ids) + plain.ended  # an id each pass, and the guesses that stood
            rejected[name] += tally.proposed - tally.accepted
            if name == "itself":  # the first, then 4, 8 and 16 guesses and one more
                assert tally.passes <= 4
    assert not rejected["itself"] and (not drawn or (rejected["wrong"] and rejected["other"]))


@pytest.mark.parametrize("arch", ["modern", "vaswani"])
@pytest.mark.parametrize("seed", range(2))
def test_decoders_that_read_a_source(arch, seed, tiny):
    net, small = tiny(seed, arch), tiny(seed + 5, arch)
    source = torch.tensor([[3, 4, 0, 3]])
    ((best,),) = search(net, Stream(source), start=START, end=END, max_length=20)
    with torch.no_grad():
        memories = [{"encoder": one.run("encoder", source)} for one in (net, small)]
    for draft in (Lookup([3, 4, 0, 3], shortest=1), Smaller(Reader(small, memories[1])), wrong):
        assert ids_of(Reader(net, memories[0], room=21), Continuation([START], 20, [END]), draft) == best.ids


def test_copied_text_takes_few_passes():
    """A model that counts in circles, so that all but the first round is copied."""
    scores = torch.zeros(VOCAB, VOCAB)
    scores[torch.arange(VOCAB), (torch.arange(VOCAB) + 1) % VOCAB] = 5.0
    tally = Tally()
    assert ids_of(Reader(Table(scores)), Continuation([0], 100), Lookup(), tally) == [(1 + i) % VOCAB for i in range(100)]
    assert tally.passes == 6 + 1 + 1 + math.ceil((100 - 6 - 5 - 9) / 17)  # the first round; then 4, 8 and 16 guesses and one more


def test_guesses_that_are_mostly_right_mostly_stand():
    """Drawn from nearly the same distributions with the same random numbers."""
    torch.manual_seed(3)
    scores, text = torch.randn(VOCAB, VOCAB).double(), Continuation([4], 300, draws=Draws(1))
    tally = Tally()
    ids_of(Reader(Table(scores)), text, Smaller(Reader(Table(scores + 0.1 * torch.randn(VOCAB, VOCAB)))), tally)
    assert tally.accepted > 0.7 * tally.proposed and tally.passes < 40


def test_what_cannot_go_on_is_said():
    net = Table(torch.zeros(VOCAB, VOCAB))
    assert ids_of(Reader(net), Continuation([1], 0), Lookup()) == []

    def nothing(scores, ids):
        if ids.shape[1] == 3:
            scores.fill_(float("-inf"))

    found = speculating([(Reader(net), Continuation([1], 5, rules=[nothing], name="the third"), Smaller(Reader(net)))])
    assert [next(found)[1], next(found)[1], next(found)[1]] == [0, 0, None]
    with pytest.raises(InputError, match="the third: after 2 tokens every next one is forbidden"):
        next(found)
    with pytest.raises(InputError, match="not numbers"):
        ids_of(Reader(Table(torch.full((VOCAB, VOCAB), math.nan))), Continuation([1], 5), Lookup())
    with pytest.raises(InputError, match="same vocabulary"):
        ids_of(Reader(net), Continuation([4], 5), lambda text, most: [VOCAB])


def test_a_text_stops_amid_guesses():
    scores = torch.eye(VOCAB).roll(1, 1)  # counts in circles
    text = Continuation([0], 50, stopped=lambda ids: len(ids) == 13)
    assert ids_of(Reader(Table(scores)), text, Lookup()) == [(1 + i) % VOCAB for i in range(13)] and text.ended


def test_the_longest_and_latest_match_is_proposed():
    text = Continuation([1, 2, 3, 9, 2, 3, 8], 99, ids=[5, 2, 3, 7, 1, 2, 3])
    assert Lookup()(text, 2) == [9, 2]  # three ids match at the start, two later
    assert Lookup(longest=2)(text, 3) == [7, 1, 2]
    assert Lookup(shortest=4)(text, 3) == []
    assert Lookup([7, 1, 2, 3, 6, 6])(text, 9) == [6, 6]
    assert Lookup()(Continuation([5], 9), 3) == []
