"""Rotary positions as a rotation of complex numbers; the scalings against formulas written anew."""

import cmath
import math

import pytest
import torch
from torch.testing import assert_close

from plait.core.kernels import reference
from plait.core.rotary import Rotary, linear, llama3, ntk, yarn
from plait.core.stream import Call, Stream

K = 8


def turn(rotary, x, **where):
    s = Stream(torch.zeros(x.shape[0], x.shape[2], 1), **where)
    return rotary(x, s, Call(s, reference))


def complex_turn(row, pos, d, base, interleaved, magnitude=1.0):
    """Su et al. 2021, equation 13: channel pairs as complex numbers times e^(i·pos·rate)."""
    row, half = list(row), d // 2
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        z = complex(row[a], row[b]) * cmath.exp(1j * pos * base ** (-2 * i / d)) * magnitude
        row[a], row[b] = z.real, z.imag
    return row


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("d_rotary", [None, 4])
@pytest.mark.parametrize("base", [10000.0, 500.0])
@pytest.mark.parametrize("magnitude", [1.0, 1.2])
def test_rotary_is_a_complex_rotation(interleaved, d_rotary, base, magnitude):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, K, dtype=torch.float64)
    out = turn(Rotary(d_rotary, base, None, interleaved, magnitude), x, start=2)
    for b in range(2):
        for h in range(3):
            for i in range(5):
                expected = complex_turn(x[b, h, i].tolist(), i + 2, d_rotary or K, base, interleaved, magnitude)
                assert_close(out[b, h, i], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_follows_each_rows_positions(interleaved):
    x = torch.randn(2, 3, 4, K, dtype=torch.float64)
    where = torch.tensor([[9, 0, 4, 4], [1, 2, 3, 700]])
    rotary = Rotary(interleaved=interleaved)
    out = turn(rotary, x, positions=where)
    for b in range(2):
        for i in range(4):
            expected = torch.tensor(complex_turn(x[b, 1, i].tolist(), int(where[b, i]), K, 10000.0, interleaved), dtype=torch.float64)
            assert_close(out[b, 1, i], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("scaling", [None, linear(4.0), yarn(4.0, 32)])
def test_scores_depend_on_the_difference_of_positions_only(interleaved, scaling):
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, K, dtype=torch.float64)
    rotary = Rotary(scaling=scaling, interleaved=interleaved)

    def score(a, b):
        return (turn(rotary, q, start=a) * turn(rotary, k, start=b)).sum().item()

    for gap in (0, 1, 5, 40):
        scores = [score(n + gap, n) for n in (0, 1, 17, 1000)]
        assert max(scores) - min(scores) < 1e-11
    assert abs(score(0, 0) - (q * k).sum().item()) < 1e-12
    assert abs(score(5, 0) - score(6, 0)) > 1e-3


def test_length_is_kept_and_large_positions_stay_exact_in_float32():
    x = torch.randn(1, 1, 1, K)
    out = turn(Rotary(), x, start=1_000_003)
    assert_close(out.norm(), x.norm())
    expected = torch.tensor(complex_turn(x.flatten().tolist(), 1_000_003, K, 10000.0, False))
    assert_close(out.flatten(), expected, rtol=0, atol=1e-6)  # angles are computed in float64


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("d_rotary", [None, 4])
@pytest.mark.parametrize("heads_last", [False, True])
def test_gradients(interleaved, d_rotary, heads_last):
    """Also of heads as attention makes them: a view whose entries do not lie one after another."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, K, dtype=torch.float64)
    x = (x.transpose(1, 2) if heads_last else x).requires_grad_()
    where = torch.randint(0, 30, (2, x.shape[2]))
    rotary = Rotary(d_rotary, 100.0, None, interleaved, 1.2)
    assert torch.autograd.gradcheck(lambda v: turn(rotary, v, positions=where), (x,))


def test_tables_are_made_once_a_forward():
    rotary, x = Rotary(), torch.randn(1, 2, 3, K)
    s = Stream(torch.zeros(1, 3, 1))
    call = Call(s, reference)
    rotary(x, s, call)
    n = len(call.memo)
    rotary(x, s, call)
    assert n == len(call.memo) == 1


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="d_rotary=5 is odd"):
        Rotary(d_rotary=5)


D, BASE = 64, 10000.0
RATES = torch.tensor([BASE ** (-2 * i / D) for i in range(D // 2)], dtype=torch.float64)


def test_linear_divides_every_rate():
    assert_close(linear(4.0)(RATES), RATES / 4, rtol=1e-14, atol=0)
    x = torch.randn(1, 1, 1, D, dtype=torch.float64)
    assert_close(turn(Rotary(scaling=linear(4.0)), x, start=40), turn(Rotary(), x, start=10))  # position 40 looks like 10


def test_ntk_keeps_the_highest_and_stretches_the_lowest_by_the_factor():
    scaled = ntk(8.0, BASE)(RATES)
    grown = BASE * 8.0 ** (D / (D - 2))
    assert_close(scaled, torch.tensor([grown ** (-2 * i / D) for i in range(D // 2)], dtype=torch.float64), rtol=1e-12, atol=0)
    ratio = RATES / scaled
    assert ratio[0].item() == 1.0
    assert ratio[-1].item() == pytest.approx(8.0, rel=1e-12)
    assert (ratio.diff() > 0).all()


def test_llama3_is_metas_rule():
    factor, low, high, original = 8.0, 1.0, 4.0, 8192
    expected = []
    for rate in RATES.tolist():  # as in Meta's apply_scaling, by wavelengths
        wavelength = 2 * math.pi / rate
        if wavelength < original / high:
            expected.append(rate)
        elif wavelength > original / low:
            expected.append(rate / factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            expected.append((1 - smooth) * rate / factor + smooth * rate)
    scaled = llama3(factor, low, high, original)(RATES)
    assert_close(scaled, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    ratio = RATES / scaled
    assert (ratio[0].item(), ratio[-1].item()) == (1.0, 8.0)
    assert ((ratio > 1.001) & (ratio < 7.999)).any()  # some lie between


def test_yarn_keeps_fast_channels_and_interpolates_slow_ones():
    factor, original = 16.0, 4096
    scaled = yarn(factor, original, BASE)(RATES)
    ratio = RATES / scaled
    assert (ratio[0].item(), ratio[-1].item()) == (1.0, pytest.approx(factor))
    assert (ratio.diff() >= -1e-12).all()
    # The authors' code: the ramp runs over channel numbers, from floor(channel of 32 turns) to ceil(channel of 1 turn).
    channel = {turns: D * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(BASE)) for turns in (32, 1)}
    start, stop = math.floor(channel[32]), math.ceil(channel[1])
    for i, rate in enumerate(RATES.tolist()):
        share = min(max((i - start) / (stop - start), 0.0), 1.0)
        assert scaled[i].item() == pytest.approx(rate / factor * share + rate * (1 - share), rel=1e-12)
        turns = original * rate / (2 * math.pi)
        if turns > 33 * 2:  # well inside the fast ones
            assert scaled[i].item() == rate
        if turns < 0.5:
            assert scaled[i].item() == pytest.approx(rate / factor)
    assert 0 < start < stop < D // 2


def test_scalings_reach_the_rotation():
    x = torch.randn(1, 1, 1, D, dtype=torch.float64)
    for scaling in (linear(2.0), ntk(8.0), llama3(8.0, 1.0, 4.0, 8192), yarn(16.0, 4096)):
        rates = scaling(RATES)
        out = turn(Rotary(scaling=scaling), x, start=50).flatten()
        for i in (0, 13, D // 2 - 1):
            z = complex(x.flatten()[i], x.flatten()[i + D // 2]) * cmath.exp(50j * rates[i].item())
            assert out[i].item() == pytest.approx(z.real, abs=1e-10)
            assert out[i + D // 2].item() == pytest.approx(z.imag, abs=1e-10)
