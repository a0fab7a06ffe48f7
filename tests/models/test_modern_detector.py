"""The detector that learns from scratch: its size, where its queries stand, and what they look at before anything is learned."""

import math

import pytest
import torch
from torch.testing import assert_close

from plait.core.model import parameters
from plait.core.stream import Stream
from plait.inspect.record import record
from plait.models.modern_detector import PRESETS, SIZE, Config, build


def made(**changes):
    torch.manual_seed(0)
    return build(Config(**{**PRESETS["tiny"], "n_queries": 9, **changes})).eval()


def found(net, pixels, n, real=None):
    queries = torch.arange(n).expand(len(pixels), -1)
    return net.heads["detect"](net(encoder=Stream(pixels, real=real), decoder=queries)["decoder"].x)


def test_the_total_is_a_closed_formula():
    c = Config(n_queries=10, labels=4, patch=4, channels=1, d_model=48, n_heads=4, n_layers=3, n_decoder_layers=2, d_ff=80, d_stem=6)
    d, stem = 48, 9 * (1 * 6 + 6 * 12) + 2 * (6 + 12) + 12 * 48 + 48
    encoder = 3 * (4 * d * d + 2 * d * 80 + 2 * d) + d
    decoder = 10 * (d + 2) + 2 * (8 * d * d + 2 * d * 80 + 3 * d) + d
    head = 5 * d + 5 + 2 * (d * d + d) + 4 * d + 4
    with torch.device("meta"):
        assert parameters(build(c)) == stem + encoder + decoder + head


@pytest.mark.parametrize(("n", "rows", "columns"), [(9, 3, 3), (7, 3, 3), (12, 3, 4), (1, 1, 1)])
def test_boxes_begin_around_the_places_of_their_queries_which_fill_the_picture(n, rows, columns):
    scores, boxes = found(made(n_queries=n), torch.randn(2, 3, 32, 40), n)
    assert scores.shape == (2, n, 3)
    places = [((i % columns + 0.5) / columns, (i // columns + 0.5) / rows) for i in range(n)]
    wanted = torch.tensor([[x, y, SIZE, SIZE] for x, y in places])
    assert_close(boxes, wanted.expand(2, n, 4), rtol=0, atol=1e-6)


def test_a_query_begins_by_looking_around_its_place():
    """The mean distance from where it looks, in shares of the picture's sides: nearer than if it looked everywhere alike."""
    net, side = made(n_queries=16), 12
    for name in ("q_norm", "k_norm"):
        assert not list(getattr(net.decoder.blocks[0].cross_attn, name).parameters())  # else what begins alike might not stay so
    with record(net, "decoder.blocks.0.cross_attn.pattern") as seen:
        found(net, torch.zeros(1, 3, 8 * side, 8 * side), 16)
    weights = seen["decoder.blocks.0.cross_attn.pattern"][0].mean(0)  # [16, side * side]
    across = torch.stack(torch.meshgrid(*2 * [(torch.arange(side) + 1) / side], indexing="ij"), -1).flatten(0, 1)  # as Sine2D counts
    at = net.decoder.embed.queries.place.sigmoid().detach()
    apart = torch.cdist(at, across)
    assert (weights * apart).sum(1).mean() < 0.8 * apart.mean()


def test_sines_of_queries_are_those_of_the_grid():
    """Both by the formula of Sine2D's test, with more turns, here for one place in the middle of a grid of 4 x 2."""
    net = made(turns=3.0, base=50.0, amplitude=1.5, n_queries=1)
    sines, d = net.encoder.embed.positions, 32
    rows = [1.5 * math.sin(2 * math.pi * 3 * 0.5 * 50 ** (-2 * i / 16)) for i in range(8)]
    grid = sines(Stream(torch.zeros(1, 8, d, dtype=torch.float64), grid=(4, 2))).pos
    assert_close(grid[0, 2, :16:2], torch.tensor(rows, dtype=torch.float64), rtol=0, atol=1e-4)  # its eps moves a place by 1e-6
    asked = net.decoder.embed(Stream(torch.zeros(1, 1, dtype=torch.long))).pos  # stands in the middle
    assert_close(asked.double(), grid[:, 2:3], rtol=0, atol=1e-4)


def test_a_padded_picture_gives_what_it_gives_alone():
    net = made().double()
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    alone = torch.randn(1, 3, 24, 32, dtype=torch.float64)
    padded, real = torch.zeros(1, 3, 40, 48, dtype=torch.float64), torch.zeros(1, 40, 48, dtype=torch.bool)
    padded[..., :24, :32], real[:, :24, :32] = alone, True
    for one, two in zip(found(net, alone, 9), found(net, padded, 9, real), strict=True):
        assert_close(one, two, rtol=0, atol=1e-9)


def test_pictures_of_any_size():
    for height, width in ((1, 1), (17, 5), (96, 33)):
        scores, _ = found(made(), torch.randn(1, 3, height, width), 9)
        assert scores.shape == (1, 9, 3) and bool(scores.isfinite().all())
