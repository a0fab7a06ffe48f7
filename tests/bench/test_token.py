"""The profile of a token names every operation of the program, and bytes of weights as they lie in memory."""

import pytest
import torch

from plait.bench.token import size, spent
from plait.compress import quantise
from plait.core import native
from plait.core.cache import Cache
from plait.errors import InputError
from plait.models import build

SMALL = dict(vocab_size=40, d_model=64, n_heads=4, n_layers=2, d_ff=96)


@pytest.mark.skipif(native.library("step") is None, reason="nothing native can be built here")
@pytest.mark.parametrize("bits", [32, 8, 4])
def test_every_operation_is_told(bits):
    net = build("llama", SMALL).eval()
    if bits < 32:
        quantise(net, bits)
    told = {row[0]: row[1:] for row in spent(net, steps=2, prompt=3)}
    assert {"norm", "turning and placing", "attention", "product 64 x 96", "product 96 x 64", "all of a step"} <= told.keys()
    assert ("rounding" in told) == (bits < 32) and all(float(ms) >= 0 for ms, _ in list(told.values())[1:])
    with torch.inference_mode():
        cache = Cache(2)
        net.run("decoder", torch.ones(1, 1, dtype=torch.long), cache=cache)
    layers = net.decoder.blocks.state_dict()
    kept = [t for name, t in layers.items() if t.ndim > 1 and not name.endswith("size")]
    assert sum(map(size, cache.programs["decoder"].ops)) == sum(t.numel() * t.element_size() for t in kept)


def test_where_the_modules_do_the_work():
    with pytest.raises(InputError, match="no native program"):
        spent(build("llama", SMALL).double().eval(), steps=1)
