"""Attention over a picture: rollout by its formula, where entries lie, and the page and the PNG that show them."""

import base64
import io
import json
import re

import numpy as np
import pytest

from plait.errors import InputError
from plait.inspect.overlay import MOST, Entries, Shown, dimmed, draw_over
from plait.inspect.page import LEVELS, Maps, unpack, write_page
from plait.inspect.rollout import rollout

ROWS, COLUMNS = 3, 4
NAN = np.full(4, np.nan, np.float32)


def attention(*shape: int, seed: int = 0) -> np.ndarray:
    scores = np.exp(2 * np.random.default_rng(seed).normal(size=shape))
    return (scores / scores.sum(-1, keepdims=True)).astype(np.float32)


PATCHES = Entries.grid(["class"], ROWS, COLUMNS, (0, 0), (1 / COLUMNS, 1 / ROWS))
BOXES = np.array([[0.1, 0.1, 0.6, 0.9], [0.2, 0.3, 0.5, 0.6], [0.7, 0.5, 0.95, 0.95]], np.float32)
OBJECTS = Entries(["</script>cat 0.91", "red dog 0.80", "cat 0.10"], BOXES, tiled=False, offered=[0, 1], first=1)
SELF = Maps("patches over patches", attention(3, 2, 13, 13), PATCHES.names, PATCHES.names)
CROSS = Maps("objects over patches", attention(3, 2, 3, 13, seed=1), OBJECTS.names, PATCHES.names)
PIXELS = np.random.default_rng(2).integers(0, 256, (60, 80, 3)).astype(np.uint8)
SHOWN = Shown(PIXELS, [(SELF, PATCHES, PATCHES), (CROSS, OBJECTS, PATCHES)])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    return write_page(path, [SELF, CROSS], title="t", source="s", answer="a", model="m", picture=SHOWN)


def test_rollout_follows_the_papers_formula():
    weights = attention(3, 4, 6, 6, seed=3)
    found = rollout(weights)
    assert found.dtype == np.float32 and found.shape == (3, 6, 6)
    expected = np.zeros((3, 6, 6))
    for layer in range(3):  # section 3, equation 1, entry by entry: A = 0.5 W + 0.5 I, rollout(i) = A(i) rollout(i - 1)
        for q in range(6):
            for k in range(6):
                for j in range(6):
                    mean = sum(float(weights[layer, head, q, j]) for head in range(4)) / 4
                    below = float(j == k) if layer == 0 else expected[layer - 1, j, k]
                    expected[layer, q, k] += (0.5 * mean + 0.5 * (q == j)) * below
    assert np.abs(found - expected).max() < 1e-6
    assert np.abs(found.sum(-1) - 1).max() < 1e-6


def test_a_grid_lies_row_by_row_behind_what_stands_before_it():
    entries = Entries.grid(["class", "register"], 2, 3, (-0.1, 0.2), (0.4, 0.3))
    assert entries.names == ["class", "register", "0,0", "0,1", "0,2", "1,0", "1,1", "1,2"]
    assert np.isnan(entries.places[:2]).all()
    assert np.allclose(entries.places[2], [-0.1, 0.2, 0.3, 0.5]) and np.allclose(entries.places[6], [0.3, 0.5, 0.7, 0.8])
    assert entries.offered == list(range(2, 8)) and entries.first == 0
    assert Entries.grid([], 3, 3, (0, 0), (1, 1)).first == 4  # nothing but patches: the one in the middle


