"""The same bits alone and in any batch, joined late, cached or not, padded on either side: what `exactly` promises, in float32.

And a step's program chooses what its modules choose.
"""

import copy

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from plait.core import native
from plait.core.cache import Cache
from plait.core.stream import Stream
from plait.generate.layout import exactly
from plait.generate.running import Continuation, Running, continuing
from plait.generate.sampling import Draws, TopK

pytestmark = pytest.mark.skipif(native.library("step") is None, reason="nothing native can be built here")
VOCAB = 29
RULES = (TopK(12),)
TEXTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=7),  # prompt
        st.integers(1, 7),  # new tokens
        st.integers(1, 6),  # entries of its source
        st.booleans(),  # drawn
    ),
    min_size=2,
    max_size=5,
)


@pytest.fixture(scope="session")
def exact(net, ends):
    ends.need(causal=True)
    return exactly(copy.deepcopy(net).float().eval())


def source_of(i: int, length: int) -> torch.Tensor:
    return (torch.arange(length)[None] * 5 + i) % VOCAB


def texts_of(texts) -> list[Continuation]:
    return [Continuation(p, n, [3], RULES if draw else (), Draws.of(7, 0, p) if draw else None) for p, n, _, draw in texts]


def memories(net, ends, texts, batch: bool) -> list[Stream | None]:
    """Each text's encoder stream: of all sources in one padded batch, or of each alone."""
    if not ends.two:
        return [None] * len(texts)
    sources = [source_of(i, length) for i, (_, _, length, _) in enumerate(texts)]
    if not batch:
        return [net.run("encoder", source) for source in sources]
    longest = max(source.shape[1] for source in sources)
    ids = torch.cat([torch.nn.functional.pad(source, (0, longest - source.shape[1])) for source in sources])
    real = torch.tensor([[j < source.shape[1] for j in range(longest)] for source in sources])
    whole = net.run("encoder", Stream(ids, real=real))
    rows = [whole.x[i : i + 1, : source.shape[1]] for i, source in enumerate(sources)]
    return [Stream(row) for row in rows]


def greedy(net, ends) -> list[int]:
    with torch.inference_mode():
        memory = net.run("encoder", source_of(0, 4)) if ends.two else None
        text = Continuation([5, 2, 9], 8)
        list(continuing(Running(net), [([text], memory)]))
    return text.ids


@pytest.mark.capability("generate")
@settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])
@given(texts=TEXTS, at_once=st.integers(1, 4))
def test_texts_and_their_scores_are_the_same_bits_alone_and_together(exact, ends, texts, at_once):
    alone, together = texts_of(texts), texts_of(texts)
    with torch.inference_mode():
        for text, memory in zip(alone, memories(exact, ends, texts, False), strict=True):
            list(continuing(Running(exact), [([text], memory)]))
        prompts = [([text], memory) for text, memory in zip(together, memories(exact, ends, texts, True), strict=True)]
        list(continuing(Running(exact), prompts, at_once))
    assert [(text.ids, text.log_prob, text.ended) for text in alone] == [(text.ids, text.log_prob, text.ended) for text in together]


@pytest.mark.capability("generate")
@settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    ids=st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=9),
    cuts=st.sets(st.integers(1, 8), max_size=4),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
)
def test_hidden_vectors_are_the_same_bits_cached_in_parts_and_padded(exact, ends, ids, cuts, before, after):
    x = torch.tensor([ids])
    with torch.inference_mode():
        given_ = {"encoder": exact.run("encoder", source_of(0, 4))} if ends.two else {}
        whole = exact.run("decoder", x, given_).x
        scores = exact.heads[ends.head](whole)
        cache, parts = Cache(len(ids)), []
        for part in x.tensor_split(sorted(cut for cut in cuts if cut < len(ids)), 1):
            parts.append(exact.run("decoder", part, given_, cache).x)
        assert torch.equal(torch.cat(parts, 1), whole)
        assert torch.equal(exact.heads[ends.head](whole[:, -1]), scores[:, -1])
        padded = torch.nn.functional.pad(x, (before, after)).expand(2, -1)
        real = torch.ones_like(padded, dtype=torch.bool)
        real[:, :before] = False
        real[:, before + len(ids) :] = False
        beside = {name: Stream(stream.x.expand(2, -1, -1)) for name, stream in given_.items()}
        among = exact.run("decoder", Stream(padded, real=real), beside).x[1:, before : before + len(ids)]
        assert torch.equal(among, whole)


@pytest.mark.capability("generate")
def test_a_program_chooses_what_the_modules_choose(net, ends, monkeypatch):
    """Greedy ids of the step's program in float32, and those of the modules."""
    ends.need(causal=True)
    small = copy.deepcopy(net).float().eval()
    by_program = greedy(small, ends)
    monkeypatch.setattr("plait.core.program.MANY", 0)
    assert greedy(small, ends) == by_program
