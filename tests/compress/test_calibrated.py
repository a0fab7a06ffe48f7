"""Rounding that knows the data: GPTQ against the slow textbook loop in float64, moments, and that both beat plain rounding."""

import copy

import pytest
import torch
from torch import nn

from plait.compress import moments, quantise
from plait.compress.aware import aware, weighing
from plait.compress.calibration import ROWS
from plait.compress.gptq import factor, gptq
from plait.core.codes import GROUP, decoded, encoded4, encoded8
from plait.core.embeddings import Tokens
from plait.core.heads import Tied
from plait.core.linear import Linear
from plait.core.quantised import Quantised, quantised
from plait.core.stream import stream
from plait.errors import InputError
from plait.models import build


def correlated(rows: int, d: int, seed: int = 0, heavy: bool = False) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(d, d, generator=draw))[0] * torch.logspace(0, -1.5, d)[:, None]
    mix = mix @ torch.linalg.qr(torch.randn(d, d, generator=draw))[0]
    if heavy:  # a few channels are far larger, as in trained models
        mix = mix * torch.randn(d, generator=draw).exp()
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(seed + 100 + rows)) @ mix


def textbook(weight: torch.Tensor, moment: torch.Tensor, bits: int, damping: float) -> torch.Tensor:
    """Optimal brain quantisation in a fixed order, as Frantar et al. 2023 derive it (equation 2): after each column the inverse of the
    moment of what is left is computed anew, and the error spread over those columns. No Cholesky factor, no blocks."""
    w, n = weight.double().clone(), weight.shape[1]
    h = moment.double() + damping * moment.double().diagonal().mean() * torch.eye(n, dtype=torch.float64)
    out = torch.empty_like(w)
    for j in range(n):
        if j % GROUP == 0:
            group = w[:, j : j + GROUP].float()[:, None]
            if bits == 8:
                _, scale, _ = encoded8(group)
                least = torch.zeros_like(scale)
            else:
                share = moment.diagonal().float()[None, j : j + GROUP]
                share = share + 1e-3 * share.mean() + torch.finfo(torch.float32).tiny
                from plait.compress.aware import SHRINKS

                _, scale, least = encoded4(group, share / share.sum(), SHRINKS)
            scale, least = scale[:, 0].double(), least[:, 0].double()
        lowest, highest = (-127, 127) if bits == 8 else (0, 15)
        code = ((w[:, j] - least) / torch.where(scale == 0, 1.0, scale)).round().clamp(lowest, highest)
        out[:, j] = code * scale + least
        left = torch.linalg.inv(h[j:, j:])
        w[:, j:] -= ((w[:, j] - out[:, j]) / left[0, 0])[:, None] * left[0]
    return out


@pytest.mark.parametrize("bits", [8, 4])
def test_gptq_is_the_textbook_loop(bits):
    d = 5 * GROUP  # more than one block of columns
    x = correlated(600, d, heavy=True)
    moment, weight = (x.T @ x / len(x)), torch.randn(24, d, generator=torch.Generator().manual_seed(1)) * 0.05
    found = gptq(weight, bits, moment)
    expected = textbook(weight, moment, bits, 0.01)
    assert found.bits == bits
    torch.testing.assert_close(found.values(torch.float64), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("in_order", [True, False])
def test_what_knows_the_data_beats_rounding_at_the_same_size(heavy, in_order):
    """Error of the layer's output on rows that were not calibrated on."""
    d = 200  # no whole groups
    seen, other = correlated(2048, d, heavy=heavy), correlated(1024, d, heavy=heavy).double()
    moment, weight = seen.T @ seen / len(seen), torch.randn(96, d, generator=torch.Generator().manual_seed(1)) * 0.05
    exact = other @ weight.double().T

    def error(matrix: Quantised) -> float:
        return float((other @ matrix.values(torch.float64).T - exact).norm() / exact.norm())

    for bits in (8, 4):
        plain, known = quantised(weight, bits), gptq(weight, bits, moment, in_order=in_order)
        assert {n: t.shape for n, t in plain.state_dict().items()} == {n: t.shape for n, t in known.state_dict().items()}
        assert error(known) < 0.75 * error(plain)
    assert error(aware(weight, 4, moment)) < (0.85 if heavy else 1.0) * error(quantised(weight, 4))


def test_of_inputs_that_do_not_hang_together_gptq_only_rounds():
    """With a moment that is the identity there is nothing to make good: each weight is at the nearest of its group's values."""
    weight = torch.randn(8, 2 * GROUP, generator=torch.Generator().manual_seed(0))
    found = gptq(weight, 8, torch.eye(2 * GROUP))
    assert torch.equal(found.values(), quantised(weight, 8).values())


def test_damping_makes_a_singular_moment_usable():
    x = correlated(4, 64)  # rank 4
    moment = x.T @ x
    moment[:, 3] = moment[3] = 0  # an input that was always zero
    upper = factor(moment.double(), 0.01)
    h = moment.double()
    h[3, 3] = 1.0
    h += 0.01 * h.diagonal().mean() * torch.eye(64, dtype=torch.float64)
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(h), rtol=1e-8, atol=1e-8)
    assert torch.equal(upper, upper.triu())
    assert factor(moment.double(), 0.0).isfinite().all()  # grows until it can be used
    weight = torch.randn(8, 64)
    assert gptq(weight, 4, moment).values().isfinite().all()


