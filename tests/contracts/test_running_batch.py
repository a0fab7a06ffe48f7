"""Texts have the same tokens alone, in any batch, joined late and beside others that leave; drawn or the likeliest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.generate.running import Continuation, Running
from plait.generate.sampling import Draws, TopK, drawn

VOCAB = 29
RULES = (TopK(12),)
TEXTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6),  # prompt
        st.integers(1, 6),  # new tokens
        st.integers(0, 4),  # step at which it joins
        st.integers(1, 2),  # samples of it
        st.booleans(),  # drawn
    ),
    min_size=2,
    max_size=4,
)


def uncached(net, ends, source, prompt, count, end, draws):
    """Each token by a forward of the whole text, alone."""
    ids = []
    while len(ids) < count:
        scores = ends.scores(net, source, torch.tensor([[*prompt, *ids]]))[:, -1]
        if draws is not None:
            RULES[0](scores, None)
        token = int(scores.argmax()) if draws is None else int(drawn(scores, [draws.uniform(len(ids))]))
        if token == end:
            break
        ids.append(token)
    return ids


@pytest.mark.capability("generate")
@settings(max_examples=8, deadline=None, derandomize=True)
@given(texts=TEXTS, leaves=st.booleans())
def test_texts_do_not_see_each_other(net, ends, texts, leaves):
    ends.need(causal=True)
    end, running, groups = 3, Running(net), []
    with torch.inference_mode():
        for i, (prompt, count, _, samples, draw) in enumerate(texts):
            source = torch.arange(i + 2)[None] % VOCAB if ends.two else None
            draws = [Draws.of(i, k, prompt) if draw else None for k in range(samples)]
            rows = [Continuation(prompt, count, [end], RULES if draw else (), one) for one in draws]
            memory = net.run("encoder", source) if ends.two else None
            groups.append((rows, memory, [uncached(net, ends, source, prompt, count, end, one) for one in draws]))
    for step in range(12):
        for (rows, memory, _), (_, _, joins, _, _) in zip(groups, texts, strict=True):
            if joins == step:
                running.join(*rows, memory=memory)
        if leaves and step == 2:
            running.leave(*groups[0][0])
        running.step()
    assert not len(running)
    for i, (rows, _, wanted) in enumerate(groups):
        for row, ids in zip(rows, wanted, strict=True):
            assert row.ids == (ids[: len(row.ids)] if leaves and i == 0 else ids)
