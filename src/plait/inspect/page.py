"""Attention maps as one self-contained HTML page: nothing is fetched, everything is inside the file."""

import base64
import hashlib
import html
import json
import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from plait.errors import InputError

if TYPE_CHECKING:
    from plait.inspect.overlay import Shown

LEVELS = 4095  # steps of the stored square roots: a weight is off by at most 1/4095, weights near zero by far less
LIMIT = 64_000_000  # weights on one page, about 100 MB of file; browsers give up soon after
ROOM = 16_000_000  # weights on a page that opens at once, about 25 MB of file
SLACK = 0.02  # rows recorded in half precision do not sum to exactly 1


@dataclass(frozen=True)
class About:
    """How a page speaks of maps: what a query does to a key, and a key to a query, what both are, and what the whole shows.

    `whole`: each row sums to 1. `words`: which of "queries" and "keys" are no tokens but words about the model, whose
    spaces are no news.
    """

    does: tuple[str, str] = ("looks at", "is looked at by")
    are: tuple[str, str] = ("that look", "looked at")
    hint: str = (
        "A row is a token that looks, the columns are what it looks at; each row sums to 1. "
        "Colour rises faster for small weights, so that faint attention stays visible."
    )
    whole: bool = True
    words: Sequence[str] = ()


PICTURES = {" ": "␣", "\n": "⏎", "\t": "⇥", "\u00a0": "⍽", "\u3000": "␣"}  # what cannot be seen, made visible
JOINERS = "\u200c\u200d"  # part of the spelling of Persian words and of emoji, so hidden only where they stand alone


@dataclass(frozen=True)
class Maps:
    """The attention weights of one kind of attention for one input, or other shares of 0 to 1 that `about` speaks of.

    `weights` [layers, heads, Q, K], each row summing to 1 if `about` says so; `queries` Q and `keys` K display tokens. `layers` and
    `heads` are names where numbers do not do, `cells` [heads][Q][K] what stands in a cell. `counts` says how many heads each layer has
    where they differ; what stands behind them is not shown, but for the mean over heads, and so is the layer's mean. Errors: InputError
    lists what does not fit.
    """

    kind: str
    weights: np.ndarray
    queries: list[str]
    keys: list[str]
    layers: Sequence[str] | None = None
    heads: Sequence[str] | None = None
    counts: Sequence[int] | None = None
    cells: Sequence[Sequence[Sequence[str]]] | None = None
    about: About = About()
    start: int | None = None  # the query that is shown first

    def __post_init__(self):
        shape = self.weights.shape
        if len(shape) != 4 or 0 in shape:
            raise InputError(f"{self.kind}: weights have the shape {shape}, expected [layers, heads, queries, keys], none of them 0")
        sums = self.weights.sum(-1, dtype=np.float64)
        faults = [
            f"{given} {name}, but the weights are for {expected}"
            for name, given, expected in (("queries", len(self.queries), shape[2]), ("keys", len(self.keys), shape[3]))
            if given != expected
        ]
        if not np.isfinite(sums).all():
            faults.append("some weights are not finite")
        elif self.weights.min() < 0:
            faults.append(f"the smallest weight is {self.weights.min():.3g}, expected none below 0: give the weights after the softmax")
        elif self.about.whole and (worst := np.abs(sums - 1).max()) > SLACK:
            faults.append(f"rows sum to 1 only within {worst:.3g}, expected {SLACK}")
        if faults:
            raise InputError(f"{self.kind}: the attention maps do not fit together", faults)

    def heads_of(self, layer: int) -> int:
        return self.weights.shape[1] if self.counts is None else self.counts[layer]

    def shown(self, side: Literal["queries", "keys"]) -> list[str]:
        """The names of a side as they can be shown."""
        found = [visible(token) for token in getattr(self, side)]
        return [name.replace("␣", " ") for name in found] if side in self.about.words else found


