"""`python -m plait.bench OPTIONS` runs one job in a process of its own; OPTIONS and what it prints on stdout are one JSON object each.

`plait bench` starts it, so that the number of threads is set before any library makes its own.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from plait.errors import InputError, choices


def run(o: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """(result, its table) of the job that the options name."""
    import torch

    from plait.bench import measure

    torch.set_num_threads(o["threads"])
    found = measure.record(o["job"], o["threads"], o)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if o["job"] == "train":
            from plait.bench import train_language

            shape = train_language.SHAPES[shaped(o, "characters", train_language.SHAPES)]
            only = contestants(o["only"], [*train_language.WHAT], [*train_language.WHAT])
            rounds, steps = (o["rounds"] or 1, 2) if o["quick"] else (o["rounds"] or 5, 4)
            done = train_language.run(shape, rounds, only, folder, o["threads"], o["nanogpt"], steps)
            table = train_language.shown(done)
        elif o["job"] == "learning":
            from plait.bench import learning

            peer = Path(o["nanogpt"]) if o["nanogpt"] else None
            entrants = learning.contestants(peer, folder, Path(o["text"]), o["quick"])
            only = contestants(o["only"], [*entrants], [*entrants])
            entrants = {name: one for name, one in entrants.items() if name in only}
            done = learning.run(Path(o["text"]), entrants, o["rounds"] or (1 if o["quick"] else 3), folder)
            table = learning.shown(done)
        elif o["job"] == "train-speed":
            from plait.bench import train_speed
            from plait.train.allocator import keep_freed_memory

            keep_freed_memory()  # as plait train does; in one process all contestants gain by it
            job = train_speed.JOBS[shaped(o, "medium", train_speed.JOBS)]
            only = contestants(o["only"], ["plait", *train_speed.PEERS], [*train_speed.WHAT])
            done = train_speed.run(job, o["rounds"] or 20, only, folder)
            table = train_speed.shown(done)
        elif o["job"] == "translate-speed":
            from plait.bench import translate_speed

            only = contestants(o["only"], ["plait", *translate_speed.PEERS], [*translate_speed.WHAT])
            done = translate_speed.run(translate_speed.BASE, o["rounds"] or 5, only, folder, o["threads"], o["beams"])
            table = translate_speed.shown(done)
        elif o["job"] == "start":
            from plait.bench import start

            only = contestants(o["only"], ["plait", *start.PEERS], [*start.WHAT])
            done = start.run(o["model"], o["rounds"] or 3, only)
            table = start.shown(done)
        elif o["job"] == "generate":
            from plait.bench import generate_cases, generate_speed

            cases = cased(o, [*generate_cases.CASES, generate_cases.COLD])
            only = contestants(o["only"], [], [*generate_cases.ENTRANTS])
            done = generate_speed.run(cases, only, o["rounds"] or (1 if o["quick"] else 5), folder, o["threads"], o["quick"])
            found["dtype"] = "as its name says, else float32"
            table = generate_speed.shown(done)
        elif o["job"] == "vision":
            from plait.bench import vision_speed

            cases = cased(o, [*vision_speed.CASES])
            only = contestants(o["only"], [], [*vision_speed.ENTRANTS])
            done = vision_speed.run(cases, only, o["rounds"] or (1 if o["quick"] else 5), folder, o["threads"])
            found["dtype"] = "as its name says, else float32"
            table = vision_speed.shown(done)
        elif o["job"] == "tune-speed":
            from plait.bench import tune_speed

            only = contestants(o["only"], [*tune_speed.WHAT], [*tune_speed.WHAT])
            done = tune_speed.run(tune_speed.Job(), o["rounds"] or (1 if o["quick"] else 5), only, folder, o["threads"])
            table = tune_speed.shown(done)
        elif o["job"] == "small-weights":
            from plait.bench import small_weights

            names = ("data", "minutes", "threads", "seed", "limit")
            trained = Path(o["run_folder"]) if o["run_folder"] else None
            done = small_weights.run(small_weights.Job(**{name: o[name] for name in names}, run=trained), folder)
            table = small_weights.shown(done)
        else:
            from plait.bench import quality

            only = contestants(o["only"], ["plait", "marian"], ["plait", "marian"])
            names = ("data", "minutes", "threads", "seed", "rates", "peer_dropout", "peer_smoothing", "limit")
            trained = Path(o["run_folder"]) if o["run_folder"] else None
            job = quality.Job(**{name: o[name] for name in names}, peers=o["peer"], run=trained)
            done = quality.run(job, only, folder)
            table = quality.shown(done)
    return {**found, **done, "load_after": measure.load_average()}, table


def shaped(o: dict[str, Any], usual: str, known: Mapping[str, Any]) -> str:
    if (name := o["shape"] or usual) not in known:
        raise InputError(f"--shape {name}: choose {choices(known)}")
    return name


def cased(o: dict[str, Any], known: list[str]) -> list[str]:
    if unknown := [name for name in o["cases"] if name not in known]:
        raise InputError(f"--cases {' '.join(unknown)}: choose among {choices(known)}")
    return o["cases"] or known


def contestants(given: list[str], usual: list[str], known: list[str]) -> list[str]:
    if unknown := [name for name in given if name not in known]:
        raise InputError(f"--only {' '.join(unknown)}: choose among {choices(repr(name) for name in known)}")
    return given or usual


def main(words: list[str]) -> int:
    o = json.loads(words[0])
    try:
        from plait.bench import measure

        found, table = run(o)
        out = Path(o["out"] or f"bench/results/{o['job']}-{datetime.now():%Y-%m-%d}.json")
        measure.write(found, out)
    except InputError as error:
        print(json.dumps({"error": error.message, "faults": error.faults}))
        return 2
    head = (
        f"{found['machine']['cpu']}, {found['threads']} threads, torch {found['machine']['torch']}, commit {(found['commit'] or '?')[:10]}"
    )
    head += " with changes" if found["changed"] else ""
    busy = f"load average before and after: {found['load_before']} and {found['load_after']}"
    print(json.dumps({"table": "\n".join([table, "", head, busy, f"written to {out}"])}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
