"""The page in a real browser: what it shows, how it is moved about in, and that hostile tokens do nothing."""

import numpy as np
import pytest

from plait.inspect.page import Maps, ramp, write_page

HOSTILE = "</script><script>alert(1)</script>"


def attention(*shape: int, seed: int = 0) -> np.ndarray:
    scores = np.exp(2 * np.random.default_rng(seed).normal(size=shape))
    return (scores / scores.sum(-1, keepdims=True)).astype(np.float32)


SOURCE, TARGET = [*"trans", "</s>"], ["<s>", "T", "R", "AE"]
ENCODER = Maps("encoder self-attention", attention(3, 4, 6, 6), SOURCE, SOURCE)
CROSS = Maps("cross-attention", attention(3, 4, 4, 6, seed=1), TARGET, SOURCE)


def write(folder, *maps: Maps, title="Title"):
    return write_page(folder / "page.html", maps, title=title, source="trans", answer="T R AE", model="a model")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write(tmp_path_factory.mktemp("page"), ENCODER, CROSS)


def numbers(chromium, line: str) -> list[float]:
    return [float(b) for b in chromium.run(f"[...document.querySelectorAll('#{line} small')].map(s => s.textContent)")]


def near(shown, weights) -> bool:
    """Equal to within the digits the page shows."""
    weights = np.asarray(weights, np.float64)
    return bool((np.abs(np.asarray(shown) - weights) <= np.where(weights >= 0.0995, 0.0055, 0.00055) + 2e-4).all())


@pytest.mark.parametrize(("head", "expected"), [("0", CROSS.weights[2, 0]), ("3", CROSS.weights[2, 3]), ("mean", CROSS.weights[2].mean(0))])
def test_the_address_chooses_what_is_seen(chromium, small, head, expected):
    chromium.window(1280, 900)
    chromium.open(small, f"#cross-attention/2/{head}/q1")
    assert chromium.run("document.querySelector('[role=tab][aria-selected=true]').textContent") == "Cross-attention"
    assert (
        chromium.run("document.getElementById('where').textContent") == f"Layer 2, {'mean of heads' if head == 'mean' else f'head {head}'}"
    )
    assert chromium.run("[...document.querySelectorAll('#queries bdi')].map(b => b.textContent)") == TARGET
    assert chromium.run("[...document.querySelectorAll('#keys bdi')].map(b => b.textContent)") == SOURCE
    assert near(numbers(chromium, "keys"), expected[1])
    chromium.open(small, f"#cross-attention/2/{head}/k4")  # a column: how much each query takes from this key
    assert near(numbers(chromium, "queries"), expected[:, 4])
    assert chromium.run("location.hash") == f"#cross-attention/2/{head}/k4"
    assert chromium.said() == []


@pytest.mark.parametrize("address", ["", "#nothing/99/99/q99", "#cross-attention/-1/x/k", "#%E0%A4%A"])
def test_an_address_of_nothing_shows_something(chromium, small, address):
    chromium.open(small, address)
    assert chromium.run("document.getElementById('where').textContent").startswith("Layer ")
    assert chromium.said() == []


@pytest.mark.parametrize("dark", [False, True])
def test_every_cell_has_the_colour_of_its_weight(chromium, small, dark):
    chromium.window(1280, 900, dark=dark)
    chromium.open(small, "#cross-attention/1/2/q0")
    script = """(() => { const c = document.getElementById("map"), p = c.getContext("2d"), seen = new Set();
      for (let y = 0; y < c.height; y += 2) for (let x = 0; x < c.width; x += 2)
        seen.add([...p.getImageData(x, y, 1, 1).data].slice(0, 3).join());
      return [...seen]; })()"""
    drawn = set(chromium.run(script))
    wanted = {",".join(map(str, ramp(dark)[round(255 * float(w) ** (2 / 3))])) for w in CROSS.weights[1, 2].ravel()}
    missing = wanted - drawn
    assert len(missing) <= 1, missing  # rounding of the stored weight may move a colour by one step


def test_pointing_at_a_cell_gives_its_weight(chromium, small):
    chromium.window(1280, 900)
    chromium.open(small, "#cross-attention/1/2/q0")
    left, top, width, height = chromium.run(
        "(({x, y, width, height}) => [x, y, width, height])(document.getElementById('map').getBoundingClientRect())"
    )
    cell = min(46, (height - 26) / 4)  # labels of one letter lie level above the columns, 24 pixels high
    assert cell == 46
    for q in range(4):
        for k in range(6):
            chromium.mouse(left + width - 2 - (6 - k - 0.5) * cell, top + 24 + (q + 0.5) * cell)
            text = chromium.run("document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent")
            row, rest = text.split(" → ")
            assert (row, rest.split()[0]) == (TARGET[q], SOURCE[k])
            assert abs(float(rest.split()[1]) - CROSS.weights[1, 2, q, k]) < 0.0008
            assert near(numbers(chromium, "keys"), CROSS.weights[1, 2, q])
    chromium.mouse(5, 5)
    assert chromium.run("document.getElementById('tip').hidden")


