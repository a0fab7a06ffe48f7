"""The PNG of attention maps: sizes, colours, and names that fonts do not have."""

import sys

import numpy as np
import pytest

from plait.errors import InputError
from plait.inspect.page import Maps, ramp
from plait.inspect.picture import draw

pytest.importorskip("matplotlib")


def pixels(path) -> np.ndarray:
    from matplotlib.image import imread

    return np.round(255 * imread(path)[..., :3]).astype(np.uint8)


def share(image: np.ndarray, colour: np.ndarray) -> int:
    return int((image == colour).all(-1).sum())


def diagonal(layers=2, heads=3, n=8, tokens=None) -> Maps:
    names = tokens or [f"w{i}" for i in range(n)]
    return Maps(
        "self-attention", np.broadcast_to(np.eye(len(names), dtype=np.float32), (layers, heads, len(names), len(names))), names, names
    )


@pytest.mark.parametrize(("head", "heads"), [(1, 1), (None, 3)])
def test_the_area_of_a_colour_is_the_share_of_its_weight(tmp_path, head, heads):
    image = pixels(draw(tmp_path / "a.png", diagonal(), layer=0, head=head))
    ones, zeros = share(image, ramp()[255]), share(image, ramp()[0])
    assert ones > 1000 * heads
    assert zeros / ones == pytest.approx(7, rel=0.1)  # of 8 x 8 cells 8 are one; the lines between and the colour bar take a little


def test_the_last_layer_is_the_default_and_layers_differ(tmp_path):
    weights = np.stack([np.full((1, 4, 4), 0.25, np.float32), np.eye(4, dtype=np.float32)[None]])
    maps = Maps("self", weights, list("abcd"), list("abcd"))
    last, first = (pixels(draw(tmp_path / f"{layer}.png", maps, layer=layer)) for layer in (None, 0))
    assert (
        share(last, ramp()[255]) > 100 * max(1, share(first, ramp()[255]) // 100)
        and share(first, ramp()[round(255 * 0.25 ** (2 / 3))]) > 10_000
    )


def test_odd_tokens_raise_no_warnings(tmp_path):
    odd = ["", " ", "\n", "$x_1$", "$", "مرحبا", "你好世界", "👨‍👩‍👧", "\u202e", "\ud800", "_hidden", "x" * 80, "\\frac", "%"]
    assert draw(tmp_path / "odd.png", diagonal(1, 1, tokens=odd)).stat().st_size > 5000
    assert pixels(draw(tmp_path / "many.png", diagonal(1, 1, 200))).shape[0] < 2000


@pytest.mark.parametrize("wrong", [{"layer": 2}, {"layer": -1}, {"head": 3}])
def test_a_layer_or_head_that_is_not_there(tmp_path, wrong):
    with pytest.raises(InputError, match="these maps have"):
        draw(tmp_path / "a.png", diagonal(), **wrong)


def test_without_matplotlib_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r'pip install "plait\[plot\]"'):
        draw(tmp_path / "a.png", diagonal())