def fitted(maps: Sequence[Maps], room: int = ROOM) -> list[Maps]:
    """Maps for a page of bounded size. Where all have more than `room` weights, the largest first lose their heads (the mean is shown),
    then layers: every second one is left out, every third ..., the last one always stays. The page names what is there."""
    found = list(maps)

    def over() -> int:
        return sum(m.weights.size for m in found) - room

    for i in sorted(range(len(found)), key=lambda i: -found[i].weights.size):
        m = found[i]
        layers, heads, *_ = m.weights.shape
        if over() > 0 and heads > 1 and m.heads is None:
            name = "mean of heads" if m.counts else f"mean of {heads} heads"
            m = found[i] = replace(m, weights=m.weights.mean(1, keepdims=True), heads=[name], counts=None)
        if over() > 0 and layers > 1:
            kept = max(1, layers - -(-over() // m.weights[0].size))
            some = list(range(layers - 1, -1, -layers // kept))[::-1]
            counts = m.counts and [m.counts[one] for one in some]
            found[i] = replace(m, weights=m.weights[some], layers=[str((m.layers or range(layers))[one]) for one in some], counts=counts)
    return found


def visible(token: str) -> str:
    """A token as it can be shown on one line: spaces, breaks, controls and lone accents get a picture, all else stays as it is."""
    alone = all(unicodedata.category(c) == "Cf" for c in token)
    shown = []
    for c in token:
        category = unicodedata.category(c)
        if c in PICTURES:
            shown.append(PICTURES[c])
        elif ord(c) < 32 or ord(c) == 127:
            shown.append(chr(0x2400 + min(ord(c), 33)))  # Unicode's control pictures; delete is the 34th
        elif category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and (alone or c not in JOINERS)):
            shown.append(f"U+{ord(c):04X}")  # direction marks would turn their neighbours around
        else:
            shown.append(c)
    text = "".join(shown) or "∅"
    return "◌" + text if unicodedata.category(text[0]).startswith("M") else text


def ramp(dark: bool = False) -> np.ndarray:
    """256 colours uint8 [256, 3] for weights 0 to 1, from the background's lightness to its opposite.

    Lightness is linear in OKLab (Ottosson 2020), so equal steps look equal and the order survives any colour blindness and a grey print.
    """
    t = np.linspace(0, 1, 256)
    if dark:
        lightness, hue = 0.235 + 0.695 * t, 282 - 92 * t
        chroma = 0.022 + 0.42 * t * (1 - t) ** 1.25 + 0.05 * t
    else:
        lightness, hue = 0.972 - 0.70 * t, 212 + 66 * t
        chroma = 0.008 + 0.42 * t**1.25 * (1 - t) + 0.085 * t
    a, b = chroma * np.cos(np.radians(hue)), chroma * np.sin(np.radians(hue))
    l = lightness + 0.3963377774 * a + 0.2158037573 * b
    m = lightness - 0.1055613458 * a - 0.0638541728 * b
    s = lightness - 0.0894841775 * a - 1.2914855480 * b
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(to_rgb @ np.stack([l, m, s]) ** 3, 0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * rgb.T).astype(np.uint8)


def pack(weights: np.ndarray) -> str:
    """Weights of any shape as base64 of deflated square roots on 4096 levels, all low bytes before all high ones (which compress well)."""
    roots = np.rint(np.sqrt(np.clip(weights, 0, 1, dtype=np.float32)) * LEVELS).astype(np.uint16).ravel()
    return base64.b64encode(zlib.compress((roots & 255).astype(np.uint8).tobytes() + (roots >> 8).astype(np.uint8).tobytes(), 6)).decode()


def unpack(text: str, shape: Sequence[int]) -> np.ndarray:
    """What `pack` stored, as float32 of the given shape: the page's own decoding, in Python."""
    low, high = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(2, -1).astype(np.uint16)
    return (((low | high << 8) / np.float32(LEVELS)) ** 2).reshape(shape).astype(np.float32)


def _slugs(kinds: Sequence[str]) -> list[str]:
    """One distinct word for the address bar per kind."""
    slugs: list[str] = []
    for kind in kinds:
        base = re.sub(r"\W+", "-", kind.lower()).strip("-") or "maps"
        slugs.append(next(s for n in range(1, len(kinds) + 2) if (s := base if n == 1 else f"{base}-{n}") not in slugs))
    return slugs


def write_page(
    path: str | Path, maps: Sequence[Maps], *, title: str, source: str, answer: str, model: str, picture: "Shown | None" = None
) -> Path:
    """Write one HTML file that shows `maps`, with the model's name, what it was given and what it answered; returns its path.

    With a `picture`, which then has the same maps, weights lie over it; else they are a matrix of tokens.
    The address after `#` is `kind/layer/head`, counted from 0 as in the model's parameter names, e.g. `#cross-attention/2/mean`.
    Errors: InputError for no maps, or more weights than a browser can hold.
    """
    if not maps:
        raise InputError("no attention maps to show: this model recorded none")
    if (count := sum(m.weights.size for m in maps)) > LIMIT:
        raise InputError(f"{count:,} attention weights are too many for one page, at most {LIMIT:,}: give a shorter input or fewer layers")
    views = [
        {
            "kind": m.kind, "slug": slug, "layers": m.weights.shape[0], "heads": m.weights.shape[1],
            "queries": m.shown("queries"), "keys": m.shown("keys"), "roots": pack(m.weights),
            "layerNames": m.layers, "headNames": m.heads, "counts": m.counts,
            "does": m.about.does, "start": m.start, "are": m.about.are, "hint": m.about.hint,
            "cells": m.cells and [[[visible(t) for t in row] for row in head] for head in m.cells],
        }
        for m, slug in zip(maps, _slugs([m.kind for m in maps]), strict=True)
    ]  # fmt: skip
    light, dark = (ramp(), ramp(dark=True)) if picture is None else picture.ramps()
    shown = {"levels": LEVELS, "ramp": {"light": light.tobytes().hex(), "dark": dark.tobytes().hex()}, "views": views}
    if picture is not None:
        shown["picture"] = picture.written()
        for index, view in enumerate(views):
            view |= picture.view(index)
    data = json.dumps(shown, separators=(",", ":"))
    for sign in "<>&":  # so that no token can end the script element; JSON reads them back the same
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    middle = "page_map.js" if picture is None else picture.script
    here = resources.files("plait.inspect")
    style, script, large, frame = (here.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js", middle, "page.html"))
    script = script.replace("{{map}}", large)

    def allow(text: str) -> str:  # the page may run this one script and fetch nothing, whatever ends up in it
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    parts = {
        "policy": f"default-src 'none'; base-uri 'none'; form-action 'none'; script-src {allow(script)}; style-src {allow(style)}",
        "title": html.escape(title), "model": html.escape(model), "source": html.escape(source),
        "answer": html.escape(answer),
        "style": style, "data": data, "script": script,
    }  # fmt: skip
    page = re.sub(r"\{\{(\w+)\}\}", lambda hole: parts[hole[1]], frame)  # one pass: a title "{{data}}" stays a title
    path = Path(path)
    path.write_text(page, "utf-8", errors="replace", newline="\n")
    return path
