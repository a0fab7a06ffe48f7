"""The model of short clips: its size, its start, and its stem, against a convolution over time and space."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from plait.core.heads import pooled
from plait.core.model import parameters
from plait.core.pixels import Times
from plait.core.stream import Call, Stream
from plait.models.modern_video import PRESETS, Config, Tubes, build

TINY = Config(**PRESETS["tiny"])


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_total_is_a_closed_formula():
    c = Config(image_size=32, patch=4, channels=1, frames=9, tube=3, d_model=48, n_heads=4, n_layers=3, d_ff=80, d_stem=6, labels=7)
    d, stem = 48, 9 * (3 * 6 + 6 * 12) + 2 * (6 + 12) + 12 * 48 + 48
    with torch.device("meta"):
        assert parameters(build(c)) == stem + (64 + 3) * d + 3 * (4 * d * d + 2 * d * 80 + 2 * d) + d + 7 * d + 7


def test_every_block_starts_as_the_identity():
    torch.manual_seed(0)
    net = build(TINY).eval()
    x = torch.randn(2, 8, 32)
    assert torch.equal(net.encoder.blocks(x, Call(Stream(x), net.kernel), ("",)), x)


def test_the_stem_begins_with_a_convolution_over_time_and_space():
    torch.manual_seed(0)
    stem = Tubes(2, 2, 3, 6, 10).double()
    for p in stem.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1))
    clips = drawn(2, 4, 3, 6, 8)
    kernel = stem.units[0].conv.weight.unflatten(1, (2, 3)).transpose(1, 2)  # [D, C, tube, 3, 3]
    y = F.conv3d(clips.transpose(1, 2), kernel, stride=(2, 2, 2), padding=(0, 1, 1))
    mean, var = y.mean(1, keepdim=True), y.var(1, keepdim=True, correction=0)
    gain, shift = (p[:, None, None, None] for p in (stem.units[0].norm.weight, stem.units[0].norm.bias))
    y = ((y - mean) / (var + stem.units[0].norm.eps).sqrt() * gain + shift).relu()
    s = stem(Stream(clips))
    assert s.grid == (2, 3, 4)
    assert_close(s.x, y.flatten(2).mT @ stem.proj.weight.T + stem.proj.bias, rtol=0, atol=1e-10)


def test_frames_have_vectors_of_their_own():
    times, s = Times(3, 5).double(), Stream(drawn(2, 2 + 3 * 4, 5), grid=(3, 2, 2))
    with torch.no_grad():
        times.weight.copy_(drawn(3, 5))
    more = times(s).x - s.x
    assert not more[:, :2].any()  # what stands before the grid is of no frame
    assert_close(more[:, 2:].unflatten(1, (3, 4)), times.weight[None, :, None].expand(2, 3, 4, 5), rtol=0, atol=1e-12)
    longer = Stream(drawn(1, 6 * 4, 5), grid=(6, 2, 2))
    assert_close((times(longer).x - longer.x)[0, ::4], times.weight.repeat_interleave(2, 0), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="frames, rows and columns"):
        times(Stream(drawn(1, 4, 5), grid=(2, 2)))


def test_a_padded_clip_gives_what_it_gives_alone():
    torch.manual_seed(0)
    net = build(TINY).double().eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    alone, head, stem = drawn(1, 4, 3, 16, 16), net.heads["classify"], net.encoder.embed.stem
    padded, real = torch.zeros(1, 4, 3, 24, 32, dtype=torch.float64), torch.zeros(1, 4, 24, 32, dtype=torch.bool)
    padded[..., :16, :16], real[..., :16, :16] = alone, True
    got, wanted = stem(Stream(padded, real=real)), stem(Stream(alone))
    assert got.real is not None and int(got.real.sum()) == 8
    assert_close(got.x[got.real], wanted.x[0], rtol=0, atol=1e-12)
    s = net(encoder=Stream(padded, real=real))["encoder"]
    assert_close(pooled(head, s)[0], s.x[s.real].mean(0), rtol=0, atol=1e-12)


def test_the_order_of_frames_is_seen():
    torch.manual_seed(0)
    net = build(TINY).double().eval()
    clip = drawn(1, 4, 3, 16, 16)
    there, back = (net(encoder=Stream(one))["encoder"].x.mean(1) for one in (clip, clip.flip(1)))
    assert (there - back).abs().max() > 0.01


@pytest.mark.parametrize("shape", [(1, 4, 1, 16, 16), (1, 3, 16, 16), (1, 3, 3, 16, 16), (0, 4, 3, 16, 16)])
def test_clips_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="this model takes clips of 3 channels"):
        build(TINY)(encoder=Stream(torch.zeros(shape)))


def test_frames_that_are_no_whole_groups():
    with pytest.raises(ValueError, match="frames=9 are not whole groups of tube=2"):
        build(Config(frames=9))
    with pytest.raises(ValueError, match="tube=0"):
        Tubes(0, 4, 3, 8, 16)
