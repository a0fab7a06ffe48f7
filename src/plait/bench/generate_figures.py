"""What the turns of one case of `plait bench generate` come to: speeds, ratios, errors, memory, and the limit that the machine sets."""

import io
from statistics import median
from typing import Any

import numpy as np

from plait.bench.generate_cases import ENTRANTS, Case
from plait.bench.measure import aligned, compared
from plait.bench.operations import Shape, continuing, decoding

ALIKE = 1e-3  # rms; a float32 contestant whose log-probabilities differ by more computes something else (llama.cpp's by 4e-4: its GELU)


def figures(
    case: Case,
    loaded: dict[str, dict[str, Any]],
    told: dict[str, list[dict[str, Any]]],
    failed: dict[str, str],
    probabilities: dict[str, bytes],
    sizes: dict[str, int] | None,
    prompt: int,
    shapes: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """{contestants, ratios, limit, failed}; a contestant of float32 that computes something else has failed."""
    errors = differences(probabilities)
    for name, error in errors.items():
        if name in told and ENTRANTS[name].bits == 32 and not error["rms"] <= ALIKE:
            failed[name] = f"its log-probabilities are {error['rms']:.2g} (rms) from ours in float64: it computes something else"
    kept = {name: turns for name, turns in told.items() if name not in failed and name != "limit"}
    limit = limit_of(case, told.get("limit"), sizes, prompt, shapes)
    rows: dict[str, Any] = {}
    for name, turns in kept.items():
        answer, seconds = turns[-1]["answer"], [turn["seconds"] for turn in turns]
        first = told[next(iter(kept))][-1]["answer"]
        tokens = case.rows * prompt if case.reads else sum(map(len, answer))
        whole = 1.0 if case.reads else tokens / (case.rows * case.new)  # an answer may end before
        steps = limit and limit["seconds"](ENTRANTS[name].size) * whole
        rows[name] = {
            "what": ENTRANTS[name].what,
            "bits": ENTRANTS[name].bits,
            "seconds": seconds,
            "tokens": tokens,
            "tokens_per_second": tokens / median(seconds),
            "same_ids_until": alike(answer, first),
            "of_limit": steps and steps / median(seconds),
            "error": errors.get(name),
            "load_seconds": loaded[name]["seconds"],
            "peak_bytes_loaded": loaded[name].get("peak_bytes"),
            "peak_bytes": turns[-1].get("peak_bytes"),
            "resident_bytes": turns[-1].get("resident_bytes"),
        }
    told_limit = limit and {name: value for name, value in limit.items() if name != "seconds"}
    return {"what": case.what, "rows": case.rows, "prompt": prompt, "new": case.new, "contestants": rows, "ratios": ratios(rows)} | {
        "limit": told_limit,
        "failed": failed,
    }


def ratios(rows: dict[str, Any]) -> dict[str, Any]:
    """{name: how many times as fast as it ours of the same width is, in turns of the same round, and whether its error is no larger}."""
    found = {}
    for name in rows:
        own = ENTRANTS[name].own
        if name == own or own not in rows:
            own = "plait lookup" if name == "plait" and "plait lookup" in rows else own
        if name != own and own in rows:
            one = compared({key: rows[key]["seconds"] for key in (own, name)}, own)[name]
            mine, theirs = rows[own]["error"], rows[name]["error"]
            worse = mine and theirs and mine["rms"] > theirs["rms"] and ENTRANTS[name].bits < 32
            found[name] = {"ours": own, **one, "error_no_larger": None if not (mine and theirs) else not worse}
    return found


def differences(probabilities: dict[str, bytes]) -> dict[str, dict[str, float]]:
    """Beside the reference's log-probabilities: the largest difference, and the root of the mean square."""
    arrays = {name: np.load(io.BytesIO(data)) for name, data in probabilities.items()}
    if (reference := arrays.pop("reference", None)) is None:
        return {}
    apart = {name: array[..., : reference.shape[-1]] - reference for name, array in arrays.items()}
    return {name: {"largest": float(np.abs(gap).max()), "rms": float(np.sqrt(np.square(gap).mean()))} for name, gap in apart.items()}


def alike(answers: list[list[int]], others: list[list[int]]) -> int:
    """Up to which id all rows are the same."""
    until = [
        next((i for i, (a, b) in enumerate(zip(row, other, strict=False)) if a != b), min(len(row), len(other)))
        for row, other in zip(answers, others, strict=True)
    ]
    return min(until)


def limit_of(
    case: Case, turns: list[dict[str, Any]] | None, sizes: dict[str, int] | None, prompt: int, shapes: dict[str, dict[str, Any]]
) -> dict[str, Any] | None:
    """The machine's measured rate, and how many seconds a turn takes at it with weights of so many bytes each."""
    if not turns or not sizes:
        return None
    rate = median(turn["answer"] for turn in turns)
    weights = sizes["body"] + sizes["head"]
    if case.limit == "memory":
        what = f"{weights / 1e6:.0f} M weights read a token at {rate / 1e9:.1f} GB/s; in float32 {rate / weights / 4:.0f} tokens/s"
        return {"rate": rate, "what": what, "seconds": lambda size: case.new * weights * size / rate}
    if case.model == "marian":
        operations = decoding(Shape(**shapes["marian"]), case.rows, prompt, case.new, case.beams)
    else:
        operations = continuing(sizes["body"], sizes["head"], sizes["width"], case.rows, prompt, case.new)
    tokens = case.rows * (prompt if case.reads else case.new)
    what = f"{operations / tokens / 1e6:.0f} M operations a token over {rate / 1e9:.0f} G operations a second of a float32 product"
    return {"rate": rate, "what": f"{what}: {tokens * rate / operations:.0f} tokens/s", "seconds": lambda size: operations / rate}


def table(name: str, found: dict[str, Any]) -> str:
    """For a reader."""
    heads = [
        "",
        "tokens/s",
        "of the limit",
        "peak MB",
        "error: rms",
        "largest",
        "same ids until",
        "ours at its width is so many times as fast",
    ]
    rows = [heads]
    for who, row in found["contestants"].items():
        ratio = found["ratios"].get(who)
        times = "" if ratio is None else f"{ratio['median']:.2f}  ({ratio['lowest']:.2f} to {ratio['highest']:.2f}) {ratio['ours']}"
        times += ", but its error is larger" if ratio and ratio["error_no_larger"] is False else ""
        error, share = row["error"] or {}, row["of_limit"]
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}"
        cells = [f"{row['tokens_per_second']:,.1f}", "" if share is None else f"{100 * share:.0f} %", peak]
        cells += [f"{error[key]:.1e}" if error else "" for key in ("rms", "largest")]
        rows.append([who, *cells, str(row["same_ids_until"]), times])
    title = f"{name}: {found['what']}, {found['rows']} x {found['prompt']} ids, {found['new']} new"
    lines = [title, *aligned(rows)]
    if found["limit"]:
        lines.append(f"limit: {found['limit']['what']}")
    return "\n".join([*lines, *(f"{who} takes no part: {why.splitlines()[0]}" for who, why in found["failed"].items())])
