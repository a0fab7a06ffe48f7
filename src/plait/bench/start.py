"""From nothing to the first tokens: whole processes, cold, of ours and of `transformers` on the same file, in turn."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from plait.bench.measure import Turns, aligned, compared
from plait.bench.peers import need
from plait.errors import InputError
from plait.hub import place
from plait.hub.checkpoints import gguf_of

PROMPT = "The capital of France is"
PEERS = ("transformers",)
WHAT = {
    "plait": "plait run MODEL PROMPT --max-new-tokens N",
    "transformers": "AutoTokenizer and AutoModelForCausalLM.from_pretrained, generate(max_new_tokens=N)",
}
THEIRS = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
logging.disable_progress_bar()
folder, prompt, new, more = sys.argv[1], sys.argv[2], int(sys.argv[3]), {"gguf_file": sys.argv[4]} if len(sys.argv) > 4 else {}
tokenizer = AutoTokenizer.from_pretrained(folder, **more)
model = AutoModelForCausalLM.from_pretrained(folder, **more)
ids = tokenizer(prompt, return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=new, do_sample=False)[0]))
"""


class Process:
    """A command run to its end; keeps what it said and the most memory that it had."""

    def __init__(self, words: list[str]):
        self.words, self.said, self.peak = words, "", 0

    def __call__(self) -> None:
        # Our own wait: the standard library's does not tell a child's memory.
        child = subprocess.Popen(self.words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8")
        assert child.stdout is not None
        self.said = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        if status:
            raise InputError(f"{' '.join(self.words[:4])} ... ended with {os.waitstatus_to_exitcode(status)}; run it by hand to see why")
        self.peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def contestants(model: str, names: list[str], new: int) -> dict[str, Process]:
    folder = place(model)
    gguf = gguf_of(folder)
    if "transformers" in names:
        need("transformers")
        if gguf is not None:
            need("gguf")
    where = [str(folder if gguf is None else gguf.parent), PROMPT, str(new), *([] if gguf is None else [gguf.name])]
    commands = {
        "plait": [sys.executable, "-m", "plait.cli", "run", str(Path(gguf or folder)), PROMPT, "--max-new-tokens", str(new)],
        "transformers": [sys.executable, "-c", THEIRS, *where],
    }
    return {name: Process(commands[name]) for name in names}


def run(model: str, rounds: int, names: list[str], new: int = 1) -> dict[str, Any]:
    """Seconds of each process to its `new`th token; the first round fills the file cache."""
    made = contestants(model, names, new)
    work: dict[str, Callable[[], Any]] = {**made}
    times = Turns(work, rounds).run().times
    rows = {
        name: {"what": WHAT[name], "seconds": times[name], "median": median(times[name]), "peak_bytes": one.peak, "said": one.said.strip()}
        for name, one in made.items()
    }
    return {"model": model, "new": new, "contestants": rows, "ratios": compared(times, "plait")}


def shown(found: dict[str, Any]) -> str:
    rows = [["", "seconds", "peak MB", "plait takes this share of its time, and said"]]
    for name, row in found["contestants"].items():
        ratio = found["ratios"].get(name)
        share = "" if ratio is None else f"1/{ratio['median']:.1f}"
        rows.append([name, f"{row['median']:.1f}", f"{row['peak_bytes'] / 1e6:,.0f}", f"{share:8}{row['said'].splitlines()[0]!r}"])
    return "\n".join([f"{found['new']} token{'s' * (found['new'] > 1)} of {found['model']}, process and all", *aligned(rows)])
