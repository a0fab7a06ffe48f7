"""What texts begin with in common is read once and kept once, and their tokens are the same as without a cache."""

import pytest
import torch

from plait.core import cache
from plait.errors import InputError
from plait.generate import prompts as module
from plait.generate.prompts import Prompts
from plait.generate.running import Continuation, Running
from plait.generate.sampling import Draws, TopK, drawn

VOCAB = 29
RULES = (TopK(12),)
SYSTEM = [5, 7, 11, 2, 19, 23, 4, 8]
TEXTS = [  # (prompt, samples, step at which it joins)
    ([*SYSTEM, 9], 1, 0),
    ([*SYSTEM, 10, 11, 12], 3, 0),
    ([13, 14], 2, 0),
    ([*SYSTEM, 10, 11, 17, 18], 2, 1),
    ([*SYSTEM, 9], 1, 3),
]


@pytest.fixture
def eager(monkeypatch):
    """Shares where it would not pay yet."""
    monkeypatch.setattr(cache, "WORTH", 4)
    monkeypatch.setattr(module, "WORTH", 4)
    monkeypatch.setattr(module, "LEAST", 3)


def uncached(net, ends, source, prompt, draws):
    ids = []
    while len(ids) < 5:
        scores = ends.scores(net, source, torch.tensor([[*prompt, *ids]]))[:, -1]
        RULES[0](scores, torch.empty(1, 0))
        ids.append(int(drawn(scores, [draws.uniform(len(ids))])))
    return ids


@pytest.mark.parametrize("remembered", [0, 10**9], ids=["forgotten", "remembered"])
@pytest.mark.parametrize("arch", ["gpt2", "llama", "opt", "t5", "bart", "modern-decoder"], indirect=True)
def test_texts_that_begin_alike_are_as_alone(net, ends, arch, remembered, eager, monkeypatch):
    memory = Prompts(remembered) if remembered else None
    source = torch.arange(4)[None] if ends.two else None
    running, read, rows, most = Running(net, prompts=memory), [], [], 0
    run = running.run
    monkeypatch.setattr(running, "run", lambda ids, *rest: (read.append(ids.numel()), run(ids, *rest))[1])
    for step in range(10):
        for i, (prompt, samples, joins) in enumerate(TEXTS):
            if joins == step:
                texts = [Continuation(prompt, 5, (), RULES, Draws.of(i, k, prompt)) for k in range(samples)]
                running.join(*texts, memory=net.run("encoder", source) if ends.two else None)
                rows += [(text, Draws.of(i, k, prompt)) for k, text in enumerate(texts)]
        running.step()
        most = max(most, len({trunk for chain in (running.cache.chains if running.cache else []) for trunk in chain}))
    assert not len(running) and len(rows) == 9
    with torch.inference_mode():
        for text, draws in rows:
            assert text.ids == uncached(net, ends, source, text.prompt, draws)
    assert most > 0
    once = 8 + 1 + 3 + 2 + 2 + 1  # the common beginning, and of each text what is its own
    new = 9 * 5 - 9  # of each text the first id comes from its prompt
    assert sum(read) - new == (once if not ends.two else sum(len(prompt) for prompt, _, _ in TEXTS))


@pytest.mark.parametrize("arch", ["gpt2"], indirect=True)
def test_what_was_read_is_kept_up_to_its_bound(net, arch, eager, monkeypatch):
    def read(prompt, memory):
        running, ids = Running(net, prompts=memory), []
        run = running.run
        monkeypatch.setattr(running, "run", lambda given, *rest: (ids.append(given.shape[1]), run(given, *rest))[1])
        text = Continuation(prompt, 1)
        running.join(text)
        running.step()
        return ids, text.ids

    whole, fresh = Prompts(10**9), {tuple(p): read(p, None)[1] for p, _, _ in TEXTS}
    assert [read(p, whole)[0] for p, _, _ in TEXTS] == [[9], [3], [2], [2], [1]]
    assert all(read(p, whole) == ([1 if len(p) > 2 else 2], fresh[tuple(p)]) for p, _, _ in TEXTS)  # two ids are not looked for
    small = Prompts(2 * module.nbytes_of([whole.known[None, tuple(TEXTS[0][0])]]))
    for ids in ([1] * 9, [2] * 9, [1] * 9, [3] * 9):
        read(ids, small)
        assert small.nbytes <= small.most
    assert [ids[0] for _, ids in small.known] == [1, 3]


@pytest.mark.parametrize("arch", ["gpt2"], indirect=True)
def test_an_exact_model_shares_nothing(net, arch, eager, monkeypatch):
    monkeypatch.setattr(net, "exact", True)
    running = Running(net, prompts=Prompts(10**9))
    for prompt in ([*SYSTEM, 1], [*SYSTEM, 2]):
        running.join(Continuation(prompt, 3))
    assert running.begun() == [(), ()]


@pytest.mark.parametrize("arch", ["llama", "bart"], indirect=True)
def test_eight_bits_change_scores_a_little(net, ends, arch, eager, monkeypatch):
    """Over a running batch; the bound is ten times what they differ by, and a tenth of what scores differ by among themselves."""
    found = {}
    for kind in ("static", "int8"):
        running = Running(net, cache=kind)
        running.join(
            *[Continuation([*SYSTEM, 1], 6) for _ in range(2)], memory=net.run("encoder", torch.arange(4)[None]) if ends.two else None
        )
        hidden, run = [], running.run
        monkeypatch.setattr(running, "run", lambda *given: (hidden.append(out := run(*given)), out)[1])  # noqa: B023
        while len(running):
            running.step()
        found[kind] = net.heads[ends.head](torch.stack([part[:1] for part in hidden])).detach()
    error = (found["int8"] - found["static"]).square().mean().sqrt() / found["static"].std()
    assert 1e-5 < error < 0.1, float(error)


@pytest.mark.parametrize("arch", ["gpt2"], indirect=True)
def test_a_kind_that_is_not_there_is_named(net, arch):
    with pytest.raises(InputError, match="cache='int3': expected static or int8"):
        Running(net, cache="int3")
