"""Tiny models of some pages for tests of tuning, moved away from where they begin, and what they say."""

from typing import Any

import pytest
import torch

from plait.core.model import Model
from plait.core.stream import Stream
from plait.models import build

VOCAB = 29
IDS = torch.randint(0, VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))
SIZES: dict[str, dict[str, Any]] = {
    "llama": dict(d_ff=64, n_kv_heads=2, max_length=64),
    "t5": dict(d_head=8, d_ff=64),
}


@pytest.fixture
def model():
    """A function that builds one in float64, of values that are nowhere zero."""

    def made(arch: str = "llama", std: float = 0.3, **more: Any) -> Model:
        torch.manual_seed(0)
        net = build(arch, dict(vocab_size=VOCAB, d_model=32, n_heads=4, n_layers=2) | SIZES[arch] | more).double().eval()
        for p in net.parameters():
            torch.nn.init.normal_(p, mean=float(p.dim() == 1), std=std)
        return net

    return made


@pytest.fixture
def moved():
    """A function after which a model's trained parameters are elsewhere."""

    @torch.no_grad()
    def further(net: Model) -> Model:
        draw = torch.Generator().manual_seed(1)
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
        return net

    return further


@pytest.fixture
def said():
    """A function: a decoder's scores of texts."""

    def scores(net: Model, ids: torch.Tensor = IDS, **more: Any) -> torch.Tensor:
        return net.heads["lm"](net(decoder=Stream(ids, **more))["decoder"].x)

    return scores
