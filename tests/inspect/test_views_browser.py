"""Views with words in their cells, with signs and of pruned layers in a real browser: keyboard, names, width, colours of light and dark."""

import numpy as np
import pytest

from plait.inspect.page import About, Maps, write_page

TOKENS = ["the", "▁door", "is", "▁open"]
WORDS = [[[f"{rank}{block}{token}" for token in TOKENS] for block in range(6)] for rank in "ab"]
SIGNS = ["all", "for", "against"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    draw = np.random.default_rng(0)
    chances = draw.uniform(0.05, 0.45, (1, 2, 6, 4)).astype(np.float32)
    about = About(("would say", "is read as"), ("from first to last", "read"), "What it would say.", whole=False, words=("queries",))
    blocks = [f"block {i}" for i in range(6)]
    lens = Maps("lens", chances, blocks, TOKENS, layers=[""], heads=["likeliest", "second"], cells=WORDS, about=about, start=5)
    part = draw.normal(size=(2, 4)).astype(np.float32)
    part /= np.abs(part).sum(-1, keepdims=True)
    signed = np.stack([np.abs(part), part.clip(0), (-part).clip(0)])[None]
    owes = About(("owes its score to", "counts for"), ("explained", "of the input"), "Shares.", whole=False, words=("queries",))
    shares = Maps("gradient x input", signed, ["kind 1", "kind 2"], TOKENS, layers=[""], heads=SIGNS, about=owes)
    weights = draw.dirichlet(np.ones(4), (2, 3, 4)).astype(np.float32)
    weights[0, 1:] = weights[0, 0]  # the first layer has one head left
    pruned = Maps("self-attention", weights, TOKENS, TOKENS, counts=[1, 3])
    return write_page(tmp_path_factory.mktemp("views") / "a.html", [lens, shares, pruned], title="T", source="s", answer="a", model="m")


@pytest.mark.parametrize(("width", "height", "dark"), [(1280, 900, False), (1280, 900, True), (390, 844, False), (390, 844, True)])
@pytest.mark.parametrize("kind", ["lens", "gradient-x-input", "self-attention"])
def test_a_view_fits_and_says_nothing_to_the_console(chromium, page, width, height, dark, kind):
    chromium.window(width, height, dark=dark, phone=width < 500)
    chromium.open(page, f"#{kind}/0/0/q1")
    assert chromium.said() == [] and chromium.run("document.documentElement.scrollWidth") <= width
    unnamed = """[...document.querySelectorAll("button, select, input, canvas[role], [role=tab], [role=radio], [role=option]")]
      .filter(e => e.offsetParent && !(e.getAttribute("aria-label") || e.textContent.trim() || e.closest("label"))).length"""
    assert chromium.run(unnamed) == 0
    # contrast of what is written on the page, and in the lit tokens (WCAG 2.1, 1.4.3): at least 4.5
    contrast = """(() => { const lum = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map((x) => { x /= 255;
        return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const of = (e) => { const ink = lum(getComputedStyle(e).color); let at = e;
        while (getComputedStyle(at).backgroundColor === "rgba(0, 0, 0, 0)") at = at.parentNode;
        const under = lum(getComputedStyle(at).backgroundColor);
        return (Math.max(ink, under) + 0.05) / (Math.min(ink, under) + 0.05); };
      return Math.min(...[...document.querySelectorAll("#says, #hint, #where, .line bdi, #tabs button")].map(of)); })()"""
    assert chromium.run(contrast) >= 4.5


def test_cells_with_words_are_wide_enough_and_pointing_at_one_says_it(chromium, page):
    chromium.window(1280, 900)
    chromium.open(page, "#lens/0/0/q5")
    box = "(({x, y, width, height}) => [x, y, width, height])(document.getElementById('map').getBoundingClientRect())"
    left, top, width, height = chromium.run(box)
    across, down = 110, 46  # the most that a cell takes
    for q in range(6):
        for k in range(4):
            chromium.mouse(left + width - 2 - (4 - k - 0.5) * across, top + height - 2 - (6 - q - 0.5) * down)
            tip = chromium.run("document.getElementById('tip').textContent")
            assert tip.startswith(f"block {q} → {TOKENS[k]}") and WORDS[0][q][k] in tip
    chromium.mouse(5, 5)
    chips = chromium.run("[...document.querySelectorAll('#keys small')].map(s => s.textContent)")
    assert [chip.rsplit(" ", 1)[0] for chip in chips] == WORDS[0][5]


def test_the_keyboard_goes_through_maps_of_names_and_past_heads_that_are_gone(chromium, page):
    chromium.window(1280, 900)
    chromium.open(page, "#gradient-x-input/0/0/q1")
    chromium.run("document.querySelector('#grid [aria-checked=true]').focus()")
    for sign in ("for", "against", "against"):
        chromium.press("ArrowRight")
        assert chromium.run("document.activeElement.getAttribute('aria-label')") == sign
        assert chromium.run("document.getElementById('where').textContent") == f"Gradient x input: {sign}"
    chromium.open(page, "#self-attention/1/2/q1")
    names = "[...document.querySelectorAll('#grid button')].map(b => b.getAttribute('aria-label'))"
    later = ["mean of heads", "head 0", "head 1", "head 2"]
    assert chromium.run(names) == ["layer 0, mean of heads", "layer 0, head 0", *(f"layer 1, {name}" for name in later)]
    chromium.run("document.querySelector('#grid [aria-checked=true]').focus()")
    chromium.press("ArrowUp")
    assert chromium.run("location.hash") == "#self-attention/0/0/q1"
