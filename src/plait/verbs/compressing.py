"""What `plait compress` does: calibrate, compress, write a run, and measure it beside the model as it was."""

import copy
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait import compress
from plait.core.model import Model
from plait.errors import InputError
from plait.hub import load, place
from plait.hub.compressed import TASKS, write_run
from plait.hub.runs import WEIGHTS
from plait.hub.writing import beside
from plait.train.log import Reporter
from plait.verbs import Rows
from plait.verbs.compress import SHARED, Compress
from plait.verbs.eval import Eval
from plait.verbs.scoring import score
from plait.verbs.train import Train
from plait.verbs.training import lesson_of

Say = Callable[[str], None]
MANY, FEW = (8, 64), (1, 4)  # rows and ids of the forwards that are timed: a batch, and one step of writing with four beams
ROUNDS = 7
FAR = (3, 14, 26, 38, 52, 66, 80)  # points between a dot of the plot and its name


class Table(Rows):
    """Rows with a line of names above them."""

    def __str__(self) -> str:
        return str(Rows([{name: name for row in self[:1] for name in row}, *self]))


def compressed(verb: Compress) -> Table:
    if verb.threads:
        torch.set_num_threads(verb.threads)
    say, where, jobs = Reporter().say, place(verb.model), verb.jobs()
    whole = load(where)
    data = calibration(verb, whole, say) if verb.data else None
    table = Table([row(verb, where, whole, None, "as it was", say)])
    with beside(verb.out) as made:
        for method, share in jobs:
            name = method.replace(":", "-") + (f"-{share:g}" if method in SHARED else "")
            folder = made / name if len(jobs) > 1 else made
            folder.mkdir(exist_ok=True)
            small = load(where)
            small.net = squeezed(copy.deepcopy(small.net), method, share, data)
            write_run(small, where, folder, {"method": method, "share": share, "data": verb.data})
            table.append(row(verb, folder, load(folder), whole, f"{method} {share:g}" if share else method, say))
        if len(jobs) > 1:
            (made / "table.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
            drawn(table, made / "trade-off.png", say)
        if verb.out.is_dir():
            verb.out.rmdir()
        os.replace(made, verb.out)
    return table


def squeezed(net: Model, method: str, share: float | None, data: "Calibration | None") -> Model:
    """A model made smaller by a method of the verb, in place."""
    moments = data.moments(net) if data and method in ("gptq", "awq", "magnitude", "2:4") else None
    if method in ("int8", "int4"):
        return compress.quantise(net, int(method[3:]))
    if method in ("gptq", "awq"):
        return compress.quantise(net, 4, method=method, moments=moments)
    if method == "magnitude":
        return compress.magnitude(net, share or 0.0, moments)
    if method == "2:4":
        return compress.two_of_four(net, moments)
    return compress.prune(net, method, share or 0.0, data.losses(net) if data else None)  # type: ignore[arg-type]


# ---- data ----


class Calibration:
    """Batches of a task's training data, with their right answers."""

    def __init__(self, objective: Any, batches: list[Any]):
        self.objective, self.batches = objective, batches

    def losses(self, net: Model) -> Iterator[Callable[[], Tensor]]:
        for batch in self.batches:
            yield lambda: self.objective.loss(net, batch).total  # noqa: B023

    def moments(self, net: Model) -> dict[str, Tensor]:
        return compress.moments(net, self.losses(net))


def calibration(verb: Compress, model: Any, say: Say) -> Calibration:
    """`--data` as `plait train --model` would learn from it."""
    task = model.task if model.task == "translation" else TASKS.get(model.task, model.task)
    if model.task == "translate":
        raise InputError(
            f"{verb.model}: translators of others are not trained here, so there is nothing to calibrate them with: leave out --data"
        )
    with tempfile.TemporaryDirectory() as folder:
        how: dict[str, Any] = dict(data=verb.data, columns=verb.columns, valid=verb.valid, steps=1, seed=verb.seed)
        how["objective"] = "span" if model.task == "text-to-text" else "mask"
        lesson = lesson_of(Train(task, Path(folder) / "run", model=verb.model, **how), None, lambda _: None)  # type: ignore[arg-type]
        labels = list(lesson.notes.get("answers", {}).get("id2label", {}).values())
        if labels and labels != list(getattr(model, "labels", labels)):
            raise InputError(f"--data: its labels are {', '.join(labels)}; those of the model are {', '.join(model.labels)}, in this order")
        batches, found, stream = [], 0, lesson.feed.stream(0, 0)
        for _ in range(lesson.feed.batches(0)):
            if found >= verb.tokens:
                break
            batches.append(next(stream)[2])
            found += lesson.objective.size(batches[-1])
    say(f"calibrating on {found:,} tokens or patches, in {len(batches)} batches")
    return Calibration(lesson.objective, batches)


# ---- what it costs and brings ----


def row(verb: Compress, where: Path, model: Any, whole: Any | None, name: str, say: Say) -> dict[str, Any]:
    """`whole` is the model as it was, None where it is that one."""
    size = sum(t.nbytes for t in model.net.state_dict().values()) if whole is None else (where / WEIGHTS).stat().st_size
    found = {"model": name, "megabytes": round(size / 1e6, 3)}
    for label, shape in (("speed", MANY), ("speed_few", FEW)):
        found[label] = 1.0 if whole is None else round(times_as_fast(whole, model, shape), 2)
    return found | quality(verb, where, say)


def quality(verb: Compress, where: Path, say: Say) -> dict[str, float]:
    """The figures of `plait eval`; none where there is nothing to score it on."""
    try:
        return score(Eval(str(where), verb.valid, limit=verb.limit, baselines=False))["metrics"]
    except InputError as error:
        if verb.valid:
            raise
        say(f"not scored: {error.message}; give --valid")
        return {}


@torch.inference_mode()
def times_as_fast(whole: Any, small: Any, shape: tuple[int, int]) -> float:
    """The median of the ratios of their forwards, in turn, on the same inputs."""
    given = inputs(whole, shape)
    ratios = []
    for turn in range(ROUNDS + 2):
        spent = []
        for model in (whole, small):
            begin = time.perf_counter()
            model.net(**given)
            spent.append(time.perf_counter() - begin)
        if turn > 1:  # the first are slow
            ratios.append(spent[0] / spent[1])
    return statistics.median(ratios)


def inputs(model: Any, shape: tuple[int, int]) -> dict[str, Tensor]:
    """Drawn ids, pixels or clips of the size that the model is made for, as many rows for each tower; of pictures a quarter."""
    net, draw, found = model.net, torch.Generator().manual_seed(0), {}
    seen = any(net.takes(tower) != "ids" for tower in net.towers)
    rows, length = max(1, shape[0] // 4) if seen else shape[0], min(shape[1], model.max_length or shape[1])
    for tower in net.towers:
        if (takes := net.takes(tower)) == "ids":
            tokens = getattr(net.get_submodule(tower).embed, "tokens", None)  # a detector's queries have none: the first one will do
            found[tower] = torch.randint(0, tokens.size[0] if tokens is not None else 1, (rows, length), generator=draw)
        else:
            settings = model.parts.settings
            side, frames = getattr(settings, "image_size", 224), [settings.frames] if takes == "clips" else []
            found[tower] = torch.rand(rows, *frames, 3, side, side, generator=draw)
    return found


def drawn(table: Table, path: Path, say: Say) -> None:
    """The first figure of each row against its megabytes and its speed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        say("no trade-off.png: matplotlib is not installed (pip install 'plait[plot]')")
        return
    figures = [name for name in table[0] if name not in ("model", "megabytes", "speed", "speed_few")]
    if not figures:
        return
    figure = Figure(figsize=(10, 4.6), dpi=140, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (name, title) in zip(panels, (("megabytes", "megabytes"), ("speed", "times as fast")), strict=True):
        for one in table:
            panel.plot(one[name], one[figures[0]], "o", color="#b8520a" if one is table[0] else "#2f7fc8")
        panel.set_xlabel(title, fontsize=9)
        panel.margins(x=0.18, y=0.15)
        panel.grid(color="#e3e3e6", linewidth=0.7)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(figures[0].replace("_", " "), fontsize=9)
    canvas.draw()  # from here on it is known where each point lies
    figure.set_layout_engine("none")
    for panel, name in zip(panels, ("megabytes", "speed"), strict=True):
        label(panel, [(one["model"], one[name], one[figures[0]]) for one in table])
    figure.savefig(path, format="png")


def label(panel: Any, points: list[tuple[str, float, float]]) -> None:
    """Names beside their points, each at the nearest place where it covers no point and no other name."""
    from matplotlib.transforms import Bbox

    def at(x: float, y: float) -> Bbox:
        across, up = panel.transData.transform((x, y))
        return Bbox.from_extents(across - 6, up - 6, across + 6, up + 6)

    taken = [at(x, y) for _, x, y in points]
    for name, x, y in points:
        for far, (across, up) in itertools.product(FAR, ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))):
            spot = dict(xy=(x, y), xytext=(across * (far + 4) * 0.7, up * far), textcoords="offset points")
            sides = dict(ha=("center", "left", "right")[across], va="bottom" if up > 0 else "top")
            text = panel.annotate(name, **spot, **sides, fontsize=8)
            box = text.get_window_extent().padded(2)
            inside = panel.bbox.x0 <= box.x0 and box.x1 <= panel.bbox.x1 and panel.bbox.y0 <= box.y0 and box.y1 <= panel.bbox.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                if far > FAR[0]:
                    panel.annotate("", **spot, arrowprops=dict(arrowstyle="-", color="#9a9aa2", linewidth=0.6, shrinkA=0, shrinkB=3))
                break
            text.remove()
        else:  # no room anywhere
            panel.annotate(name, (x, y), xytext=(4, 2), textcoords="offset points", fontsize=8)
