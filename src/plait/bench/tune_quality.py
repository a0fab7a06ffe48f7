"""Ways to tune one model on one file, side by side: parameters that are trained, minutes, and the metric on data none has learned from.

`python -m plait.bench.tune_quality MODEL DATA TEST "METHOD [OPTIONS]" ... [-- OPTIONS]`: each is one `plait tune`, with the options behind
`--` for all of them; `none` is the model as it is. TEST is what `plait eval` scores.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plait.bench.label_quality import command
from plait.bench.measure import load_average


def tuned(model: str, data: str, test: str, method: Sequence[str], more: Sequence[str], out: Path) -> dict[str, Any]:
    """One contestant: `method` is its name and its own options."""
    found: dict[str, Any] = {"method": " ".join(method)}
    if method[0] != "none":
        began = time.perf_counter()
        words = ["plait.cli", "tune", model, "--method", *method, "--data", data, "--out", str(out), *more]
        said = json.loads(command(words))
        found |= {"minutes": round((time.perf_counter() - began) / 60, 2), "steps": said["steps"], "trained": size_of(out)}
    where = model if method[0] == "none" else str(out)
    return found | json.loads(command(["plait.cli", "eval", where, "--data", test, "--no-baselines"]))["metrics"]


def size_of(run: Path) -> int:
    """Numbers in what a run keeps."""
    from safetensors import safe_open

    with safe_open(run / "model.safetensors", "np") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (not a dict)
    total = 0
    for shape in shapes:
        count = 1
        for n in shape:
            count *= n
        total += count
    return total


def main(words: list[str]) -> int:
    cut = words.index("--") if "--" in words else len(words)
    model, data, test, *methods = words[:cut]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for i, method in enumerate(methods):
            rows.append(tuned(model, data, test, method.split(), words[cut + 1 :], Path(folder) / f"{i}"))
            print(json.dumps({**rows[-1], "load": load_average()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