def test_the_page_holds_picture_places_and_weights(page):
    from PIL import Image

    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.S)
    data = json.loads(text)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["picture"]["jpeg"]))))
    assert picture.shape == PIXELS.shape and (data["picture"]["width"], data["picture"]["height"]) == (80, 60)
    assert np.abs(picture.mean((0, 1)) - PIXELS.mean((0, 1))).max() < 3
    own, cross = data["views"]
    assert np.abs(unpack(own["roots"], SELF.weights.shape) - SELF.weights).max() <= 1 / LEVELS
    assert own["on"]["q"]["places"][0] is None and np.allclose(own["on"]["k"]["places"][1:], PATCHES.places[1:], atol=1e-5)
    assert np.allclose(cross["on"]["q"]["places"], BOXES, atol=1e-5) and not cross["on"]["q"]["tiled"]
    assert cross["start"] == 1 and cross["queries"][1] == "red dog 0.80"


def drawn(path):
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_a_png_is_bright_where_the_weight_is(tmp_path):
    pytest.importorskip("matplotlib")
    weights = np.full((1, 1, 13, 13), 0.1 / 12, np.float32)
    weights[..., 1 + 1 * COLUMNS + 2] = 0.9  # row 1, column 2
    maps = Maps("patches", weights, PATCHES.names, PATCHES.names)
    black = np.zeros((30, 40, 3), np.uint8)
    draw_over(tmp_path / "a.png", black, maps, PATCHES, PATCHES, query=0, layer=None, head=0)
    found = drawn(tmp_path / "a.png")
    dark = np.argwhere(found.max(-1) < 70)  # the faint patches: the picture's extent
    (top, left), (bottom, right) = dark.min(0), dark.max(0)
    y, x = top + (bottom - top) * 1.5 / ROWS, left + (right - left) * 2.5 / COLUMNS
    assert np.abs(found[int(y), int(x)] - MOST * np.array([255, 176, 0])).max() <= 2
    for row in range(ROWS):
        for column in range(COLUMNS):
            at = found[int(top + (bottom - top) * (row + 0.5) / ROWS), int(left + (right - left) * (column + 0.5) / COLUMNS)]
            assert (at[0] > 200) == ((row, column) == (1, 2)), (row, column)


@pytest.mark.parametrize("given", [{"layer": 3}, {"head": 2}, {"query": 3}])
def test_a_png_of_what_is_not_there_is_refused(tmp_path, given):
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="these maps have"):
        draw_over(tmp_path / "a.png", PIXELS, CROSS, OBJECTS, PATCHES, **{"query": 0, "layer": 0, "head": 0, **given})


# ---- in a browser


def numbers(chromium, line: str) -> list[float]:
    return [float(b) for b in chromium.run(f"[...document.querySelectorAll('#{line} small')].map(s => s.textContent)")]


def near(shown, weights) -> bool:
    """Equal to within the digits the page shows."""
    weights = np.asarray(weights, np.float64)
    return bool((np.abs(np.asarray(shown) - weights) <= np.where(weights >= 0.0995, 0.0055, 0.00055) + 2e-4).all())


def at(chromium, x: float, y: float) -> tuple[float, float]:
    """A point of the picture, as shares, in the window."""
    left, top, width, height = chromium.run(
        "(({x, y, width, height}) => [x, y, width, height])(document.getElementById('map').getBoundingClientRect())"
    )
    return left + x * width, top + y * height


def click(chromium, x: float, y: float) -> None:
    where = dict(zip("xy", at(chromium, x, y), strict=True))
    for kind in ("mousePressed", "mouseReleased"):
        chromium.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)


def colour(chromium, x: float, y: float) -> list[int]:
    script = "(c => [...c.getContext('2d').getImageData(Math.floor({} * c.width), Math.floor({} * c.height), 1, 1).data])({})"
    return chromium.run(script.format(x, y, "document.getElementById('map')"))[:3]


@pytest.mark.parametrize(("width", "height", "phone"), [(1280, 900, False), (390, 844, True)])
@pytest.mark.parametrize("dark", [False, True])
def test_the_picture_fits_and_nothing_is_fetched(chromium, page, width, height, phone, dark):
    chromium.window(width, height, phone=phone, dark=dark)
    chromium.open(page)
    assert chromium.said() == []
    assert chromium.run("document.documentElement.scrollWidth") <= width
    assert chromium.run("(r => r.width / r.height)(document.getElementById('map').getBoundingClientRect())") == pytest.approx(
        4 / 3, rel=0.01
    )


