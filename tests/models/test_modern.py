"""The default of `plait train`: its size, its start."""

import pytest
import torch
from torch.testing import assert_close

from plait.core.model import parameters, reset
from plait.core.stream import Call, Stream
from plait.models import build as from_description
from plait.models.modern import Config, build


@pytest.mark.parametrize("tie", ["all", "target", "none"])
@pytest.mark.parametrize("d_head", [None, 24])
def test_the_total_is_a_closed_formula(tie, d_head):
    d, h, f, e, n, s, t = 48, 4, 80, 3, 2, 31, 31 if tie == "all" else 37
    attention = 4 * d * h * (d_head or d // h)
    matrices = {"all": s * d, "target": (s + t) * d, "none": (s + 2 * t) * d}[tie]
    norms = d * (2 * e + 3 * n + 2)
    with torch.device("meta"):
        found = parameters(build(Config(s, t, d, h, e, n, f, d_head, tie=tie)))
    assert found == matrices + e * (attention + 2 * d * f) + n * (2 * attention + 2 * d * f) + norms


def test_every_block_starts_as_the_identity():
    torch.manual_seed(0)
    net = build(Config(11, 11, 16, 2, 2, d_ff=32)).eval()
    x, memory = torch.randn(2, 5, 16), Stream(torch.randn(2, 4, 16))
    for tower in (net.encoder, net.decoder):
        out = tower.blocks(x, Call(Stream(x), net.kernel, {"encoder": memory}), ("",))
        assert torch.equal(out, x)
    assert 0.3 < net.encoder.blocks[0].self_attn.q_proj.weight.std() * 16**0.5 < 1.5  # what is inside is not zero


def test_reset_starts_as_build_does():
    net = build(Config(11, 11, 16, 2, 2, d_ff=32))
    reset(net, 0)
    assert net.encoder.blocks[0].ffn.down_proj.weight.abs().max() == 0


def test_heads_see_unit_queries_and_keys():
    """q and k are normed to length sqrt(d_head), so that scores lie within ± sqrt(d_head) however large the stream is."""
    torch.manual_seed(0)
    net = build(Config(11, 11, 16, 2, 1, d_ff=32)).double().eval()
    attention = net.encoder.blocks[0].self_attn
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    call = Call(Stream(x), net.kernel)
    x *= 30  # beside which eps vanishes
    q, k, _, _ = attention.queries_keys_values(x, call, ())
    assert_close(q.norm(dim=-1), torch.full((1, 2, 5), 8**0.5, dtype=torch.float64), rtol=1e-4, atol=0)
    assert_close(k.norm(dim=-1), torch.full((1, 2, 5), 8**0.5, dtype=torch.float64), rtol=1e-4, atol=0)


def test_one_vocabulary_to_tie_all():
    with pytest.raises(ValueError, match="tie='all' needs one vocabulary, got 11 and 13"):
        build(Config(11, 13, tie="all"))


def test_descriptions():
    net = from_description("modern", dict(source_vocab=11, target_vocab=13, d_model=16, n_heads=2, n_layers=1, d_ff=32))
    assert net.heads["lm"].weight.shape == (13, 16)
    with pytest.raises(ValueError, match="no model called 'gpt9': there are vaswani, modern"):
        from_description("gpt9", {})
    with pytest.raises(ValueError, match="settings that modern does not have: dmodel, heads"):
        from_description("modern", dict(source_vocab=11, target_vocab=13, heads=2, dmodel=3))
