"""The page as a file: its numbers, its labels, and that nothing in it can act or fetch."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from plait.errors import InputError
from plait.inspect import page
from plait.inspect.page import LEVELS, Maps, pack, ramp, unpack, visible, write_page

HOSTILE = "</script><script>alert(1)</script>"


def attention(*shape: int, seed: int = 0, sharp: float = 2.0) -> np.ndarray:
    scores = np.exp(sharp * np.random.default_rng(seed).normal(size=shape))
    return (scores / scores.sum(-1, keepdims=True)).astype(np.float32)


def words(n: int, name: str) -> list[str]:
    return [f"{name}{i}" for i in range(n)]


def written(tmp_path, *maps: Maps, title="t", source="s", answer="a", model="m") -> str:
    return write_page(tmp_path / "page.html", maps, title=title, source=source, answer=answer, model=model).read_text("utf-8")


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


class Elements(HTMLParser):
    """What a parser sees: the names of all elements, and the text of each."""

    def __init__(self, text: str):
        super().__init__()
        self.names, self.text = [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)

    def handle_data(self, data):
        if self.names:
            self.text.setdefault(self.names[-1], []).append(data)


@pytest.mark.parametrize("sharp", [0.0, 1.0, 8.0])
def test_packed_weights_come_back_within_one_step(sharp):
    weights = attention(3, 4, 17, 23, sharp=sharp)
    found = unpack(pack(weights), weights.shape)
    assert found.dtype == np.float32 and found.shape == weights.shape
    assert np.abs(found - weights).max() <= 1 / LEVELS
    small = weights < 0.01
    assert np.abs(found - weights)[small].max(initial=0) <= 0.1 / LEVELS + LEVELS**-2.0  # roots keep faint weights finer


def test_zero_and_one_are_exact():
    eye = np.eye(5, dtype=np.float32)[None, None]
    assert (unpack(pack(eye), eye.shape) == eye).all()


def test_the_page_holds_weights_and_labels_in_order(tmp_path):
    one = Maps("encoder self-attention", attention(2, 3, 7, 7), words(7, "s"), words(7, "s"))
    two = Maps("cross-attention", attention(4, 2, 5, 7, seed=1), words(5, "t"), words(7, "s"))
    views = data_of(written(tmp_path, one, two))["views"]
    assert [view["slug"] for view in views] == ["encoder-self-attention", "cross-attention"]
    for maps, view in zip((one, two), views, strict=True):
        assert (view["queries"], view["keys"]) == (maps.queries, maps.keys)
        assert (view["layers"], view["heads"]) == maps.weights.shape[:2]
        assert np.abs(unpack(view["roots"], maps.weights.shape) - maps.weights).max() <= 1 / LEVELS


def test_kinds_of_one_name_have_addresses_of_their_own(tmp_path):
    maps = [Maps(kind, attention(1, 1, 2, 2), ["a", "b"], ["a", "b"]) for kind in ("self", "Self", "…", "…")]
    slugs = [view["slug"] for view in data_of(written(tmp_path, *maps))["views"]]
    assert slugs == ["self", "self-2", "maps", "maps-2"]


def test_hostile_tokens_and_titles_stay_text(tmp_path):
    maps = Maps(HOSTILE, attention(1, 1, 2, 2), [HOSTILE, "<!--"], ["<img src=x onerror=alert(1)>", "&lt;"])
    text = written(tmp_path, maps, title=HOSTILE + "{{data}}", source=HOSTILE, answer='"><b>', model="{{script}}")
    seen = Elements(text)
    assert seen.names.count("script") == 2 and seen.names.count("img") == 0 and seen.names.count("b") == 0
    assert HOSTILE not in text and text.count("<script") == text.count("</script") == 2
    assert seen.text["title"][0] == HOSTILE + "{{data}}"
    view = data_of(text)["views"][0]
    assert view["queries"] == [HOSTILE, "<!--"] and view["keys"] == ["<img␣src=x␣onerror=alert(1)>", "&lt;"]


def test_only_the_pages_own_script_may_run_and_nothing_is_fetched(tmp_path):
    text = written(tmp_path, Maps("self", attention(1, 1, 2, 2), ["a", "b"], ["a", "b"]))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "://" not in text
    for name in ("script", "style"):
        inside = re.findall(rf"<{name}>(.*?)</{name}>", text, re.S)
        assert len(inside) == 1
        assert f"{name}-src 'sha256-{base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()}'" in policy


def test_a_model_of_six_layers_and_eight_heads_stays_small(tmp_path):
    noise = Maps("self", attention(6, 8, 64, 64, sharp=1.0), words(64, "w"), words(64, "w"))  # noise compresses worst
    assert len(written(tmp_path, noise)) < 420_000


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("word", "word"), ("<s>", "<s>"), ("", "∅"), (" ", "␣"), (" the", "␣the"), ("\n", "⏎"), ("a\tb", "a⇥b"), ("\x00", "␀"),
        ("\x7f", "␡"), ("\u00a0", "⍽"), ("\u200b", "U+200B"), ("\u202eevil", "U+202Eevil"), ("\u2028", "U+2028"), ("\x85", "U+0085"),
        ("\ud800", "U+D800"), ("\u0301", "◌\u0301"), ("e\u0301", "e\u0301"), ("👨\u200d👩", "👨\u200d👩"), ("\u200d", "U+200D"),
        ("مرحبا", "مرحبا"), ("你好", "你好"),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_is_shown(token, shown):
    assert visible(token) == shown


@pytest.mark.parametrize("dark", [False, True])
def test_equal_steps_of_the_ramp_look_equal(dark):
    colours = ramp(dark)
    assert colours.shape == (256, 3) and colours.dtype == np.uint8
    rgb = colours / 255.0
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    lightness = np.cbrt(linear @ np.transpose(to_lms)) @ [0.2104542553, 0.7936177850, -0.0040720468]
    line = np.linspace(lightness[0], lightness[-1], 256)
    assert np.abs(lightness - line).max() < 0.015  # clipping at the edge of what a screen shows bends it a little
    assert (lightness[-1] > lightness[0]) == dark and abs(lightness[-1] - lightness[0]) > 0.6


def test_maps_that_do_not_fit_are_refused_with_all_faults_at_once():
    with pytest.raises(InputError) as told:
        Maps("cross-attention", 2 * attention(1, 1, 2, 3), ["a"], ["x", "y"])
    assert told.value.faults == [
        "1 queries, but the weights are for 2",
        "2 keys, but the weights are for 3",
        "rows sum to 1 only within 1, expected 0.02",
    ]


@pytest.mark.parametrize(
    ("weights", "word"),
    [
        (np.ones((2, 2), np.float32), "shape"),
        (np.ones((1, 1, 0, 1), np.float32), "shape"),
        (np.full((1, 1, 1, 2), np.nan, np.float32), "not finite"),
        (np.array([[[[-1.0, 2.0]]]], np.float32), "below 0"),
    ],
)
def test_what_is_no_attention_is_refused(weights, word):
    with pytest.raises(InputError, match=word):
        Maps("self", weights, ["a"], ["x", "y"])


def test_half_precision_rows_are_accepted():
    Maps("self", attention(1, 2, 40, 40).astype(np.float16), words(40, "a"), words(40, "a"))


def test_no_maps_and_too_many_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no attention maps"):
        written(tmp_path)
    monkeypatch.setattr(page, "LIMIT", 3)
    with pytest.raises(InputError, match="4 attention weights"):
        written(tmp_path, Maps("self", attention(1, 1, 2, 2), ["a", "b"], ["a", "b"]))
    assert not list(tmp_path.iterdir())