def test_weights_of_columns_add_up_to_one_and_follow_the_inputs():
    moment = torch.diag(torch.arange(40.0))
    shares = weighing(moment)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2))
    assert shares[0, 31] > shares[0, 1] > shares[0, 0] > 0 and shares[1, 7] > 100 * shares[1, 8]


def test_codes_weighed_alike_are_the_plain_ones():
    w = torch.randn(16, 3, GROUP, generator=torch.Generator().manual_seed(0))
    plain, alike = encoded4(w), encoded4(w, torch.full((3, GROUP), 1 / GROUP))
    for a, b in zip(plain[1:], alike[1:], strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=2e-3, atol=2e-3)
    assert (decoded(*plain) - w.flatten(1)).norm() <= 1.001 * (decoded(*alike) - w.flatten(1)).norm()


# ---- moments ----


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.inner, self.seldom = Tokens(11, 8), Linear(8, 5), Linear(8, 2)
        self.head = Tied(self.tokens)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(stream(ids)).x
        self.inner(x)
        self.seldom(x[:, 0])
        return self.head(x * 2)


def test_moments_are_means_of_outer_products_over_all_batches():
    net = Small().train()
    batches = [torch.randint(0, 11, (3, n)) for n in (40, 50, 5)]
    found = moments(net, [lambda ids=ids: net(ids) for ids in batches])
    assert net.training and set(found) == {"inner", "tokens"}  # `seldom` saw nine vectors
    x = torch.cat([net.tokens.weight[ids].flatten(0, 1) for ids in batches]).double()
    torch.testing.assert_close(found["inner"].double(), x.T @ x / len(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["tokens"].double(), 4 * x.T @ x / len(x), rtol=1e-5, atol=1e-6)
    assert not any(part._forward_pre_hooks for part in net.modules())


def test_too_little_data_is_refused():
    net = Small()
    with pytest.raises(InputError, match=f"given 40 vectors, {ROWS} are needed"):
        moments(net, [lambda: net(torch.zeros(4, 10, dtype=torch.long))])
    with pytest.raises(InputError, match="given 0 vectors"):
        moments(net, [])


def test_what_makes_no_sense_is_refused_with_all_faults():
    net = build("gpt2", {"vocab_size": 29, "max_length": 64, "d_model": 32, "n_heads": 4, "n_layers": 2})
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError, match="did you mean gptq") as caught:
        quantise(net, 4, method="gtpq")
    assert any("expected nearest, gptq or awq" in fault for fault in caught.value.faults)
    with pytest.raises(InputError) as caught:
        quantise(net, 8, method="awq")
    assert len(caught.value.faults) == 2  # bits, and no moments
    with pytest.raises(InputError, match="moments of 31 inputs for a matrix of 32"):
        quantise(net, 4, method="gptq", moments={"decoder.blocks.0.self_attn.q_proj": torch.eye(31)})
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
