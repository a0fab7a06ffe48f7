"""Tokens a second of generating: ours and the peers on the same weights, each in its own process, in turn, prompt and output included."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plait.bench import start
from plait.bench.generate_cases import CASES, COLD, ENTRANTS, SHAPES, Case
from plait.bench.generate_figures import figures, table
from plait.bench.processes import Worker
from plait.errors import InputError

GENERATORS = "plait.bench.generators:"
LIMITS = {"memory": "Bandwidth", "product": "Product"}
ENDS = range(8, 65, 8)  # lengths of the texts after which log-probabilities are compared


class Turning:
    """Contestants that take turns: their workers, the seconds of each turn, and why one that failed takes no further part."""

    def __init__(self, threads: int, scratch: Path):
        self.threads, self.scratch = threads, scratch
        self.workers: dict[str, Worker] = {}
        self.failed: dict[str, str] = {}
        self.told: dict[str, list[dict[str, Any]]] = {}

    def start(self, name: str, make: str, options: dict[str, Any]) -> None:
        try:
            self.workers[name] = Worker(name, make, options, self.threads, self.scratch / "process.log")
        except InputError as error:
            self.failed[name] = str(error)

    def ask(self, name: str, method: str, **options: Any) -> dict[str, Any] | None:
        """None of one that failed, now or before."""
        try:
            return self.workers[name].ask(method, **options) if name in self.workers else None
        except InputError as error:
            self.failed[name] = str(error)
            self.told.pop(name, None)
            self.workers.pop(name).close()
            return None

    def rounds(self, asked: dict[str, dict[str, Any]], count: int) -> None:
        """Each `go`es once a round with its options; the first round warms up. `told` keeps what they said of the others."""
        for i in range(1 + count):
            print(f"round {i} of {count}" if i else "warming up", file=sys.stderr, flush=True)
            for name, options in asked.items():
                if (said := self.ask(name, "go", **options)) is not None and i:
                    self.told.setdefault(name, []).append(said)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def run(
    names: Sequence[str],
    only: Sequence[str],
    rounds: int,
    scratch: Path,
    threads: int,
    quick: bool = False,
    shapes: dict[str, dict[str, Any]] = SHAPES,
) -> dict[str, Any]:
    """The cases of these names; `only` are contestants, all if empty. `quick` tries out: fewer tokens, and no figure to keep."""
    found: dict[str, Any] = {}
    for name in names:
        if name == COLD:
            taking = [one for one in ("plait", *start.PEERS) if not only or one in only]
            found[name] = start.run("smollm2", min(rounds, 3), taking, new=8 if quick else 32)
            continue
        print(f"{name}: {CASES[name].what}", file=sys.stderr, flush=True)
        case = CASES[name].quick() if quick else CASES[name]
        turning = Turning(threads, scratch / case.model)
        turning.scratch.mkdir(exist_ok=True)
        try:
            found[name] = measured(case, [one for one in case.entrants if not only or one in only], rounds, turning, shapes)
        finally:
            turning.close()
    return {"cases": found}


def measured(case: Case, taking: list[str], rounds: int, turning: Turning, shapes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All turns of one case, then what the contestants say of texts; figures of it."""
    files: dict[str, str] = {}
    options = {"model": case.model, "scratch": str(turning.scratch), "shape": shapes.get(case.model, {})}
    with Worker("preparing", "plait.bench.prepared:Prepared", options, turning.threads, turning.scratch / "process.log") as prepared:
        for name in taking:
            try:
                files[name] = prepared.ask("file", kind=ENTRANTS[name].file)["answer"]
            except InputError as error:
                turning.failed[name] = str(error)
        reference = prepared.ask("file", kind="plait")["answer"]
        given = prepared.ask("inputs", rows=case.rows, prompt=case.prompt, copies=case.copies, ends=list(ENDS))["answer"]
    for name, file in files.items():
        turning.start(name, GENERATORS + case.made_by(ENTRANTS[name]), {"file": file, **case.options(ENTRANTS[name], turning.threads)})
    loaded = {name: worker.loaded for name, worker in turning.workers.items()}
    turning.start("limit", GENERATORS + LIMITS[case.limit], {})
    work = {"rows": given["rows"], "new": case.new}
    turning.rounds({**dict.fromkeys(loaded, work), "limit": {}}, rounds)
    for name, turns in turning.told.items():
        if name != "limit" and turns[-1]["answer"][0][:1] == [-1] and (ids := turning.ask(name, "ids", **work)):
            turns[-1]["answer"] = ids["answer"]
    turning.start("reference", GENERATORS + "Plait", {"file": reference, "double": True})
    sizes = (turning.ask("reference", "sizes") or {}).get("answer")
    probabilities = {}
    for name in ["reference", *loaded]:
        out = turning.scratch / "probabilities.npy"
        if turning.ask(name, "told", texts=given["texts"], out=str(out)):
            probabilities[name] = out.read_bytes()
    return figures(case, loaded, turning.told, turning.failed, probabilities, sizes, len(given["rows"][0]), shapes)


def shown(found: dict[str, Any]) -> str:
    return "\n\n".join(start.shown(one) if name == COLD else table(name, one) for name, one in found["cases"].items())
