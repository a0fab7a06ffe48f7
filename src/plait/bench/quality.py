"""Quality at equal time: plait train beside a MarianMTModel on the same data, tokenizers and minutes, one after the other."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch

from plait.bench import marian_run
from plait.bench.measure import aligned, load_average
from plait.bench.operations import Shape
from plait.bench.peers import need
from plait.data.cleaning import clean
from plait.data.split import answers as grouped
from plait.errors import InputError
from plait.hub import load
from plait.tasks.metrics import score
from plait.train.log import MetricsFile
from plait.verbs.lessons.translation import pairs_of

MEASURES = {"symbol_error_rate": "symbol errors", "sequence_error_rate": "sequence errors", "bleu": "BLEU", "chrf": "chrF"}
ERRORS = ("symbol_error_rate", "sequence_error_rate")
BEAMS = (1, 4)


@dataclass(frozen=True)
class Job:
    """Peers are "D:E+D" (width, encoder and decoder layers) or "same": the shape that our run has chosen. Each is trained at every rate."""

    data: str
    minutes: float | None = None
    steps: int | None = None  # instead of minutes, for tests
    threads: int = 2
    seed: int = 0
    run: Path | None = None  # a run of ours that is trained already
    peers: list[str] = field(default_factory=lambda: ["same"])
    rates: list[float] = field(default_factory=lambda: [1e-3])
    peer_dropout: float | None = None  # None: as our run's, as are smoothing and batch
    peer_smoothing: float | None = None
    limit: int | None = None  # score only so many test sources


def process(words: list[str], threads: int) -> None:
    """A Python of its own, whose output goes to stderr; it must end well."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, *words], env=environment, stdout=sys.stderr.fileno())
    if done.returncode:
        raise InputError(f"a contestant stopped with exit code {done.returncode}: {' '.join(words[:4])}; what it said stands above")


def test_set(name: str, limit: int | None) -> tuple[list[str], list[list[str]]]:
    """Test sources and their right answers, as plait eval takes them."""
    right = grouped(clean(pairs_of([name], "test")[0], max_ratio=None)[0])
    sources = list(right)[:limit]
    return sources, [right[source] for source in sources]


def train_ours(job: Job, folder: Path) -> Path:
    if job.run is not None:
        return job.run
    out = folder / "plait"
    budget = ["--minutes", str(job.minutes)] if job.minutes else ["--steps", str(job.steps)]
    words = ["train", "translation", "--data", job.data, *budget, "--out", str(out), "--seed", str(job.seed), "--threads", str(job.threads)]
    process(["-m", "plait.cli", *words], job.threads)
    return out


def our_figures(job: Job, run: Path, sources: list[str], references: list[list[str]]) -> dict[str, Any]:
    model = load(run)
    last = MetricsFile(run / "metrics.jsonl").rows()[-1]
    config = model.config
    found = {"what": f"plait train translation: {config['arch']}, {config['recipe']['kind']}", "config": config["config"]}
    found |= {"parameters": sum(p.numel() for p in model.net.parameters()), "steps": last["step"], "seconds": last["seconds"]}
    found |= {"tokens": last["tokens"], "tokens_per_second": last["tokens"] / last["seconds"]}
    found |= {"valid_loss": last["valid_loss"], "batch_tokens": config["batch_tokens"], "smoothing": config["smoothing"]}
    return {**found, "scores": {str(beams): score(model(sources, beams=beams), references)[0] for beams in BEAMS}}


def peer_size(peer: str) -> dict[str, int]:
    try:
        width, layers = peer.split(":")
        encoder, decoder = map(int, layers.split("+"))
        size = {"d_model": int(width), "n_heads": 4, "n_layers": encoder, "n_decoder_layers": decoder, "d_ff": 4 * int(width)}
    except ValueError:
        raise InputError(f"--peer {peer}: expected width:encoder+decoder layers, such as 128:3+3, or same") from None
    if min(size.values()) < 1 or size["d_model"] % 8:
        raise InputError(f"--peer {peer}: the width must divide into 4 heads of an even width, and each side needs a layer")
    return size


