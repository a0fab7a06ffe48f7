"""Training tokens a second of a GPT-2: ours, nanoGPT's and transformers' Trainer, each in its own process, in turn, on the same batch.

All begin with the same weights and take the same steps of AdamW in float32, which their losses show.
"""

import importlib.util
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from plait.bench.libraries import need
from plait.bench.measure import compared, summary, table
from plait.bench.processes import Steps, Worker
from plait.core.losses import linear_cross_entropy
from plait.core.model import Model
from plait.errors import InputError
from plait.models import gpt2
from plait.train.allocator import keep_freed_memory
from plait.train.optimizers import Adam
from plait.train.sizing import product_rate
from plait.weights.rules import export

RATE, BETAS, DECAY = 1e-3, (0.9, 0.95), 0.1  # nanoGPT's, for its characters
CLIP = 1.0


@dataclass(frozen=True)
class Shape:
    d_model: int
    n_heads: int
    n_layers: int
    context: int
    vocab_size: int
    rows: int

    @property
    def tokens(self) -> int:
        return self.rows * self.context

    def operations(self) -> int:
        """Of a step: 6 a weight and token (Kaplan et al. 2020, section 2.1), biases, norms, positions and attention's scores left out."""
        return 6 * self.tokens * (12 * self.n_layers * self.d_model**2 + self.vocab_size * self.d_model)

    def __str__(self) -> str:
        size = f"{self.n_layers} x {self.d_model}, {self.n_heads} heads, context {self.context}, vocabulary {self.vocab_size:,}"
        return f"GPT-2 of {size}; {self.rows} rows a step"


SHAPES = {
    "characters": Shape(384, 6, 6, 256, 65, 8),  # nanoGPT's for one GPU, with an eighth of its rows
    "characters-small": Shape(128, 4, 4, 64, 65, 12),  # nanoGPT's for a CPU
    "bpe": Shape(256, 4, 4, 256, 50304, 4),
}
WHAT = {
    "plait": "plait.models.gpt2, linear_cross_entropy, plait's AdamW and clipping, as plait train takes a step",
    "plait compiled": "the same with torch.compile",
    "nanogpt": "its model.py with its configure_optimizers, fused, and clipping, as its train.py takes a step",
    "nanogpt compiled": "the same with torch.compile, as its train.py does",
    "trainer": "GPT2LMHeadModel in transformers' Trainer as it comes, with the same rates and clipping",
}


def network(s: Shape) -> Model:
    torch.manual_seed(0)
    return gpt2.build(gpt2.Config(s.vocab_size, s.context, s.d_model, s.n_heads, s.n_layers, activation="gelu", dropout=0.0))


class Contestant(Steps):
    """On random ids, the same for all."""

    def __init__(self, shape: dict[str, Any]):
        self.shape = Shape(**shape)
        keep_freed_memory()  # as plait train does; all gain by it
        draw = torch.Generator().manual_seed(1)
        ids = torch.randint(self.shape.vocab_size, (self.shape.rows, self.shape.context + 1), generator=draw)
        self.inputs, self.targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


class Plait(Contestant):
    def __init__(self, shape: dict[str, Any], compiled: bool):
        super().__init__(shape)
        self.net = network(self.shape).train()
        named = dict(self.net.named_parameters())
        matrices = {name: p for name, p in named.items() if p.ndim > 1}
        vectors = {name: p for name, p in named.items() if p.ndim == 1}
        self.optimizers = [Adam(group, RATE, BETAS, 1e-8, decay) for group, decay in ((matrices, DECAY), (vectors, 0.0))]
        self.parameters = list(named.values())
        self.loss = torch.compile(self.of) if compiled else self.of

    def of(self, inputs: Tensor, targets: Tensor) -> Tensor:
        hidden = self.net(inputs)["decoder"].x.flatten(0, 1)
        return linear_cross_entropy(hidden, self.net.heads["lm"].weight, None, targets.flatten())[0]  # type: ignore[arg-type]

    def step(self) -> float:
        for p in self.parameters:
            p.grad = None
        loss = self.loss(self.inputs, self.targets)
        loss.backward()
        divide = torch.tensor(float(self.shape.tokens))
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]) / divide
        divide = divide * torch.clamp((norm + 1e-6) / CLIP, min=1.0)
        for optimizer in self.optimizers:
            optimizer.step(1.0, divide)
        return float(loss.detach()) / self.shape.tokens


