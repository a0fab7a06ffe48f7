"""The model of small pictures: its size, its start, its stem."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from plait.core.heads import pooled
from plait.core.model import parameters
from plait.core.stream import Call, Stream
from plait.models.modern_vision import PRESETS, Config, Stem, build

TINY = Config(**PRESETS["tiny"])


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_total_is_a_closed_formula():
    c = Config(image_size=32, patch=8, channels=1, d_model=48, n_heads=4, n_layers=3, d_ff=80, d_stem=6, labels=7)
    d, stem = 48, 9 * (1 * 6 + 6 * 12 + 12 * 24) + 2 * (6 + 12 + 24) + 24 * 48 + 48
    with torch.device("meta"):
        assert parameters(build(c)) == stem + 16 * d + 3 * (4 * d * d + 2 * d * 80 + 2 * d) + d + 7 * d + 7


def test_every_block_starts_as_the_identity():
    torch.manual_seed(0)
    net = build(TINY).eval()
    x = torch.randn(2, 16, 32)
    assert torch.equal(net.encoder.blocks(x, Call(Stream(x), net.kernel), ("",)), x)
    assert 0.3 < net.encoder.blocks[0].self_attn.q_proj.weight.std() * 32**0.5 < 1.5  # what is inside is not zero


def test_the_stem_is_the_convolutions_that_torch_has():
    torch.manual_seed(0)
    stem = Stem(4, 2, 6, 10).double()
    for p in stem.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1))
    x = y = drawn(2, 2, 12, 8)
    for unit in stem.units:
        y = F.conv2d(y, unit.conv.weight, stride=2, padding=1)
        mean, var = y.mean(1, keepdim=True), y.var(1, keepdim=True, correction=0)
        gain, shift = unit.norm.weight[:, None, None], unit.norm.bias[:, None, None]
        y = ((y - mean) / (var + unit.norm.eps).sqrt() * gain + shift).relu()
    s = stem(Stream(x))
    assert s.grid == (3, 2)
    assert_close(s.x, y.flatten(2).mT @ stem.proj.weight.T + stem.proj.bias, rtol=0, atol=1e-10)


def test_a_padded_picture_gives_what_it_gives_alone():
    torch.manual_seed(0)
    net = build(TINY).double().eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    alone, head = drawn(1, 3, 16, 16), net.heads["classify"]
    stem = net.encoder.embed.stem
    padded, real = torch.zeros(1, 3, 24, 32, dtype=torch.float64), torch.zeros(1, 24, 32, dtype=torch.bool)
    padded[:, :, :16, :16], real[:, :16, :16] = alone, True
    got, wanted = stem(Stream(padded, real=real)), stem(Stream(alone))
    assert got.real is not None and int(got.real.sum()) == 16
    assert_close(got.x[got.real], wanted.x[0], rtol=0, atol=1e-12)
    s = net(encoder=Stream(padded, real=real))["encoder"]
    assert_close(pooled(head, s)[0], s.x[s.real].mean(0), rtol=0, atol=1e-12)


def test_later_layers_are_dropped_more_often():
    net = build(replace(TINY, n_layers=3, drop_path=0.4))
    assert [block.residual.drop_path for block in net.encoder.blocks] == [0.0, 0.2, 0.4]


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (1, 2, 3, 16, 16), (0, 3, 16, 16)])
def test_pixels_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="this model takes pictures of 3 channels"):
        build(TINY)(encoder=Stream(torch.zeros(shape)))


@pytest.mark.parametrize(("size", "grid"), [((18, 16), (5, 4)), ((1, 1), (1, 1)), ((4, 33), (1, 9))])
def test_squares_at_the_border_may_be_cut(size, grid):
    assert build(TINY)(encoder=Stream(torch.zeros(1, 3, *size)))["encoder"].grid == grid


@pytest.mark.parametrize("patch", [0, 1, 6])
def test_patches_that_halving_does_not_reach(patch):
    with pytest.raises(ValueError, match=f"patch={patch} is not reached by halving"):
        Stem(patch, 3, 8, 32)
