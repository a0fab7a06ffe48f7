"""Attention over a picture: where entries lie on it, what the page needs to show that, and a static picture."""

import base64
import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from plait.inspect.page import Maps, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# One hue on a grey, darkened picture: attention is what is bright, so that it is seen with any colour vision and in a grey print.
HUE = np.array((255, 176, 0))
DIMMED = 0.55  # how much light of the picture is left under the overlay
MOST = 0.85  # how opaque the overlay is where the weight is largest
LUMA = np.array((0.2126, 0.7152, 0.0722))
EDGE = 1024  # pixels of the longer side of a picture in a page
HINT = (
    "Bright is what the chosen entry {does}. Click the picture, or drag over it, to choose another; patches are named row,column. "
    "The numbers are beside it. Brightness rises faster for small weights, so that faint ones stay visible. "
)


@dataclass(frozen=True)
class Entries:
    """What looks or is looked at: `names`, and `places` float32 [n, 4], x0 y0 x1 y1 as shares of the picture's width and height.

    NaN is an entry that has no place (a class token). `tiled`: they lie side by side, as patches do, and boxes do not. `offered` are the
    entries that can be chosen by a click on the picture, `first` is the one that is shown first.
    """

    names: list[str]
    places: np.ndarray
    tiled: bool = True
    offered: list[int] = field(default_factory=list)
    first: int = 0

    @classmethod
    def grid(cls, before: list[str], rows: int, columns: int, corner: tuple[float, float], cell: tuple[float, float]) -> Self:
        """Patches of one size (x, y) row by row, named row,column, and the entries before them; `corner` is that of the first patch."""
        row, column = (at.ravel() for at in np.indices((rows, columns)))
        x, y = corner[0] + column * cell[0], corner[1] + row * cell[1]
        places = np.full((len(before) + rows * columns, 4), np.nan, np.float32)
        places[len(before) :] = np.stack([x, y, x + cell[0], y + cell[1]], 1)
        names = [*before, *(f"{r},{c}" for r, c in zip(row, column, strict=True))]
        middle = len(before) + (rows // 2) * columns + columns // 2
        return cls(names, places, offered=list(range(len(before), len(names))), first=0 if before else middle)

    @classmethod
    def nowhere(cls, names: list[str]) -> Self:
        """What has no place: words, classes."""
        return cls(names, np.full((len(names), 4), np.nan, np.float32))

    def behind(self, names: list[str]) -> "Entries":
        """With entries before these that have no place."""
        n, nowhere = len(names), np.full((len(names), 4), np.nan, np.float32)
        places, offered = np.concatenate([nowhere, self.places]), [i + n for i in self.offered]
        return replace(self, names=[*names, *self.names], places=places, offered=offered, first=self.first + n)

    def shown(self) -> list[str]:
        """The names as they can be shown; unlike a token's, their spaces are no news."""
        return [visible(name).replace("␣", " ") for name in self.names]

    def written(self) -> dict[str, Any]:
        places = [None if np.isnan(place[0]) else [round(float(x), 5) for x in place] for place in self.places]
        return {"places": places, "tiled": self.tiled, "offered": self.offered}


@dataclass(frozen=True)
class Shown:
    """Maps of a picture np.uint8 [H, W, 3]: each with the entries that look and those looked at."""

    pixels: np.ndarray
    maps: list[tuple[Maps, Entries, Entries]]

    script = "page_picture.js"

    def ramps(self) -> tuple[np.ndarray, np.ndarray]:
        """(light, dark): the same, as the picture is dimmed in both."""
        return veil(), veil()

    def written(self) -> dict[str, Any]:
        """What the page's script reads of the picture."""
        from PIL import Image

        image = Image.fromarray(self.pixels)
        image.thumbnail((EDGE, EDGE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        height, width = self.pixels.shape[:2]
        shown = {"jpeg": base64.b64encode(file.getvalue()).decode(), "width": width, "height": height}
        return shown | {"hue": HUE.tolist(), "most": MOST, "dimmed": DIMMED, "luma": LUMA.tolist()}

    def view(self, index: int) -> dict[str, Any]:
        """What it reads of one of the maps besides the weights."""
        _, queries, keys = self.maps[index]
        on = {"q": queries.written(), "k": keys.written()}
        return {"on": on, "start": queries.first, "queries": queries.shown(), "keys": keys.shown()}


def veil() -> np.ndarray:
    """256 colours uint8 [256, 3] for weights 0 to 1: what the overlay makes of a medium grey of the dimmed picture."""
    alpha = np.linspace(0, MOST, 256)[:, None]
    return np.rint((1 - alpha) * 127 * DIMMED + alpha * HUE).astype(np.uint8)


def dimmed(pixels: np.ndarray) -> np.ndarray:
    """What lies under the overlay: uint8 [H, W, 3] in grey and darker."""
    return np.repeat(np.rint(pixels @ LUMA * DIMMED).astype(np.uint8)[..., None], 3, -1)


def draw_over(
    path: str | Path, pixels: np.ndarray, maps: Maps, queries: Entries, keys: Entries, *, query: int, layer: int | None, head: int | None
) -> Path:
    """Draw what one query of a layer looks at over the picture, in one head or with `head=None` in each; returns the path of the PNG.

    Counted from 0; `layer=None` is the last one. Errors: InputError for one that is not there, or without matplotlib.
    """
    from plait.inspect.picture import BEND, index_of, sheet

    layers, heads, n_queries, _ = maps.weights.shape
    query = index_of("query", query, n_queries)
    layer = index_of("layer", layers - 1 if layer is None else layer, layers)
    head = 0 if head is None and maps.heads is not None else head
    chosen = list(range(maps.heads_of(layer))) if head is None else [index_of("head", head, maps.heads_of(layer))]
    height, width = pixels.shape[:2]
    placed = ~np.isnan(keys.places[:, 0])
    top = float(maps.weights[layer, chosen, query][:, placed].max()) or 1.0
    scale = np.array([width, height, width, height])

    def panel(axes: "Axes", number: int) -> Any:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap, PowerNorm
        from matplotlib.patches import Rectangle

        axes.imshow(dimmed(pixels), extent=(0, width, height, 0), interpolation="nearest" if max(height, width) < 200 else "auto")
        for weight, place in zip(maps.weights[layer, chosen[number], query], keys.places * scale, strict=True):
            if np.isnan(place[0]):
                continue
            alpha, colour = MOST * float(weight / top) ** BEND, tuple(HUE / 255)
            how: dict[str, Any] = dict(fill=True, fc=colour, lw=0) if keys.tiled else dict(fill=False, ec=colour, lw=2)
            axes.add_patch(Rectangle(place[:2], *(place[2:] - place[:2]), alpha=alpha, antialiased=not keys.tiled, **how))
        if not np.isnan((place := queries.places[query] * scale)[0]):
            for colour, wide in (("#000", 3.0), ("#fff", 1.4)):
                axes.add_patch(Rectangle(place[:2], *(place[2:] - place[:2]), fill=False, ec=colour, lw=wide))
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return ScalarMappable(PowerNorm(BEND, 0, top), ListedColormap(veil() / 255.0))

    one = len(chosen) == 1
    titles = [""] if one else [f"head {number}" for number in chosen]
    said = [maps.kind, maps.layers[layer] if maps.layers is not None else f"layer {layer}"]
    said += [maps.heads[chosen[0]] if maps.heads is not None else f"head {chosen[0]}"] if one and heads > 1 else []
    name = f"{', '.join(filter(None, said))}: {queries.shown()[query]}"
    ticks = {top * part: f"{top * part:.2g}" for part in (0, 0.1, 0.25, 0.5, 0.75, 1)}
    return sheet(path, name, titles, panel, shape=0.88 * height / width, wide=6.0 if one else 2.4, ticks=ticks)