def test_a_click_chooses_who_looks(chromium, page):
    chromium.window(1280, 900)
    chromium.open(page, "#patches-over-patches/2/1/q0")
    assert near(numbers(chromium, "keys"), SELF.weights[2, 1, 0])
    click(chromium, 2.5 / COLUMNS, 1.5 / ROWS)  # row 1, column 2
    assert chromium.run("location.hash") == "#patches-over-patches/2/1/q7"
    assert near(numbers(chromium, "keys"), SELF.weights[2, 1, 7])
    chromium.open(page, "#objects-over-patches/0/mean/q2")
    click(chromium, 0.35, 0.45)  # in both of the likely boxes: the smaller one
    assert chromium.run("location.hash") == "#objects-over-patches/0/mean/q1"
    assert near(numbers(chromium, "keys"), CROSS.weights[0].mean(0)[1])
    click(chromium, 0.8, 0.7)  # an unlikely object's box is not offered
    assert chromium.run("location.hash") == "#objects-over-patches/0/mean/q1"


def test_pointing_at_a_patch_gives_its_weight(chromium, page):
    chromium.window(1280, 900)
    chromium.open(page, "#patches-over-patches/1/0/q0")
    for row in range(ROWS):
        for column in range(COLUMNS):
            chromium.mouse(*at(chromium, (column + 0.5) / COLUMNS, (row + 0.5) / ROWS))
            said = chromium.run("document.getElementById('tip').textContent")
            [(who, whom, weight)] = re.findall(r"^(.*) → (\S*)\s+(\S*)$", said)
            assert (who, whom) == ("class", f"{row},{column}")
            assert abs(float(weight) - SELF.weights[1, 0, 0, 1 + row * COLUMNS + column]) < 0.0008


def test_the_overlay_is_as_opaque_as_the_weight_is_large(chromium, page):
    chromium.window(1280, 900)
    chromium.open(page, "#patches-over-patches/0/1/q0")
    chromium.run("document.getElementById('stretch').checked || document.getElementById('stretch').click()")
    weights = SELF.weights[0, 1, 0, 1:]
    below = dimmed(PIXELS).astype(float)
    for patch, weight in enumerate(weights):
        row, column = divmod(patch, COLUMNS)
        x, y = (column + 0.45) / COLUMNS, (row + 0.45) / ROWS
        alpha = MOST * (weight / weights.max()) ** 0.5
        red, _, blue = colour(chromium, x, y)
        grey = below[int(y * 60) - 1 : int(y * 60) + 2, int(x * 80) - 1 : int(x * 80) + 2]
        # Grey is as red as blue, so that their difference is the overlay's alone, whatever the JPEG made of the noise below.
        assert red - blue == pytest.approx(255 * alpha, abs=3) and blue <= grey.max() + 40


def test_the_keyboard_moves_over_the_picture(chromium, page):
    chromium.window(1280, 900)
    chromium.open(page, "#patches-over-patches/0/0/q6")  # row 1, column 1
    chromium.run("document.getElementById('map').focus()")
    for key, query in (("ArrowRight", 7), ("ArrowDown", 11), ("ArrowDown", 11), ("ArrowLeft", 10), ("ArrowUp", 6)):
        chromium.press(key)
        assert chromium.run("location.hash") == f"#patches-over-patches/0/0/q{query}", key
    assert chromium.run("document.activeElement.id") == "map"


def test_columns_show_who_looks_at_an_entry(chromium, page):
    chromium.window(1280, 900)
    chromium.open(page, "#objects-over-patches/1/0/k5")
    assert near(numbers(chromium, "queries"), CROSS.weights[1, 0, :, 5])
    assert chromium.said() == []
