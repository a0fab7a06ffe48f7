"""A tiny random translator in float64: five tokens, so that all answers can be listed."""

import pytest
import torch
from torch import nn

from plait.models import build

VOCAB, START, END = 5, 1, 2


def made(seed: int = 0, arch: str = "modern", vocab: int = VOCAB, **changes):
    torch.manual_seed(seed)
    shape = dict(d_model=16, n_heads=2, n_layers=1, d_ff=16, dropout=0.0, tie="none", **changes)
    net = build(arch, dict(source_vocab=vocab, target_vocab=vocab, **shape)).double().eval()
    for p in net.parameters():
        nn.init.normal_(p, mean=float(p.dim() == 1), std=0.35)
    return net


@pytest.fixture(scope="session")
def tiny():
    return made


def log_probs(net, source: list[int], prefix: tuple[int, ...], forbidden: tuple[int, ...] = ()) -> list[float]:
    """The next token's log-probabilities after a prefix: no cache, no batch."""
    with torch.no_grad():
        hidden = net(encoder=torch.tensor([source]), decoder=torch.tensor([[START, *prefix]]))["decoder"].x[0, -1]
        found = net.heads["lm"](hidden).log_softmax(-1)
        found[list(forbidden)] = float("-inf")  # what is forbidden does not make the rest likelier
        return found.tolist()


@pytest.fixture(scope="session")
def next_token():
    """next_token(net, source, prefix, forbidden) -> log-probabilities; remembered, since searches ask for the same prefixes."""
    known = {}

    def look(net, source, prefix, forbidden=()):
        key = (id(net), tuple(source), prefix, forbidden)
        if key not in known:
            known[key] = (net, log_probs(net, source, prefix, forbidden))  # the net is kept, so that its id stays its own
        return known[key][1]

    return look