def theirs(shape: Shape, transposed: bool) -> dict[str, Tensor]:
    """Our first weights under GPT-2's released names; nanoGPT has the matrices that those store as [d_in, d_out] the other way."""
    tensors = export(network(shape), gpt2.RULES)
    turned = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    return {name: t.t().contiguous() if transposed and name.endswith(turned) else t for name, t in tensors.items()}


class NanoGPT(Contestant):
    def __init__(self, shape: dict[str, Any], compiled: bool, folder: str):
        super().__init__(shape)
        path = Path(folder) / "model.py"
        if not path.exists():
            raise InputError(f"{path}: is not there: give the folder of nanoGPT's repository")
        spec = importlib.util.spec_from_file_location("nanogpt_model", path)
        assert spec is not None and spec.loader is not None
        page = sys.modules["nanogpt_model"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(page)
        s = self.shape
        sizes = {"block_size": s.context, "n_layer": s.n_layers, "n_head": s.n_heads, "n_embd": s.d_model}
        net = page.GPT(page.GPTConfig(vocab_size=s.vocab_size, dropout=0.0, bias=True, **sizes)).train()
        missing, unknown = net.load_state_dict(theirs(s, transposed=True), strict=False)
        assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)  # which is the embedding
        groups = net.configure_optimizers(DECAY, RATE, BETAS, "cpu").param_groups
        kept = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in groups]
        # It asks for the fused kernel on CUDA alone; torch has one for the CPU too, and it is given it.
        self.optimizer, self.parameters = torch.optim.AdamW(kept, lr=RATE, betas=BETAS, fused=True), list(net.parameters())
        self.net = torch.compile(net) if compiled else net

    def step(self) -> float:
        _, loss = self.net(self.inputs, self.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


class HuggingFace(Contestant):
    """`Trainer` runs a loop of its own: each turn is a `train` of so many steps that begins with what the last one left.

    It is timed from the beginning of its first step, so that making the loop is not counted.
    """

    def __init__(self, shape: dict[str, Any]):
        super().__init__(shape)
        self.library, s = need("transformers"), self.shape
        need("accelerate")
        self.library.logging.set_verbosity_error()
        sizes = {"n_positions": s.context, "n_embd": s.d_model, "n_layer": s.n_layers, "n_head": s.n_heads}
        off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        ends = {"bos_token_id": None, "eos_token_id": None}
        config = self.library.GPT2Config(vocab_size=s.vocab_size, activation_function="gelu", use_cache=False, **sizes, **off, **ends)
        self.net = self.library.GPT2LMHeadModel(config)
        missing, unknown = self.net.load_state_dict(theirs(s, transposed=False), strict=False)
        assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)
        self.optimizer: Any = None

    def go(self, steps: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            told: list[float] = []
            clock: list[float] = []
            # Shifting `labels` itself it would leave the last input without a target; `shift_labels` are taken as they come.
            batch = {"input_ids": self.inputs, "labels": self.targets, "shift_labels": self.targets}
            library = self.library

            class Rows(torch.utils.data.IterableDataset):
                """Batches ready made: what a collator costs is not counted against it."""

                def __iter__(self) -> Any:
                    while True:
                        yield batch

            class Losses(library.Trainer):
                def compute_loss(self, *args: Any, **options: Any) -> Any:
                    loss = super().compute_loss(*args, **options)
                    told.append(float((loss[0] if isinstance(loss, tuple) else loss).detach()))
                    return loss

            class Clock(library.TrainerCallback):
                def on_step_begin(self, *_: Any, **__: Any) -> None:
                    clock.append(time.perf_counter())

                on_step_end = on_step_begin

            arguments = library.TrainingArguments(
                output_dir=folder,
                use_cpu=True,
                max_steps=steps,
                per_device_train_batch_size=1,
                learning_rate=RATE,
                lr_scheduler_type="constant",
                adam_beta1=BETAS[0],
                adam_beta2=BETAS[1],
                weight_decay=DECAY,
                max_grad_norm=CLIP,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=False,
                remove_unused_columns=False,
            )
            trainer = Losses(
                self.net,
                arguments,
                data_collator=lambda one: one[0],
                train_dataset=Rows(),
                optimizers=(self.optimizer, None),
                callbacks=[Clock()],
            )
            trainer.remove_callback(library.PrinterCallback)
            trainer.train()
            self.optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
            return {"losses": told, "seconds": clock[-1] - clock[0]}


class Limit:
    """What the machine multiplies at best."""

    def go(self) -> float:
        return product_rate()


def run(
    shape: Shape, rounds: int, only: list[str], scratch: Path, threads: int, nanogpt: str | None = None, steps: int = 4
) -> dict[str, Any]:
    """A turn is `steps` steps; the first turn warms up and compiles. Who cannot take part is told of in `failed`."""
    page = "plait.bench.train_language:"
    makers: dict[str, tuple[str, dict[str, Any]]] = {
        "plait": ("Plait", {"compiled": False}),
        "plait compiled": ("Plait", {"compiled": True}),
        "nanogpt": ("NanoGPT", {"compiled": False, "folder": nanogpt}),
        "nanogpt compiled": ("NanoGPT", {"compiled": True, "folder": nanogpt}),
        "trainer": ("HuggingFace", {}),
    }
    failed: dict[str, str] = {}
    workers: dict[str, Worker] = {}
    told: dict[str, list[dict[str, Any]]] = {}
    try:
        limit = workers["limit"] = Worker("limit", page + "Limit", {}, threads, scratch / "limit.log")
        for name in [name for name in makers if name in only]:
            if name.startswith("nanogpt") and nanogpt is None:
                failed[name] = "its folder was not given (--nanogpt FOLDER)"
                continue
            try:
                made, options = makers[name]
                workers[name] = Worker(name, page + made, {"shape": asdict(shape), **options}, threads, scratch / f"{made}.log")
            except InputError as error:
                failed[name] = str(error)
        rates = []
        for i in range(1 + rounds):
            print(f"round {i} of {rounds}" if i else "warming up", file=sys.stderr, flush=True)
            rates.append(limit.ask("go")["answer"])
            for name, worker in list(workers.items()):
                if name == "limit":
                    continue
                try:
                    told.setdefault(name, []).append(worker.ask("go", steps=steps))
                except InputError as error:
                    failed[name] = str(error)
                    told.pop(name, None)
                    workers.pop(name).close()
    finally:
        for worker in workers.values():
            worker.close()
    times = {name: [turn["answer"]["seconds"] for turn in turns[1:]] for name, turns in told.items()}
    ours = [name for name in ("plait", "plait compiled") if name in times]
    best = min(ours, key=lambda name: median(times[name]), default="plait")
    found = summary(times, steps * shape.tokens, steps * shape.operations(), max(rates), best)
    for name, row in found["contestants"].items():
        losses = [loss for turn in told[name] for loss in turn["answer"]["losses"]]
        row |= {"what": WHAT[name], "losses": losses, "peak_bytes": told[name][-1].get("peak_bytes")}
    others = {name: compared(times, name) for name in ours}
    return {"shape": asdict(shape), "described": str(shape), "steps": steps, "ours": best, "ratios_of": others, "failed": failed, **found}


def shown(found: dict[str, Any]) -> str:
    lines = [table(f"training, float32, AdamW, {found['described']}", found, found["ours"])]
    lines += [f"{name} takes no part: {why}" for name, why in found["failed"].items()]
    return "\n".join(lines)
