"""What weights in 8 and 4 bits lose: a translation run and a language model, both trained here in float32, before and after."""

import ast
import copy
import math
import sysconfig
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from plait.bench.measure import aligned
from plait.bench.quality import Job as Training
from plait.bench.quality import test_set, train_ours
from plait.compress import quantise
from plait.core.losses import linear_cross_entropy
from plait.core.model import Model, parameters
from plait.hub import load
from plait.models import llama
from plait.tasks.likelihood import likelihood
from plait.tasks.metrics import score
from plait.text.training import train_tokenizer
from plait.train.log import Reporter
from plait.train.recipes import Recipe
from plait.weights.rules import stored

HELD = 20  # one file in so many is kept for measuring
LANGUAGE = llama.Config(vocab_size=8000, d_model=384, n_heads=6, n_layers=6, d_ff=1024, max_length=256, tie=True)  # 13.7 M parameters


@dataclass(frozen=True)
class Job:
    """`minutes` go to each of the two models; `run` is a translation run that is trained already."""

    data: str = "cmudict"
    minutes: float = 5.0
    threads: int = 2
    seed: int = 0
    run: Path | None = None
    limit: int | None = None
    rows: int = 8  # of LANGUAGE's length in a batch
    tokens: int = 30_000  # that perplexity is measured on
    settings: llama.Config = LANGUAGE


# Name -> passes over the model, one after another: (bits, patterns of names, activations).
WAYS: dict[str, tuple[tuple[int, tuple[str, ...], str], ...]] = {
    "float32": (),
    "int8": ((8, ("*",), "int8"),),
    "int8, float32 activations": ((8, ("*",), "float32"),),
    "int4": ((4, ("*",), "int8"),),
    "int4, float32 activations": ((4, ("*",), "float32"),),
    "int4, embeddings and output int8": ((8, ("*.embed.tokens", "heads.*"), "int8"), (4, ("*",), "int8")),
}


def small(net: Model, way: str) -> Model:
    for bits, only, activations in WAYS[way]:
        known = [pattern for pattern in only if pattern != "heads.*" or any(True for _ in net.heads.parameters())]
        quantise(net, bits, only=known, activations=activations)
    return net


def size(net: Model) -> int:
    """Bytes of everything that is stored."""
    return sum(t.nbytes for t in stored(net).values())


# ---- a language model ----


def documentation(roots: list[Path]) -> Iterator[tuple[bool, str]]:
    """(kept for measuring, the docstrings of one Python file): English that lies wherever Plait runs."""
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if "site-packages" in name or "test" in name:
                continue
            try:
                tree = ast.parse(path.read_text("utf-8"))
            except (OSError, ValueError, SyntaxError):
                continue  # files of tests of Python's own reader
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            found = [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node))]
            if found:
                yield zlib.crc32(name.encode()) % HELD == 0, "\n\n".join(found) + "\n\n"


def train_language(job: Job, reporter: Reporter, roots: list[Path]) -> tuple[Model, list[int], dict[str, Any]]:
    """(a model trained on docstrings under `roots`, ids of those held out, what was done). The learning rate falls to 0."""
    texts = list(documentation(roots))
    learnt, held = ("".join(text for kept, text in texts if kept is which) for which in (False, True))
    tokenizer = train_tokenizer("bpe", learnt.split("\n\n"), job.settings.vocab_size)
    settings = replace(job.settings, vocab_size=tokenizer.vocab_size)
    ids, length = torch.tensor(tokenizer.encode(learnt)), settings.max_length
    torch.manual_seed(job.seed)
    net = llama.build(settings)
    recipe = Recipe("muon", 0.02, 0.008, "linear", 20, 0.0, (0.9, 0.95), 1e-10)
    optimizer, schedule, table = recipe.optimizer(net), recipe.schedule(), net.get_submodule("decoder.embed.tokens")
    begin, spent, step = time.perf_counter(), 0.0, 0
    while spent < 60 * job.minutes:
        step += 1
        rows = torch.stack([ids[at : at + length + 1] for at in torch.randint(len(ids) - length, (job.rows,))])
        hidden = net.run("decoder", rows[:, :-1]).x.flatten(0, 1)
        total, plain = linear_cross_entropy(hidden, table.weight, None, rows[:, 1:].flatten())  # type: ignore[arg-type]
        for p in net.parameters():
            p.grad = None
        total.backward()
        optimizer.step(schedule(step, spent / (60 * job.minutes)), torch.tensor(float(len(hidden))))
        spent = time.perf_counter() - begin
        if step % 10 == 0:
            reporter.say(f"language model: step {step}, {spent:.0f} s, loss {float(plain) / len(hidden):.3f}")
    about = {"config": asdict(settings), "parameters": parameters(net), "steps": step, "seconds": spent}
    about |= {"tokens": step * job.rows * length, "different_tokens": len(ids), "recipe": recipe.described()}
    return net.eval(), tokenizer.encode(held)[: job.tokens], about


def perplexities(net: Model, held: list[int], window: int) -> dict[str, dict[str, Any]]:
    """Of each way. Windows overlap by a quarter, so that every token has a context."""
    found = {}
    for way in WAYS:
        made = small(copy.deepcopy(net), way)
        found[way] = {"bytes": size(made), "value": likelihood(made, held, window, window * 3 // 4).perplexity}
    return found


# ---- translation ----


def translation_errors(run: Path, data: str, limit: int | None) -> dict[str, dict[str, Any]]:
    """The symbol error rate of each way on the test part, beam 4, in percent; how many answers are others than those of float32."""
    sources, references = test_set(data, limit)
    found, whole = {}, []
    for way in WAYS:
        model = load(run)
        made = small(model.net, way)
        answers = model(sources)
        whole = whole or answers
        other = sum(a != b for a, b in zip(answers, whole, strict=True))
        found[way] = {"bytes": size(made), "value": score(answers, references)[0]["symbol_error_rate"], "other_answers": other}
    return found


# ---- the job ----


def run(job: Job, folder: Path, roots: list[Path] | None = None) -> dict[str, Any]:
    torch.set_num_threads(job.threads)
    trained = train_ours(Training(job.data, job.minutes, threads=job.threads, seed=job.seed, run=job.run), folder)
    found = {
        "translation": {"data": job.data, "run": str(job.run or "trained here"), "ways": translation_errors(trained, job.data, job.limit)}
    }
    net, held, about = train_language(job, Reporter(), roots or [Path(sysconfig.get_path("stdlib")), Path(torch.__file__).parent])
    found["language"] = {**about, "held_tokens": len(held), "ways": perplexities(net, held, job.settings.max_length)}
    for part in found.values():
        whole = part["ways"]["float32"]
        for row in part["ways"].values():
            row["more"] = row["value"] / whole["value"] - 1 if whole["value"] else math.nan
            row["of_bytes"] = row["bytes"] / whole["bytes"]
    return found


def shown(found: dict[str, Any]) -> str:
    lines = []
    for name, what in (("language", "perplexity"), ("translation", "symbol errors %")):
        part = found[name]
        told = f"{part['parameters']:,} parameters, {part['tokens']:,} tokens" if name == "language" else f"{part['data']}, beam 4"
        rows = [["", what, "more", "of the bytes", ""]]
        for way, row in part["ways"].items():
            other = f"{row['other_answers']} other answers" if "other_answers" in row else ""
            rows.append([way, f"{row['value']:.3f}", f"{100 * row['more']:+.2f} %", f"{100 * row['of_bytes']:.0f} %", other])
        lines += [f"{name}, {told}", *aligned(rows), ""]
    return "\n".join(lines[:-1])
