"""Attention maps as a PNG picture, for papers and slides."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.errors import InputError
from plait.inspect.page import Maps, ramp, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEND = 2 / 3  # the page's bend: below 1, so that faint attention can still be seen
SHOWN = 60  # labels along one side; of more tokens each nth is named
LONGEST = 16  # signs of a label


def index_of(name: str, given: int, count: int) -> int:
    """`given`, or an InputError that says what maps have."""
    if not 0 <= given < count:
        raise InputError(f"{name}={given}: these maps have {name}s 0 to {count - 1}")
    return given


def _labels(tokens: list[str]) -> tuple[range, list[str]]:
    """Which places along a side get a label, and the labels, of tokens as they can be shown."""
    places = range(0, len(tokens), -(-len(tokens) // SHOWN))
    shown = [tokens[i] for i in places]
    return places, [t if len(t) <= LONGEST else t[: LONGEST - 1] + "…" for t in shown]


def _heat(axes: "Axes", maps: Maps, layer: int, head: int, colours: Any, *, wide: float) -> Any:
    """One head's map on its axes; returns the image, which a colour bar needs. `wide` inches, or 0 for no labels."""
    from matplotlib.colors import PowerNorm

    image = axes.imshow(maps.weights[layer, head], cmap=colours, norm=PowerNorm(BEND, 0, 1), aspect="auto", interpolation="nearest")
    axes.spines[:].set_color("#c9c9d0")
    axes.tick_params(length=0, labelsize=9 if max(maps.weights.shape[2:]) <= 30 else 7, colors="#44454f")
    if not wide:
        axes.set(xticks=[], yticks=[])
        return image
    keys = maps.shown("keys")
    for axis, tokens in ((axes.xaxis, keys), (axes.yaxis, maps.shown("queries"))):
        places, labels = _labels(tokens)
        axis.set_ticks(places, labels, parse_math=False)  # a token "$" is no formula
    axes.xaxis.tick_top()
    if max(map(len, _labels(keys)[1])) * 6 > 0.75 * 72 * wide / len(maps.keys):  # points: letters are about 6 wide
        axes.tick_params(axis="x", labelrotation=90)
    axes.set_xlabel(f"keys: {maps.about.are[1]}", color="#62646f", fontsize=9)
    axes.set_ylabel(f"queries: {maps.about.are[0]}", color="#62646f", fontsize=9)
    if maps.cells is not None and max(maps.weights.shape[2:]) <= SHOWN // 2:
        letters = max(3, int(72 * wide / len(maps.keys) / 5))
        for (q, k), weight in np.ndenumerate(maps.weights[layer, head]):
            said = visible(str(maps.cells[head][q][k]))
            said = said if len(said) <= letters else said[: letters - 1] + "…"
            ink = "white" if weight > 0.35 else "#1d1e26"
            axes.text(k, q, said, ha="center", va="center", fontsize=6, color=ink, parse_math=False)
    return image


def draw(path: str | Path, maps: Maps, *, layer: int | None = None, head: int | None = None) -> Path:
    """Draw one head of a layer large, or with `head=None` all heads of the layer as small pictures; returns the path of the PNG.

    Layers and heads count from 0; `layer=None` is the last one. Errors: InputError for one that is not there, or without matplotlib.
    """
    layers, _, n_queries, n_keys = maps.weights.shape
    layer = index_of("layer", layers - 1 if layer is None else layer, layers)
    head = 0 if head is None and maps.heads is not None else head  # of named ones the first is the whole
    chosen = list(range(maps.heads_of(layer))) if head is None else [index_of("head", head, maps.heads_of(layer))]
    large = len(chosen) == 1
    wide = min(11.0, max(4.6, 0.3 * n_keys + 2)) if large else 2.4

    def panel(axes: "Axes", number: int) -> Any:
        from matplotlib.colors import ListedColormap

        return _heat(axes, maps, layer, chosen[number], ListedColormap(ramp() / 255.0), wide=wide if large else 0)

    said = [visible(maps.kind).replace("␣", " "), maps.layers[layer] if maps.layers is not None else f"layer {layer}"]
    said += [maps.heads[chosen[0]] if maps.heads is not None else f"head {chosen[0]}"] if large else []
    name = ", ".join(filter(None, said))
    titles = [""] if large else [f"head {index}" for index in chosen]
    ticks = {0: "0", 0.1: ".1", 0.25: ".25", 0.5: ".5", 0.75: ".75", 1: "1"}
    return sheet(path, name, titles, panel, shape=min(2.0, max(0.5, n_queries / n_keys)), wide=wide, ticks=ticks)


def sheet(
    path: str | Path,
    name: str,
    titles: list[str],
    panel: Callable[["Axes", int], Any],
    *,
    shape: float,
    wide: float,
    ticks: dict[float, str],
) -> Path:
    """A PNG of panels with a title and a colour bar: `panel` fills the axes of its number and returns what the bar shows.

    A panel is `wide` inches, and `shape` times as high. InputError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError('pictures need matplotlib: pip install "plait[plot]", or write the page, which needs nothing') from None
    across = min(len(titles), 4)
    down = -(-len(titles) // across)
    size = (wide, min(11.0, wide * shape + 0.9)) if len(titles) == 1 else (across * wide + 0.6, down * (wide * shape + 0.3) + 0.6)
    figure = Figure(figsize=size, dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    shown = None
    for number, (axes, title) in enumerate(zip(panels, titles, strict=False)):
        shown = panel(axes, number)
        if title:
            axes.set_title(title, fontsize=9, color="#44454f", pad=3)
    for axes in panels[len(titles) :]:
        axes.set_axis_off()
    figure.suptitle(name, fontsize=11, fontweight="bold", color="#1d1e26", parse_math=False)
    bar = figure.colorbar(shown, ax=list(panels), ticks=list(ticks), shrink=0.7, aspect=28, pad=0.02)  # pyright: ignore[reportArgumentType]
    bar.ax.set_yticklabels(list(ticks.values()))
    bar.ax.tick_params(length=0, labelsize=8, colors="#62646f")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box in the picture is no reason to stop
        figure.savefig(path, format="png")
    return Path(path)
