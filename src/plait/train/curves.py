"""The curves of a training run as one picture, drawn from its metrics.jsonl."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

NAN = float("nan")
SMOOTH = 40  # the smoothed line forgets over about a fortieth of the run
COLOURS = {"train": "#2f7fc8", "valid": "#b8520a", "ink": "#1d1e26", "soft": "#62646f", "line": "#e3e3e6"}


def merged(metrics: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """One row a step in the order of steps, with `minutes` that never run backwards.

    Validation may have a row of its own. A resumed run repeats the steps after its checkpoint (the later rows count), and its clock
    may start anew.
    """
    steps: dict[float, dict[str, float]] = {}
    before = gone = 0.0
    for row in metrics:
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        if not isfinite(step := numbers.get("step", NAN)):
            continue
        if isfinite(seconds := numbers.get("seconds", NAN)):
            if seconds < before:
                gone += before
            before = seconds
            numbers["minutes"] = (gone + seconds) / 60
        steps.setdefault(step, {}).update(numbers)
    return [steps[step] for step in sorted(steps)]


def smoothed(values: Sequence[float], forget: float) -> list[float]:
    """Running mean over about `forget` values, unbiased at its start; what is not finite is left out of it and stays a gap."""
    keep, mean, weight, out = 1 - 1 / max(1.0, forget), 0.0, 0.0, []
    for value in values:
        if not isfinite(value):
            out.append(NAN)
            continue
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(mean / weight)
    return out


def draw_curves(metrics: list[dict[str, Any]], path: str | Path) -> bool:
    """Draw the losses against minutes, and below them learning rate and tokens a second; False if matplotlib is not installed.

    `metrics` are the rows of metrics.jsonl; any key may be missing from any row, and any value may be NaN.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = merged(metrics)
    clock = "minutes" if any("minutes" in row for row in rows) else "step"

    def series(key: str) -> tuple[list[float], list[float]]:
        found = [(row[clock], row[key]) for row in rows if key in row and clock in row]
        return [x for x, _ in found], [y if isfinite(y) else NAN for _, y in found]

    figure = Figure(figsize=(8, 5.6), dpi=140, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic([["loss", "loss"], ["rate", "speed"]], height_ratios=[3.2, 1])
    for panel in axes.values():
        panel.grid(color=COLOURS["line"], linewidth=0.7)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[:].set_color(COLOURS["line"])
        panel.tick_params(length=0, labelsize=8, colors=COLOURS["soft"])
        panel.margins(x=0.02)

    loss = axes["loss"]
    _losses(loss, *series("train_loss"), *series("valid_loss"), clock)
    loss.set_xlabel(clock, fontsize=9, color=COLOURS["soft"])
    loss.set_title("Loss", loc="left", fontsize=11, fontweight="bold", color=COLOURS["ink"])
    for name, key, title in (("rate", "learning_rate", "Learning rate"), ("speed", "tokens_per_second", "Tokens a second")):
        x, y = series(key)
        axes[name].plot(x, y, color=COLOURS["soft"], linewidth=1.2, marker="." if len(x) == 1 else "")
        if any(map(isfinite, y)):
            axes[name].set_ylim(bottom=0)
        else:
            axes[name].set(xticks=[], yticks=[])
        axes[name].set_title(title, loc="left", fontsize=9, color=COLOURS["ink"])
        axes[name].ticklabel_format(axis="y", scilimits=(-3, 6))
        axes[name].yaxis.get_offset_text().set(size=8, color=COLOURS["soft"])
    figure.savefig(path, format="png")
    return True


def _losses(panel: Any, x: list[float], y: list[float], valid_x: list[float], valid_y: list[float], clock: str) -> None:
    """The losses on their panel: raw faint, smoothed clear, validation as points with the best one named."""
    seen = sorted(value for value in y if isfinite(value))
    checks = [(value, at) for at, value in zip(valid_x, valid_y, strict=True) if isfinite(value)]
    if not seen and not checks:
        panel.text(0.5, 0.5, "no finite loss yet", transform=panel.transAxes, ha="center", va="center", color=COLOURS["soft"])
        panel.set(xticks=[], yticks=[])
    if seen:
        panel.plot(x, y, color=COLOURS["train"], alpha=0.25, linewidth=0.8)
        few = len(seen) < 4
        panel.plot(x, smoothed(y, len(y) / SMOOTH), color=COLOURS["train"], linewidth=1.8, marker="." if few else "", label="training")
    if checks:
        panel.plot(valid_x, valid_y, color=COLOURS["valid"], linewidth=0.8, marker="o", markersize=3.5, label="validation")
        best, at = min(checks)
        ring = dict(color=COLOURS["valid"], marker="o", markersize=9, markerfacecolor="none", linestyle="")
        panel.plot(
            [at],
            [best],
            **ring,
            label=f"best {best:.4g} at {at:.4g} minutes" if clock == "minutes" else f"best {best:.4g} at step {at:.0f}",
        )
    both = [*seen[: int(0.98 * len(seen)) or 1], *(value for value, _ in checks)]  # the first few losses would flatten all that follows
    if len(both) > 1 and (low := min(both)) < (high := max(both)):
        panel.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    if lost := len(y) - len(seen):
        note = f"{lost} of {len(y)} training losses were not finite"
        panel.text(0.01, 0.03, note, transform=panel.transAxes, fontsize=8, color=COLOURS["valid"])
    if seen or checks:
        panel.legend(frameon=False, fontsize=9, loc="upper right", labelcolor=COLOURS["ink"])
