"""Added positions against the papers' formulas, entry by entry with Python's math."""

import math

import pytest
import torch
from torch.testing import assert_close

from plait.core.positions import Learned, Sine2D, Sinusoid, sinusoid
from plait.core.stream import Stream


def paper(pos, d, base=10000.0):
    """Vaswani et al. 2017, section 3.5: sin at even channels, cos at odd ones, one rate for both."""
    return [(math.sin if c % 2 == 0 else math.cos)(pos / base ** (2 * (c // 2) / d)) for c in range(d)]


def halves(pos, d, base=10000.0):
    row = paper(pos, d, base)
    return row[::2] + row[1::2]


@pytest.mark.parametrize(("layout", "formula"), [("pairs", paper), ("halves", halves)])
@pytest.mark.parametrize("base", [10000.0, 100.0])
@pytest.mark.parametrize("first", [0, 1])
def test_sinusoids_are_the_papers(layout, formula, base, first):
    expected = torch.tensor([formula(p + first, 8, base) for p in range(300)], dtype=torch.float64)
    assert_close(sinusoid(torch.arange(first, 300 + first), 8, base, layout), expected, rtol=0, atol=1e-12)
    part, x = Sinusoid(base, layout, first), torch.randn(2, 300, 8, dtype=torch.float64)
    assert_close(part(Stream(x)).x, x + expected, rtol=0, atol=1e-12)
    assert_close(part(Stream(x[:, :7], start=100)).x, x[:, :7] + expected[100:107], rtol=0, atol=1e-12)  # behind a cache
    assert not list(part.state_dict())


def test_sinusoids_follow_positions_and_padding():
    part, x = Sinusoid(), torch.zeros(1, 4, 6, dtype=torch.float64)
    table = torch.tensor([paper(p, 6) for p in range(500)], dtype=torch.float64)
    assert_close(part(Stream(x, positions=torch.tensor([[5, 5, 499, 0]]))).x[0], table[[5, 5, 499, 0]], rtol=0, atol=1e-12)
    real = torch.tensor([[False, False, True, True]])
    assert_close(part(Stream(x, real=real)).x[0, 2:], table[:2], rtol=0, atol=1e-12)
    assert part(Stream(x[:, :0])).x.shape == (1, 0, 6)


def test_the_kept_table_never_changes_the_answer():
    """The table grows, and serves several dtypes and widths; made while nothing learns, it serves learning too."""
    part = Sinusoid()
    with torch.inference_mode():
        part(Stream(torch.zeros(1, 3, 6)))
    for length, d, dtype in ((5, 6, torch.float64), (5, 6, torch.float32), (700, 6, torch.float32), (4, 10, torch.float32)):
        x = torch.zeros(1, length, d, dtype=dtype, requires_grad=True)
        out = part(Stream(x)).x
        assert out.dtype == dtype
        expected = torch.tensor([paper(p, d) for p in range(length)], dtype=torch.float64)
        assert_close(out[0].double(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 6e-8)
        out.sum().backward()


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="d_model=7 is odd"):
        sinusoid(torch.arange(3), 7)


@pytest.mark.parametrize("offset", [0, 2])
def test_learned_positions_look_up_with_their_offset(offset):
    part, x = Learned(10, 4, offset).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    assert part.weight.shape == (10 + offset, 4)
    for b in range(2):
        for i in range(5):
            assert torch.equal(part(Stream(x, start=3)).x[b, i], x[b, i] + part.weight[3 + i + offset])
    real = torch.tensor([[False, True, True, True, True], [True, True, True, True, True]])
    out = part(Stream(x, real=real)).x
    assert torch.equal(out[0, 1], x[0, 1] + part.weight[offset])
    assert torch.equal(out[1, 4], x[1, 4] + part.weight[4 + offset])


def test_learned_positions_end():
    part = Learned(10, 4)
    part(Stream(torch.zeros(1, 10, 4)))
    with pytest.raises(ValueError, match="11 positions are needed, but this model has 10"):
        part(Stream(torch.zeros(1, 11, 4)))
    with pytest.raises(ValueError, match="12 positions"):
        part(Stream(torch.zeros(1, 2, 4), start=10))


@pytest.mark.parametrize("padded", [False, True])
def test_sine2d_is_detrs(padded):
    """Carion et al. 2020, A.4: half of the channels for the row, half for the column, both counted from 1 and scaled to 2π."""
    height, width, d = 3, 4, 8
    real = torch.ones(2, height, width, dtype=torch.bool)
    if padded:  # the second picture is 2 x 3, padded to 3 x 4
        real[1, 2:], real[1, :, 3:] = False, False
    x = torch.randn(2, height * width, d, dtype=torch.float64)
    s = Sine2D()(Stream(x, real=real.flatten(1) if padded else None, grid=(height, width)))
    assert torch.equal(s.x, x)  # positions go beside the content, not into it
    for b in range(2):
        h, w = (2, 3) if padded and b == 1 else (height, width)
        for row in range(h):
            for column in range(w):
                y = (row + 1) / (h + 1e-6) * 2 * math.pi
                z = (column + 1) / (w + 1e-6) * 2 * math.pi
                expected = torch.tensor(paper(y, d // 2) + paper(z, d // 2), dtype=torch.float64)
                assert_close(s.pos[b, row * width + column], expected, rtol=0, atol=1e-12)


def test_sine2d_needs_a_grid():
    with pytest.raises(ValueError, match=r"grid \(H, W\)"):
        Sine2D()(Stream(torch.zeros(1, 4, 8)))
