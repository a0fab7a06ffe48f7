"""A LoRA step of a released language model: ours, and PEFT's on transformers' model, each in its own process, in turn, on the same batch.

Both load the same folder and take the same number of steps of AdamW, in float32, on the same low-rank products beside q and v.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from plait.bench.libraries import need
from plait.bench.measure import aligned, compared
from plait.bench.processes import Steps, Worker
from plait.core.losses import linear_cross_entropy
from plait.train.allocator import keep_freed_memory

RATE, CLIP, TARGETS = 5e-4, 1.0, ("q_proj", "v_proj")


@dataclass(frozen=True)
class Job:
    rows: int = 4
    length: int = 256
    rank: int = 8
    model: str = "smollm2"

    @property
    def tokens(self) -> int:
        return self.rows * self.length


WHAT = {
    "plait": "plait.tune.attach(net, LoRA), linear_cross_entropy, plait's AdamW and clipping, as plait tune takes a step",
    "peft": "peft's LoraConfig on AutoModelForCausalLM, the model's own loss, torch's fused AdamW, clip_grad_norm_",
    "peft recomputing": "the same with gradient_checkpointing_enable",
}


class Contestant(Steps):
    """On random ids, the same for all."""

    def __init__(self, job: dict[str, Any]):
        self.job = Job(**job)
        keep_freed_memory()  # as plait train does; all gain by it
        draw = torch.Generator().manual_seed(1)
        self.ids = torch.randint(1000, 40000, (self.job.rows, self.job.length + 1), generator=draw)


class Plait(Contestant):
    def __init__(self, job: dict[str, Any], folder: str):
        from plait import tune
        from plait.hub.checkpoints import open_net
        from plait.train.recipes import small

        super().__init__(job)
        self.net = open_net(Path(folder))[0].train()
        targets = tuple(f"*.{name}" for name in TARGETS)
        tune.attach(self.net, tune.LoRA(rank=self.job.rank, alpha=2 * self.job.rank, targets=targets), also=())
        self.parameters = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = small("lora", 768).optimizer(self.net)

    def step(self) -> float:
        for p in self.parameters:
            p.grad = None
        hidden = self.net(self.ids[:, :-1])["decoder"].x.flatten(0, 1)
        loss = linear_cross_entropy(hidden, self.net.heads["lm"].weight, None, self.ids[:, 1:].flatten())[0]  # type: ignore[arg-type]
        loss.backward()
        divide = torch.tensor(float(self.job.tokens))
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]) / divide
        self.optimizer.step(1.0, divide * torch.clamp((norm + 1e-6) / CLIP, min=1.0))
        return float(loss.detach()) / self.job.tokens


class Peft(Contestant):
    def __init__(self, job: dict[str, Any], folder: str, recompute: bool):
        super().__init__(job)
        peft, transformers = need("peft"), need("transformers")
        net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        net.config.use_cache = False
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=self.job.rank, lora_alpha=2 * self.job.rank, target_modules=list(TARGETS))
        self.net = peft.get_peft_model(net, config).train()
        if recompute:
            self.net.gradient_checkpointing_enable()
            self.net.enable_input_require_grads()
        self.parameters = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=RATE, fused=True)

    def step(self) -> float:
        targets = self.ids[:, 1:].contiguous()
        loss = self.net(input_ids=self.ids[:, :-1], labels=targets, shift_labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def run(job: Job, rounds: int, only: list[str], scratch: Path, threads: int, steps: int = 3) -> dict[str, Any]:
    from plait.hub import place
    from plait.hub.writing import convert

    folder = scratch / "model"
    convert(place(job.model), "hf", folder, "f32")
    makers: dict[str, tuple[str, dict[str, Any]]] = {
        "plait": ("Plait", {}),
        "peft": ("Peft", {"recompute": False}),
        "peft recomputing": ("Peft", {"recompute": True}),
    }
    times: dict[str, list[float]] = {name: [] for name in only}
    peaks, losses, workers = {}, {}, {}
    try:
        for name in only:
            make, options = makers[name]
            given = {"job": asdict(job), "folder": str(folder), **options}
            workers[name] = Worker(name, f"plait.bench.tune_speed:{make}", given, threads, scratch / f"{name}.log")
            losses[name] = workers[name].ask("go", steps=1)["answer"]["losses"]
        for _ in range(rounds):
            for name, worker in workers.items():
                said = worker.ask("go", steps=steps)
                times[name].append(said["answer"]["seconds"])
                losses[name] += said["answer"]["losses"]
                peaks[name] = said["peak_bytes"]
    finally:
        for worker in workers.values():
            worker.close()
    rows = {
        name: {
            "what": WHAT[name],
            "seconds": times[name],
            "tokens_per_second": steps * job.tokens / median(times[name]),
            "peak_bytes": peaks[name],
            "losses": losses[name],
        }
        for name in only
    }
    return {"shape": asdict(job), "steps": steps, "contestants": rows, "ratios": compared(times, "plait")}


def shown(found: dict[str, Any]) -> str:
    lines = [["", "tokens/s", "peak memory", "plait is so many times as fast", "first and last loss"]]
    for name, row in found["contestants"].items():
        ratio = found["ratios"].get(name)
        times = "" if ratio is None else f"{ratio['median']:.2f}  ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
        peak, ends = f"{row['peak_bytes'] / 2**20:,.0f} MiB", f"{row['losses'][0]:.4f} {row['losses'][-1]:.4f}"
        lines.append([name, f"{row['tokens_per_second']:,.0f}", peak, times, ends])
    s = found["shape"]
    return "\n".join([f"LoRA of rank {s['rank']} on {s['model']}, {s['rows']} rows of {s['length']} tokens, float32", *aligned(lines)])
