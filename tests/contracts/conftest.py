"""Contracts: what every model of `PAGES` gets for free, and must keep. Tiny presets in float64, weights drawn so that nothing is zero."""

from dataclasses import fields
from functools import cache

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
    wanted = {**page.PRESETS["tiny"], "source_vocab": VOCAB, "target_vocab": VOCAB, "dropout": 0.0}
    return {name: value for name, value in wanted.items() if name in known}


@cache
def made(arch: str) -> Model:
    torch.manual_seed(0)
    net = build(arch, config(arch)).double()
    for p in net.parameters():  # zero-started projections would hide what flows through them
        nn.init.normal_(p, mean=float(p.dim() == 1), std=0.3)
    return net


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
