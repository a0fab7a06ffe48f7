"""Time to quality: how long a character model of tiny Shakespeare takes to a validation loss, ours and nanoGPT's, whole commands in turn.

nanoGPT is a folder with its public repository (`--nanogpt FOLDER`), run by the command of its README for a CPU. Both are scored alike:
the last tenth of the text in windows of 64 characters that do not overlap, every character but the first predicted once.
"""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plait.bench.measure import load_average
from plait.errors import InputError

GOAL, CONTEXT, SHARE = 1.88, 64, 0.9  # nats a character; characters that a model sees; of the text, from its beginning, to learn from
SMALL = ["--tokenizer", "characters", "--context", str(CONTEXT), "--seed", "1337", "--evaluations", "1"]
OURS = {  # the plain Transformer, and one whose characters bring vectors of the n-grams that end there
    "plait": ["--preset", "modern-decoder-nano", "--batch-tokens", "1024", "--steps", "440"],
    "plait n-grams": ["--preset", "modern-decoder-tiny", "--batch-tokens", "1024", "--steps", "100"],
}
README = (  # nanoGPT's own words for a CPU
    "--device=cpu --compile=False --eval_iters=20 --log_interval=100 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128"
    " --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
).split()
FEW = 4  # steps, to see that all run


@dataclass(frozen=True)
class Contestant:
    """What is run, and how what it leaves is scored: `score(folder)` -> nats a character."""

    words: Callable[[Path, Path], list[str]]  # (text, folder for what it makes) -> a command
    score: Callable[[Path, Path], tuple[float, int]]  # (text, that folder) -> (nats, parameters)
    where: Path | None = None  # it is run in


def windows_loss(scores: Callable[[torch.Tensor], torch.Tensor], ids: Sequence[int], context: int = CONTEXT) -> float:
    """Mean nats over every id but the first; `scores` [B, L, V] of ids [B, L]."""
    row, total = torch.tensor(list(ids)), 0.0
    starts = range(0, len(row) - 1, context)
    full = [start for start in starts if start + context < len(row)]
    for group in [full[i : i + 64] for i in range(0, len(full), 64)] + [[start] for start in starts if start + context >= len(row)]:
        rows = torch.stack([row[start : start + context + 1] for start in group])
        found = scores(rows[:, :-1]).float().log_softmax(-1)
        total -= float(found.gather(-1, rows[:, 1:, None]).sum(dtype=torch.float64))
    return total / (len(row) - 1)


def parts_of(text: Path) -> tuple[str, str]:
    whole = text.read_text(encoding="utf-8")
    cut = int(SHARE * len(whole))
    return whole[:cut], whole[cut:]


# ---- ours ----


def ours(options: Sequence[str]) -> Contestant:
    def words(text: Path, out: Path) -> list[str]:
        train, valid = parts_of(text)
        for name, part in (("train.txt", train), ("valid.txt", valid)):
            (out.parent / name).write_text(part, encoding="utf-8")
        data = ["--data", str(out.parent / "train.txt"), "--valid", str(out.parent / "valid.txt")]
        return [sys.executable, "-m", "plait.cli", "train", "language-model", *data, "--out", str(out), *SMALL, *options]

    @torch.inference_mode()
    def score(text: Path, out: Path) -> tuple[float, int]:
        from plait import load
        from plait.core.model import parameters

        run = load(out)
        ids = run.tokenizer.encode(parts_of(text)[1])
        net = run.net
        return windows_loss(lambda rows: net.heads["lm"](net(decoder=rows)["decoder"].x), ids), parameters(net)

    return Contestant(words, score)


# ---- nanoGPT ----

SCORE = """
import json, sys, torch
sys.path.insert(0, {folder!r})
from model import GPT, GPTConfig
from plait.bench.learning import parts_of, windows_loss
from pathlib import Path
kept = torch.load({out!r} + "/ckpt.pt", map_location="cpu", weights_only=True)
net = GPT(GPTConfig(**kept["model_args"]))
net.load_state_dict(kept["model"])
net.eval()
table = json.load(open({folder!r} + "/characters.json"))
ids = [table[c] for c in parts_of(Path({text!r}))[1]]
def scores(rows):  # given targets it scores every place, without them the last one
    rows = rows.contiguous()
    return net(rows, rows)[0]
with torch.inference_mode():
    print(json.dumps([windows_loss(scores, ids), sum(p.numel() for p in net.parameters())]))
"""