def test_the_keyboard_reaches_everything(chromium, small):
    chromium.window(1280, 900)
    chromium.open(small, "#cross-attention/1/1/q1")
    stops = []
    for _ in range(9):
        chromium.press("Tab")
        stops.append(chromium.run("(e => e.closest('#tabs, #grid, #queries, #keys')?.id || e.id)(document.activeElement)"))
    assert stops[:7] == [
        "tabs",
        "grid",
        "layer",
        "head",
        "stretch",
        "queries",
        "keys",
    ]  # the map is at its largest and its smallest: no zoom
    assert chromium.run("location.hash") == "#cross-attention/1/1/q1"  # passing by changes nothing
    chromium.run("document.querySelector('#grid [aria-checked=true]').focus()")
    for key, hash_ in (
        ("ArrowRight", "1/2"),
        ("ArrowDown", "2/2"),
        ("ArrowDown", "2/2"),
        ("ArrowLeft", "2/1"),
        ("ArrowUp", "1/1"),
        ("ArrowLeft", "1/0"),
        ("ArrowLeft", "1/mean"),
    ):
        chromium.press(key)
        assert chromium.run("location.hash") == f"#cross-attention/{hash_}/q1", key
    assert chromium.run("document.activeElement.getAttribute('aria-label')") == "layer 1, mean of heads"
    chromium.run("document.querySelector('#queries [tabindex=\"0\"]').focus()")
    chromium.press("ArrowRight")
    assert chromium.run("location.hash") == "#cross-attention/1/mean/q2"
    assert near(numbers(chromium, "keys"), CROSS.weights[1].mean(0)[2])
    chromium.run("document.querySelector('[role=tab][tabindex=\"0\"]').focus()")
    chromium.press("ArrowLeft")
    wanted = "#encoder-self-attention/1/mean"  # whose weights are unpacked first, which takes a moment
    there = f"location.hash.startsWith('{wanted}')"
    chromium.run(f"(async () => {{ for (let i = 0; i < 99 && !{there}; i++) await new Promise((go) => setTimeout(go, 40)); }})()")
    assert chromium.run("location.hash").startswith(wanted)


def test_hostile_and_odd_tokens_do_nothing_and_break_nothing(chromium, tmp_path):
    odd = [
        HOSTILE,
        "<img src=x onerror=document.title='hit'>",
        "",
        " ",
        "\n",
        "مرحبا",
        "你好世界",
        "\u202eevil",
        "x" * 300,
        "\ud800",
        "__proto__",
    ]
    page = write(tmp_path, Maps("self-attention", attention(2, 3, 11, 11), odd, odd), title=HOSTILE)
    for width, height, phone in ((1280, 900, False), (390, 844, True), (320, 600, True)):
        chromium.window(width, height, phone=phone)
        chromium.open(page)
        assert chromium.said() == []  # no dialog, no blocked script, no request
        assert chromium.run("document.title") == HOSTILE
        assert chromium.run("document.scripts.length") == 2 and chromium.run("document.images.length") == 0
        assert chromium.run("document.documentElement.scrollWidth") <= width
        assert chromium.run("document.querySelector('#queries bdi').textContent") == HOSTILE


def test_two_hundred_tokens_stay_light(chromium, tmp_path):
    many = [f"token{i}" for i in range(200)]
    maps = Maps("self-attention", attention(2, 2, 200, 200), many, many)
    page = write(tmp_path, maps)
    chromium.window(390, 844, phone=True)
    chromium.open(page, "#self-attention/0/1/q150")
    assert chromium.run("document.querySelectorAll('*').length") < 1600  # a canvas, not 40,000 cells
    assert near(numbers(chromium, "keys"), maps.weights[0, 1, 150])
    chromium.run("document.getElementById('more').click()")  # the first step goes to where every token has its name
    wide, window, pixels = chromium.run(
        "(f => [f.scrollWidth, f.clientWidth, document.getElementById('map').width])(document.getElementById('frame'))"
    )
    assert wide > 200 * 13 and pixels <= 2 * window
    assert chromium.run("document.documentElement.scrollWidth") == 390
    assert chromium.said() == []
