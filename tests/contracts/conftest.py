"""Contracts: what every model of `PAGES` gets for free, and must keep. Tiny presets in float64, weights drawn so that nothing is zero."""

from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from plait.core.model import Model
from plait.models import PAGES, build

VOCAB = 29


def config(arch: str) -> dict:
    """The page's tiny preset over a tiny vocabulary, without dropout (which is no part of what a model computes)."""
    page = PAGES[arch]
    known = {f.name for f in fields(page.Config)}
    wanted = {**page.PRESETS["tiny"], "source_vocab": VOCAB, "target_vocab": VOCAB, "vocab_size": VOCAB, "dropout": 0.0}
    return {name: value for name, value in wanted.items() if name in known}


@cache
def made(arch: str) -> Model:
    torch.manual_seed(0)
    net = build(arch, config(arch)).double()
    for p in net.parameters():  # zero-started projections would hide what flows through them
        nn.init.normal_(p, mean=float(p.dim() == 1), std=0.3)
    return net


class Ends:
    """How a model is fed and read, whatever its towers: tests give a source and a target, and a model of one tower takes the target."""

    def __init__(self, net: Model):
        self.two, self.last = len(net.towers) > 1, net.towers[-1]
        self.causal = self.last == "decoder"
        self.head = next(iter(net.heads))

    def feed(self, source: Any, target: Any) -> dict[str, Any]:
        return {"encoder": source, "decoder": target} if self.two else {self.last: target}

    def out(self, net: Model, source: Any, target: Any) -> torch.Tensor:
        """The last tower's hidden vectors [B, L, D]."""
        return net(**self.feed(source, target))[self.last].x

    def scores(self, net: Model, source: Any, target: Any) -> torch.Tensor:
        return net.heads[self.head](self.out(net, source, target))

    def memories(self, net: Model, source: Any) -> dict[str, Any]:
        return {"encoder": net.run("encoder", source)} if self.two else {}

    def need(self, causal: bool = False, two: bool = False) -> None:
        """Where the structure forbids a capability, the test says so and ends."""
        if causal and not self.causal:
            pytest.skip("not applicable: every entry sees the whole text, so nothing is generated from left to right")
        if two and not self.two:
            pytest.skip("not applicable: one tower, no source beside the text")


@pytest.fixture(scope="session")
def ends(net) -> Ends:
    return Ends(net)


@pytest.fixture(scope="session", params=list(PAGES))
def arch(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def net(arch) -> Model:
    return made(arch)


@pytest.fixture(scope="session")
def tiny(arch):
    """A function that builds this page anew (shapes only matter: values are as the page starts them)."""
    return lambda **changes: build(arch, {**config(arch), **changes})
