"""Quality at equal time: what `plait train` reaches in some minutes beside MarianMTModel with AdamW, each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from plait.bench.measure import aligned
from plait.bench.peers import need
from plait.data.builtin import load
from plait.data.split import answers
from plait.errors import InputError
from plait.tasks.metrics import score

SHOWN = {"symbol_error_rate": "symbol error %", "sequence_error_rate": "sequence error %", "bleu": "BLEU", "chrf": "chrF"}


def process(*words: str) -> dict[str, Any]:
    """A process's standard output as JSON; its log goes to ours."""
    done = subprocess.run([sys.executable, "-m", *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"{' '.join(words)} ended with code {done.returncode}; what it said stands above")
    return json.loads(done.stdout.splitlines()[-1])


def plait_run(data: str, minutes: float, folder: Path) -> dict[str, Any]:
    """The command as a user types it, nothing set but data and time."""
    from plait.hub import load as open_run

    out = folder / "plait"
    trained = process("plait.cli", "train", "translation", "--data", data, "--minutes", str(minutes), "--out", str(out))
    model, right = open_run(out), answers(load(data, "test"))
    found = {f"beam {beams}": score(model(list(right), beams=beams), list(right.values()))[0] for beams in (1, 4)}
    return {**trained, "metrics": found, "shape": json.dumps(model.config["config"])}


def run(data: str, minutes: float, only: list[str], folder: Path) -> dict[str, Any]:
    """One after the other, never at once."""
    if "marian" in only:
        need("transformers")
    found: dict[str, Any] = {"data": data, "minutes": minutes, "contestants": {}}
    if "plait" in only:
        found["contestants"]["plait"] = plait_run(data, minutes, folder)
    if "marian" in only:
        found["contestants"]["marian"] = process("plait.bench.marian_run", data, str(minutes))
    if len(found["contestants"]) == 2:
        ours, theirs = (found["contestants"][name]["metrics"] for name in ("plait", "marian"))
        found["ratios"] = {f"{name}, {beams}": ours[beams][name] / max(theirs[beams][name], 1e-9) for beams in ours for name in SHOWN}
    return found


def shown(found: dict[str, Any]) -> str:
    rows = [["", *SHOWN.values(), "parameters", "steps", "tokens"]]
    for name, one in found["contestants"].items():
        for beams, metrics in one["metrics"].items():
            cells = [f"{metrics[key]:.2f}" for key in SHOWN]
            rows.append([f"{name}, {beams}", *cells, f"{one['parameters']:,}", f"{one['steps']:,}", f"{one['tokens']:,}"])
    for beams in ("beam 1", "beam 4"):
        if "ratios" in found:
            rows.append([f"ratio, {beams}", *[f"{found['ratios'][f'{key}, {beams}']:.3f}" for key in SHOWN], "", "", ""])
    return "\n".join([f"{found['data']} after {found['minutes']:g} minutes each, test part", *aligned(rows)])
