"""plait bench: figures beside those of named peers."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from plait.errors import InputError
from plait.verbs import positional
from plait.verbs.numbers import number_faults


@dataclass
class Bench:
    """Time and score Plait against named peers, in turn, on this machine."""

    job: Annotated[
        Literal[
            "train", "learning", "train-speed", "translate-speed", "quality", "start", "generate", "small-weights", "vision", "tune-speed"
        ],
        positional,
        "what is done",
    ]
    out: Annotated[Path | None, "FILE", "where the JSON goes; default: bench/results/JOB-DATE.json"] = None
    threads: Annotated[int | None, "CPU threads, the same for all; default: all cores"] = None
    only: Annotated[
        list[str], "NAMES", "these contestants alone: plait, marian, trainer, torch, generate, ctranslate2, llama.cpp q8_0 ..."
    ] = field(default_factory=list)
    rounds: Annotated[
        int | None,
        "turns a contestant; default 20 for train-speed, 3 for learning and start, 5 for the others",
    ] = None
    shape: Annotated[
        str | None,
        "of train-speed: medium (default), or characters (spelling to sounds, batches of 4096 tokens);"
        " of train: characters (default), characters-small, or bpe",
    ] = None
    nanogpt: Annotated[Path | None, "FOLDER", "of train and learning: nanoGPT's repository; without it, it takes no part"] = None
    text: Annotated[Path | None, "FILE", "of learning: tiny Shakespeare"] = None
    beams: Annotated[list[int], "of translate-speed: widths of the beam"] = field(default_factory=lambda: [4, 1])
    model: Annotated[str, "of start: a causal language model"] = "smollm2"
    cases: Annotated[
        list[str],
        "NAMES",
        "of generate: gpt2, gpt2-16, gpt2-prefill, smollm2, translate, speculative, cold; of vision: vit, vit-8, detr, detr-8",
    ] = field(default_factory=list)
    quick: Annotated[bool, "of generate, train, learning and vision: few tokens or steps, one round, to see that all contestants run"] = (
        False
    )
    data: Annotated[str, "of quality and small-weights: a built-in set"] = "cmudict"
    minutes: Annotated[float, "of quality: wall time of each contestant, from its start; of small-weights: of each model"] = 5.0
    run_folder: Annotated[Path | None, "RUN", "of quality and small-weights: a run of ours that is trained already"] = None
    peer: Annotated[list[str], "D:E+D", "of quality: width and layers of MarianMTModel, such as 128:3+3, or same: as our run's"] = field(
        default_factory=lambda: ["same"]
    )
    rates: Annotated[list[float], "of quality: learning rates of each peer, a run each; the best counts"] = field(
        default_factory=lambda: [1e-3]
    )
    peer_dropout: Annotated[float | None, "of quality: default: as our run's"] = None
    peer_smoothing: Annotated[float | None, "of quality: default: as our run's"] = None
    limit: Annotated[int | None, "of quality and small-weights: score only the first so many test sources"] = None
    seed: Annotated[int, "of quality and small-weights"] = 0

    def run(self) -> str:
        """The table; everything measured is in the JSON file. The job runs in a process of its own."""
        import json
        import os
        import subprocess
        import sys

        if faults := self.faults():
            raise InputError("this job cannot start", faults)
        threads = self.threads or os.cpu_count() or 1
        # A process of its own, since OpenMP reads these variables once, before the first library that brings it.
        src = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [src, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        options = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        words = [sys.executable, "-m", "plait.bench", json.dumps({**options, "threads": threads})]
        done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.returncode in (0, 2) and done.stdout else {}
        if "error" in said:
            raise InputError(said["error"], said["faults"])
        if done.returncode:
            raise RuntimeError(f"the job stopped with exit code {done.returncode}; what it said stands above")
        return said["table"]

    def faults(self) -> list[str]:
        found = number_faults(self, positive=("threads", "rounds", "minutes", "limit"), not_negative=("seed",))
        for name, values in (("beams", self.beams), ("rates", self.rates)):
            found += [f"--{name} {value}: must be above 0" for value in values if not value > 0]
        for name in ("peer_dropout", "peer_smoothing"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                found.append(f"--{name.replace('_', '-')} {value}: must be at least 0 and below 1")
        if self.job == "learning" and (self.text is None or not self.text.is_file()):
            found.append(f"--text {self.text or 'FILE'}: give the file of tiny Shakespeare" + ("; it is not there" if self.text else ""))
        return found