def peer_settings(job: Job, ours: dict[str, Any] | None, peer: str, rate: float, out: Path) -> marian_run.Settings:
    """What our run has chosen, the peer gets too, unless it was told otherwise."""
    size = {"d_model": 128, "n_heads": 4, "n_layers": 3, "n_decoder_layers": 3, "d_ff": 512}
    dropout, smoothing, batch = 0.1, 0.1, 4096
    if ours is not None:
        config = ours["config"]
        size = {name: config[name] for name in size if config.get(name) is not None}
        dropout, smoothing, batch = config["dropout"], ours["smoothing"], ours["batch_tokens"]
    return marian_run.Settings(
        data=job.data,
        out=str(out),
        size=size if peer == "same" else peer_size(peer),
        rate=rate,
        dropout=dropout if job.peer_dropout is None else job.peer_dropout,
        smoothing=smoothing if job.peer_smoothing is None else job.peer_smoothing,
        batch_tokens=batch,
        minutes=job.minutes,
        steps=job.steps,
        threads=job.threads,
        seed=job.seed,
    )


def peer_figures(settings: marian_run.Settings, sources: list[str], references: list[list[str]]) -> dict[str, Any]:
    before = load_average()
    process(["-m", "plait.bench.marian_run", json.dumps(asdict(settings))], settings.threads)
    load = [before, load_average()]
    found = json.loads((Path(settings.out) / marian_run.RESULT).read_text())
    translate = marian_run.opened(Path(settings.out))
    described = f"MarianMTModel {Shape(**found['shape'])}, AdamW {settings.rate:g}"
    scores = {str(beams): score(translate(sources, beams), references)[0] for beams in BEAMS}
    return {"what": described, **found, "settings": asdict(settings), "load": load, "scores": scores}


def run(job: Job, only: list[str], folder: Path) -> dict[str, Any]:
    """Trains and scores ours, then the peers; what ours is compared with is the best that any of them reached."""
    for peer in job.peers:
        if peer != "same":
            peer_size(peer)  # a wrong one is told before minutes are spent
    if "marian" in only:
        need("transformers")
    torch.set_num_threads(job.threads)
    sources, references = test_set(job.data, job.limit)
    contestants: dict[str, dict[str, Any]] = {}
    if "plait" in only:
        before = load_average()
        trained = train_ours(job, folder)
        between = load_average()
        contestants["plait"] = {**our_figures(job, trained, sources, references), "load": [before, between]}
    for peer, rate in product(job.peers, job.rates) if "marian" in only else []:
        name = f"marian {peer} {rate:g}"
        settings = peer_settings(job, contestants.get("plait"), peer, rate, folder / name.replace(" ", "-").replace(":", "-"))
        contestants[name] = peer_figures(settings, sources, references)
    found = {"data": job.data, "minutes": job.minutes, "test_sources": len(sources), "contestants": contestants}
    return {**found, "ratios": ratios(contestants)}


def ratios(contestants: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Our error rates over the lowest of the peers', for each width of the beam; by how much our BLEU and chrF are above their highest."""
    peers = [row["scores"] for name, row in contestants.items() if name != "plait"]
    if "plait" not in contestants or not peers:
        return {}
    found = {}
    for beams, mine in contestants["plait"]["scores"].items():
        lowest = {name: min(scores[beams][name] for scores in peers) for name in ERRORS}
        highest = {name: max(scores[beams][name] for scores in peers) for name in ("bleu", "chrf")}
        found[beams] = {name: mine[name] / value if value else None for name, value in lowest.items()}
        found[beams] |= {f"{name}_more": mine[name] - value for name, value in highest.items()}
    return found


def shown(found: dict[str, Any]) -> str:
    head = ["", "beams", "parameters", "steps", "seconds", "tokens/s", *MEASURES.values(), ""]
    rows = [head]
    for name, row in found["contestants"].items():
        for beams, scores in row["scores"].items():
            told = [f"{row['parameters']:,}", f"{row['steps']:,}", f"{row['seconds']:,.0f}", f"{row['tokens_per_second']:,.0f}"]
            rows.append([name, beams, *told, *(f"{scores[measure]:.1f}" for measure in MEASURES), row["what"]])
    lines = [f"quality, {found['data']}, {found['test_sources']:,} test sources, all measures in percent", *aligned(rows)]
    for beams, ratio in found["ratios"].items():
        rates = [f"{ratio[name]:.2f} x its {MEASURES[name]}" for name in ERRORS if ratio[name]]
        more = f"BLEU {ratio['bleu_more']:+.1f}, chrF {ratio['chrf_more']:+.1f}"
        lines.append(f"plait over the best peer, beam {beams}: {', '.join(rates)}; {more}")
    return "\n".join(lines)
