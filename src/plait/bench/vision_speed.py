"""Pictures a second: ours and the peers on the same weights, each in its own process, in turn; float32 and int8."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from plait.bench.generate_speed import Turning
from plait.bench.measure import aligned, compared
from plait.bench.processes import Worker
from plait.errors import InputError

MODELS = "plait.bench.vision_models:"
ALIKE = 1e-3  # of the largest output; a float32 contestant that differs by more computes something else


@dataclass(frozen=True)
class Case:
    """`rows` pictures at once."""

    model: str
    rows: int


@dataclass(frozen=True)
class Entrant:
    make: str  # a class of vision_models.py
    file: str  # of its `Prepared`
    bits: int
    what: str
    models: tuple[str, ...] = ("vit", "detr")


SHAPES: dict[str, dict[str, Any]] = {  # of a picture (height, width), and what a config says that is not as released
    "vit": {"picture": (224, 224), "config": {"num_labels": 1000}},
    "detr": {"picture": (480, 640), "config": {}},
}
WHAT = {"vit": "ViT-B/16 with 1000 classes", "detr": "DETR-R50"}
CASES = {"vit": Case("vit", 1), "vit-8": Case("vit", 8), "detr": Case("detr", 1), "detr-8": Case("detr", 8)}
ENTRANTS = {
    "plait": Entrant("Plait", "folder", 32, "plait.load, float32"),
    "transformers": Entrant("Transformers", "folder", 32, "as it comes, float32"),
    "timm": Entrant("Timm", "", 32, "vit_base_patch16_224 as it comes, float32, weights of its own", ("vit",)),
    "onnxruntime": Entrant("OnnxRuntime", "onnx", 32, "transformers' model as torch.onnx exports it, float32"),
    "plait int8": Entrant("Plait", "folder", 8, "plait.load(bits=8)"),
    "transformers int8": Entrant("Transformers", "folder", 8, "torch's dynamic quantisation of all Linear"),
    "onnxruntime int8": Entrant("OnnxRuntime", "onnx int8", 8, "its dynamic quantisation of matrix products in the exported graph"),
}
OURS = {32: "plait", 8: "plait int8"}


def run(
    names: Sequence[str],
    only: Sequence[str],
    rounds: int,
    scratch: Path,
    threads: int,
    shapes: dict[str, dict[str, Any]] = SHAPES,
) -> dict[str, Any]:
    """The cases of these names; `only` are contestants, all if empty. A case that cannot be measured does not end the others."""
    found, failed = {}, {}
    for name in names:
        case, shape = CASES[name], shapes[CASES[name].model]
        print(f"{name}: {case.rows} of {WHAT[case.model]}", file=sys.stderr, flush=True)
        turning = Turning(threads, scratch / name)
        turning.scratch.mkdir()
        taking = [one for one, entrant in ENTRANTS.items() if case.model in entrant.models and (not only or one in only)]
        try:
            found[name] = measured(case, taking, rounds, turning, shape)
            print(table(name, found[name]), file=sys.stderr, flush=True)
        except InputError as error:
            failed[name] = str(error)
        finally:
            turning.close()
    return {"cases": found, "failed": failed}


def measured(case: Case, taking: list[str], rounds: int, turning: Turning, shape: dict[str, Any]) -> dict[str, Any]:
    options = {"model": case.model, "scratch": str(turning.scratch), "shape": shape, "rows": case.rows}
    files = {}
    with Worker("preparing", MODELS + "Prepared", options, turning.threads, turning.scratch / "process.log") as prepared:
        operations = prepared.ask("operations")["answer"]
        for name in taking:
            try:
                files[name] = prepared.ask("file", kind=ENTRANTS[name].file)["answer"]
            except InputError as error:
                turning.failed[name] = str(error)
    same = {"rows": case.rows, "picture": list(shape["picture"]), "threads": turning.threads}
    for name, file in files.items():
        turning.start(name, MODELS + ENTRANTS[name].make, {"file": file, "bits": ENTRANTS[name].bits, **same})
    turning.start("limit", "plait.bench.generators:Product", {})
    turning.rounds({name: {} for name in turning.workers}, rounds)
    answers = {}
    for name in files:
        out = turning.scratch / "answers.npy"
        if turning.ask(name, "told", out=str(out)):
            answers[name] = np.load(out)
    return figures(case, turning, operations, answers)


def figures(case: Case, turning: Turning, operations: int, answers: dict[str, np.ndarray]) -> dict[str, Any]:
    """{contestants, ratios, failed}; a contestant of float32 that answers otherwise than transformers has failed."""
    right, errors = answers.get("transformers"), {}
    for name, mine in answers.items():
        if right is None or name == "timm":
            continue
        errors[name] = float(abs(mine - right).max() / abs(right).max()) if mine.shape == right.shape else float("inf")
        if ENTRANTS[name].bits == 32 and not errors[name] <= ALIKE:
            turning.failed[name] = f"its answers differ from transformers' by {errors[name]:.2g} of the largest: it computes something else"
    told = {name: [turn["seconds"] for turn in turns] for name, turns in turning.told.items() if name not in (*turning.failed, "limit")}
    rates = [turn["answer"] for turn in turning.told.get("limit", [])]
    limit = operations / median(rates) if rates else None
    rows, ratios = {}, {}
    for name, seconds in told.items():
        rows[name] = {
            "what": ENTRANTS[name].what,
            "bits": ENTRANTS[name].bits,
            "seconds": seconds,
            "median": median(seconds),
            "pictures_per_second": case.rows / median(seconds),
            "of_limit": limit and limit / median(seconds),
            "difference": errors.get(name),
            "peak_bytes": turning.told[name][-1].get("peak_bytes"),
        }
    for bits, ours in OURS.items():
        ratios |= compared({name: told[name] for name in rows if rows[name]["bits"] == bits}, ours)
    head = {"what": WHAT[case.model], "rows": case.rows, "operations": operations, "limit_seconds": limit}
    return {**head, "contestants": rows, "ratios": ratios, "failed": turning.failed}


def shown(found: dict[str, Any]) -> str:
    lost = [f"{name} was not measured: {why}" for name, why in found["failed"].items()]
    return "\n\n".join([*(table(name, one) for name, one in found["cases"].items()), *lost])


def table(name: str, one: dict[str, Any]) -> str:
    rows = [["", "pictures/s", "ms", "of the float32 limit", "differs by", "plait with as many bits is so many times as fast"]]
    for who, row in one["contestants"].items():
        ratio, limit, error = one["ratios"].get(who), row["of_limit"], row["difference"]
        times = "" if ratio is None else f"{ratio['median']:.2f}  ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
        told = ["" if limit is None else f"{100 * limit:.0f} %", "" if error is None else f"{error:.1g}"]
        rows.append([who, f"{row['pictures_per_second']:.2f}", f"{1000 * row['median']:,.1f}", *told, times])
    lost = [f"{who} takes no part: {why}" for who, why in one["failed"].items()]
    return "\n".join([f"{name}: {one['what']}, {one['rows']} at once", *aligned(rows), *lost])
