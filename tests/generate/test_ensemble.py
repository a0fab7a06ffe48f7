"""Ensembles against the formula in float64, uncached, and against their own members."""

from itertools import product

import pytest
import torch

from plait.core.stream import Stream
from plait.errors import InputError
from plait.generate.ensemble import ensemble
from plait.generate.greedy import continued
from plait.generate.search import mean, search
from plait.models import build

VOCAB, START, END = 5, 1, 2
SOURCES = Stream(torch.tensor([[3, 4, 0], [4, 0, 0]]), real=torch.tensor([[True, True, True], [True, False, False]]))


def find(net, **how):
    return search(net, SOURCES, start=START, end=END, max_length=3, penalty=mean(), **how)


def made(arch, seed, **shape):
    torch.manual_seed(seed)
    net = build(arch, dict(n_layers=2, d_ff=16, dropout=0.0, **shape)).double().eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.dim() == 1), std=0.35)
    return net


def language_model(seed, d_model=16):
    return made("gpt2", seed, d_model=d_model, n_heads=2, vocab_size=11, max_length=64)


def test_twice_the_same_model_is_the_model(tiny):
    net = tiny(0)
    for alone, together in zip(find(net, beams=3, n_best=3), find(ensemble([net, net]), beams=3, n_best=3), strict=True):
        assert [h.ids for h in together] == [h.ids for h in alone]
        assert [h.score for h in together] == pytest.approx([h.score for h in alone], abs=1e-12)


def together(nets, source, prefix):
    """log p of the next token: the members' mean log-probability, made to sum to one again."""
    with torch.no_grad():
        rows = []
        for net in nets:
            hidden = net(encoder=torch.tensor([source]), decoder=torch.tensor([[START, *prefix]]))["decoder"].x[0, -1]
            rows.append(net.heads["lm"](hidden).log_softmax(-1))
        return (sum(rows) / len(rows)).log_softmax(-1).tolist()


def test_beam_search_finds_the_best_of_all_answers(tiny):
    """Two members of different depth and width, each with its own memory and cache; beams are reordered, one source is padded."""
    nets = [tiny(1), made("modern", 4, d_model=24, n_heads=3, source_vocab=VOCAB, target_vocab=VOCAB, tie="none")]
    found = find(ensemble(nets), beams=VOCAB**3, n_best=5)
    for source, hypotheses in zip(([3, 4, 0], [4]), found, strict=True):
        known, answers = {}, []
        for n in range(3):
            for ids in product([v for v in range(VOCAB) if v != END], repeat=n):
                total = 0.0
                for i, v in enumerate([*ids, END]):
                    if ids[:i] not in known:
                        known[ids[:i]] = together(nets, source, ids[:i])
                    total += known[ids[:i]][v]
                answers.append((total / (n + 1), list(ids)))
        best = sorted(answers, key=lambda a: -a[0])[:5]
        assert [h.ids for h in hypotheses] == [ids for _, ids in best]
        assert [h.score for h in hypotheses] == pytest.approx([score for score, _ in best], abs=1e-9)


def test_language_models_continue_together():
    nets, prompt = [language_model(0), language_model(1, d_model=24)], [3, 1, 4]
    text = list(prompt)
    with torch.no_grad():
        for _ in range(8):
            scores = [net.heads["lm"](net(torch.tensor([text]))["decoder"].x[0, -1]).log_softmax(-1) for net in nets]
            text.append(int((scores[0] + scores[1]).argmax()))
    assert list(continued(ensemble(nets), prompt, 8)) == text[3:]
    assert any(list(continued(net, prompt, 8)) != text[3:] for net in nets)  # the ensemble says something of its own


def test_members_that_cannot_answer_together_are_named(tiny):
    with pytest.raises(InputError, match="at least one"):
        ensemble([])
    with pytest.raises(InputError) as caught:
        ensemble([tiny(0), tiny(0, vocab=7).float(), language_model(0)])
    for part in ("model 2 has the towers encoder (of 7 ids)", "of 7 ids, the first", "float32", "model 3 has the towers decoder"):
        assert part in str(caught.value)