def nanogpt(folder: Path, scratch: Path, text: Path, few: bool = False) -> Contestant:
    """A copy of the folder in `scratch`, with the text as its data (its own preparation would fetch it). `few`: as many steps."""
    if not (folder / "train.py").exists():
        raise InputError(f"--nanogpt {folder}: has no train.py; give a folder with nanoGPT's repository")
    here = scratch / "nanogpt"
    shutil.copytree(folder, here, ignore=shutil.ignore_patterns(".git", "assets"))
    whole = text.read_text(encoding="utf-8")
    table = {c: i for i, c in enumerate(sorted(set(whole)))}
    (here / "characters.json").write_text(json.dumps(table))
    data = here / "data" / "shakespeare_char"
    data.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train.bin", "val.bin"), parts_of(text), strict=True):
        np.array([table[c] for c in part], np.uint16).tofile(data / name)
    import pickle  # the form in which it reads the size of its vocabulary, written here

    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(table), "stoi": table, "itos": {i: c for c, i in table.items()}}))

    less = [f"--{name}={FEW}" for name in ("max_iters", "lr_decay_iters", "eval_interval", "eval_iters")] if few else []

    def words(_: Path, out: Path) -> list[str]:
        return [sys.executable, "train.py", "config/train_shakespeare_char.py", f"--out_dir={out}", *README, *less]

    def score(text: Path, out: Path) -> tuple[float, int]:
        code = SCORE.format(folder=str(here), out=str(out), text=str(text))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
        if done.returncode:
            raise InputError(f"nanogpt: its checkpoint cannot be scored: {(done.stderr.strip() or '?').splitlines()[-1]}")
        nats, parameters = json.loads(done.stdout.splitlines()[-1])
        return nats, parameters

    return Contestant(words, score, here)


def environment() -> dict[str, str]:
    src = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [src, os.environ.get("PYTHONPATH")]))}


# ---- the race ----


def contestants(peer: Path | None, scratch: Path, text: Path, few: bool = False) -> dict[str, Contestant]:
    """By name; nanoGPT where its folder is given."""
    made = {name: ours([*options[: options.index("--steps")], "--steps", str(FEW)] if few else options) for name, options in OURS.items()}
    return made if peer is None else {**made, "nanogpt": nanogpt(peer, scratch, text, few)}


def run(text: Path, contestants: dict[str, Contestant], rounds: int, scratch: Path) -> dict[str, Any]:
    """Each contestant's command in turn: seconds from its start to its end, then its loss, which no clock sees."""
    rows: list[dict[str, Any]] = []
    for turn in range(rounds):
        for name, one in contestants.items():
            out = scratch / f"{name.replace(' ', '-')}-{turn}" / "run"
            out.parent.mkdir(parents=True)
            command = one.words(text.resolve(), out)
            start = time.perf_counter()
            done = subprocess.run(command, cwd=one.where, env=environment(), capture_output=True, text=True)
            seconds = time.perf_counter() - start
            if done.returncode:
                raise InputError(f"{name}: its command ended with {done.returncode}: {(done.stderr.strip() or '?').splitlines()[-1]}")
            nats, parameters = one.score(text.resolve(), out)
            rows.append({"name": name, "seconds": seconds, "nats": nats, "parameters": parameters, "load": load_average()})
            print(f"{name}: {seconds:.1f} s, {nats:.4f} nats, {parameters:,} parameters", file=sys.stderr)
    return {"goal": GOAL, "context": CONTEXT, "rows": rows, "summary": summary(rows)}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Medians by contestant, and the time as a share of nanoGPT's where that ran."""
    found = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        found[name] = {key: statistics.median(row[key] for row in own) for key in ("seconds", "nats", "parameters")}
        found[name]["reached"] = sum(row["nats"] <= GOAL for row in own)
        found[name]["runs"] = len(own)
    peer = found.get("nanogpt", {}).get("seconds", math.nan)
    return {name: {**one, "of_nanogpt": one["seconds"] / peer} for name, one in found.items()}


def shown(done: dict[str, Any]) -> str:
    lines = [f"time to {GOAL} nats a character, tiny Shakespeare, context {CONTEXT}"]
    lines += [
        f"{name:24} {one['seconds']:7.1f} s  {one['nats']:.4f} nats ({one['reached']} of {one['runs']} at the goal)"
        f"  {one['parameters']:>9,.0f} parameters  {one['of_nanogpt']:.3f} of nanoGPT's time"
        for name, one in done["summary"].items()
    ]
    return "\n".join(lines)
