"""Patches, entries before them, positions on a grid: against torch's own convolution and interpolation."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from plait.core.pixels import Before, GridPositions, Patches
from plait.core.stream import Stream


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def patches():
    torch.manual_seed(0)
    return Patches(3, 5, channels=2).double()


def test_patches_are_a_convolution_whose_stride_is_its_kernel(patches):
    """A kernel [D, C, P, P] as a matrix, entries row by row."""
    x = drawn(2, 2, 6, 9)
    s = patches(Stream(x))
    wanted = F.conv2d(x, patches.proj.weight.unflatten(1, (2, 3, 3)), patches.proj.bias, stride=3)
    assert_close(s.x, wanted.flatten(2).mT, rtol=0, atol=1e-12)
    assert s.grid == (2, 3) and s.real is None


def test_frames_follow_each_other(patches):
    x = drawn(2, 4, 2, 6, 9)
    s = patches(Stream(x))
    assert s.grid == (4, 2, 3)
    assert_close(s.x, torch.cat([patches(Stream(frame)).x for frame in x.unbind(1)], 1), rtol=0, atol=1e-12)


def test_a_patch_is_real_where_one_of_its_pixels_is(patches):
    real = torch.zeros(2, 6, 9, dtype=torch.bool)
    real[0, :4, :6] = True  # the second row of patches has one row of pixels
    real[1, 5, 8] = True
    s = patches(Stream(drawn(2, 2, 6, 9), real=real))
    assert s.real is not None
    assert s.real.tolist() == [[True, True, False, True, True, False], [False] * 5 + [True]]
    clip = patches(Stream(drawn(2, 1, 2, 6, 9), real=real[:, None]))
    assert clip.real is not None and torch.equal(clip.real, s.real)


@pytest.mark.parametrize("shape", [(2, 2, 7, 9), (2, 2, 6, 8), (2, 3, 6, 9), (0, 2, 6, 9), (2, 2, 0, 9)])
def test_pixels_that_do_not_fit(patches, shape):
    with pytest.raises(ValueError, match=r"pixels \[.*this model takes 2 channels, and heights and widths that are multiples of 3"):
        patches(Stream(torch.zeros(shape, dtype=torch.float64)))


def test_entries_before_and_behind():
    """Class token, then registers behind it, then the grid, which stays the grid; what is before is real."""
    torch.manual_seed(0)
    x, real = drawn(2, 6, 5), torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    cls, registers = Before(1, 5).double(), Before(2, 5, behind=1).double()
    s = registers(cls(Stream(x, real=real, grid=(2, 3))))
    assert torch.equal(s.x[:, 0], cls.weight.expand(2, -1)) and torch.equal(s.x[0, 1:3], registers.weight)
    assert torch.equal(s.x[:, 3:], x) and s.grid == (2, 3)
    assert s.real is not None and torch.equal(s.real, torch.cat([torch.ones(2, 3, dtype=torch.bool), real], 1))


def at(s: Stream) -> torch.Tensor:
    return s.x


@pytest.mark.parametrize("before", [0, 1, 2])
def test_positions_of_their_own_grid_and_of_frames(before):
    torch.manual_seed(0)
    table = GridPositions((2, 3), 5, before).double()
    nothing = torch.zeros(2, before + 6, 5, dtype=torch.float64)
    assert torch.equal(at(table(Stream(nothing, grid=(2, 3)))), table.weight.expand(2, -1, -1))
    frames = at(table(Stream(torch.zeros(1, before + 18, 5, dtype=torch.float64), grid=(3, 2, 3))))[0]
    assert torch.equal(frames, torch.cat([table.weight[:before], *[table.weight[before:]] * 3]))


@pytest.mark.parametrize("size", [(3, 2), (4, 6), (1, 1), (3, 5)])
@pytest.mark.parametrize("antialias", [False, True])
def test_positions_of_another_grid_are_interpolated(size, antialias):
    torch.manual_seed(0)
    table = GridPositions((4, 4), 5, 1, antialias).double()
    got = at(table(Stream(torch.zeros(1, 1 + size[0] * size[1], 5, dtype=torch.float64), grid=size)))[0]
    grid = table.weight[1:].T.reshape(1, 5, 4, 4)
    wanted = F.interpolate(grid, size, mode="bicubic", antialias=antialias)[0].flatten(1).T
    assert_close(got, torch.cat([table.weight[:1], wanted]), rtol=0, atol=1e-12)


def test_constant_positions_stay_constant_and_half_precision_is_interpolated_in_single():
    """Bicubic weights sum to 1; in bfloat16 what comes out is the float32 result, rounded once."""
    table = GridPositions((4, 4), 5, 1)
    torch.nn.init.constant_(table.weight, 3.0)
    assert_close(table.resized(7, 3), torch.full((22, 5), 3.0), rtol=0, atol=1e-5)
    torch.nn.init.normal_(table.weight)
    halved = table.to(torch.bfloat16)
    wanted = GridPositions((4, 4), 5, 1)
    wanted.load_state_dict(halved.state_dict())
    assert torch.equal(halved.resized(7, 3), wanted.resized(7, 3).bfloat16())


@pytest.mark.parametrize("s", [Stream(torch.zeros(1, 6, 5)), Stream(torch.zeros(1, 6, 5), grid=(2, 3))])
def test_positions_without_their_grid(s):
    with pytest.raises(ValueError, match=r"6 entries with the grid .*positions are for 1 entries and a grid after them"):
        GridPositions((2, 3), 5)(s)
