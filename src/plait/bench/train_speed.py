"""Training tokens a second, ours against loops that others would write, step by step in turn."""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from plait.bench.measure import PRODUCT, Product, Turns, summary, table
from plait.bench.operations import Shape, training
from plait.bench.peers import TorchTransformer, marian, need, ours
from plait.data.batches import Batch, BatchOrder, collate
from plait.data.feed import RowFeed
from plait.tasks.translation import TeacherForcing
from plait.train.log import Reporter
from plait.train.loop import Trainer
from plait.train.recipes import Recipe
from plait.train.state import Budget, Settings

SMOOTHING = 0.1
PAD, START, END, FIRST = 0, 1, 2, 4  # as in our tokenizers; ids from FIRST on are words
RATE = 5e-4
RECIPES = {
    "plait": ("vaswani", Recipe("adam", RATE, RATE, "linear", 50, 0.01)),
    "plait modern": ("modern", Recipe("muon", 0.03, 0.008, "linear", 50, 0.0, (0.9, 0.95), 1e-10)),
}
PEERS = ("marian", "trainer", "torch")
WHAT = {
    "plait": "plait.models.vaswani in plait.train.loop.Trainer: fused AdamW, clipping at 1, label smoothing 0.1, all checks of the loop",
    "plait modern": "plait.models.modern and Muon, the default of plait train: another model, no equal shape of parameters",
    "marian": "MarianMTModel, torch.optim.AdamW as it comes, the model's own loss: no label smoothing, no clipping",
    "trainer": "MarianMTModel in Seq2SeqTrainer as it comes (AdamW, clipping at 1), label_smoothing_factor=0.1",
    "torch": "torch.nn.Transformer, torch.optim.AdamW as it comes, cross_entropy with label_smoothing=0.1, no clipping",
}


@dataclass(frozen=True)
class Job:
    """A shape and its batches: `rows` pairs of `length` tokens a side, or (`data`) a built-in set as plait trains on it."""

    shape: Shape
    rows: int = 32
    length: int = 32
    data: str | None = None
    batch_tokens: int = 4096


JOBS = {
    "medium": Job(Shape(256, 4, 4, 1024, 8000, 8000)),
    "characters": Job(Shape(128, 4, 3, 512, 0, 0, joint=False), data="cmudict"),
}


def random_batches(job: Job, n: int, seed: int = 0) -> list[Batch]:
    """Every row full: no padding. The target's end takes one of its `length` places."""
    draw = np.random.default_rng(seed)

    def row(vocab: int, length: int) -> list[int]:
        return draw.integers(FIRST, vocab, length).tolist()

    s = job.shape
    return [collate([(row(s.source_vocab, job.length), row(s.target_vocab, job.length - 1)) for _ in range(job.rows)]) for _ in range(n)]


def real_batches(job: Job, n: int, seed: int = 0) -> tuple[Shape, list[Batch]]:
    """Batches of a built-in set, encoded, bucketed and padded as `plait train` does it; the shape gets the tokenizers' sizes."""
    from plait.data.corpus import Corpus
    from plait.verbs.lessons.translation import read, tokenizers_for
    from plait.verbs.train import Train

    def hush(_: str) -> None: ...

    verb = Train("translation", Path("unused"), [job.data or ""], steps=1, seed=seed)
    data = read(verb, hush)
    source, target = tokenizers_for(verb, data, hush)
    corpus = Corpus.encode(data.train, source, target, 256, 256)
    rows = BatchOrder(corpus.lengths, job.batch_tokens, seed).batches(0)[:n]
    sizes = {"source_vocab": source.vocab_size, "target_vocab": target.vocab_size, "joint": source is target}
    return Shape(**{**asdict(job.shape), **sizes}), [corpus.batch(r) for r in rows]


# ---- the contestants: each a function that takes one step on a batch ----


def plait_step(shape: Shape, name: str, folder: Path, dropout: float) -> Callable[[Batch], None]:
    """The step of the real loop, checks, clipping and bookkeeping included."""
    arch, recipe = RECIPES[name]
    net = ours(shape, arch, dropout)
    loop = Trainer(
        net,
        TeacherForcing(SMOOTHING),
        recipe.optimizer,
        recipe.schedule(),
        RowFeed(BatchOrder(np.ones((1, 2)), 2), lambda rows, epoch: None),  # `loop.step` is called with the batches of the bench
        [],
        Budget(steps=10**6),
        Settings(),
        folder / name.replace(" ", "-"),
        Reporter(quiet=True),
    )
    net.train()
    return loop.step


def labels(batch: Batch) -> torch.Tensor:
    return batch.target_out.masked_fill(~batch.target_real, -100)


def padding(real: torch.Tensor) -> torch.Tensor | None:
    """The attention mask in Hugging Face's form; None where nothing is padded, which spares them work."""
    return None if bool(real.all()) else real.long()


def marian_step(shape: Shape, dropout: float) -> Callable[[Batch], None]:
    net = marian(shape, pad=PAD, start=START, end=END, dropout=dropout).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        net(input_ids=batch.source, attention_mask=padding(batch.source_real), labels=labels(batch)).loss.backward()
        optimizer.step()

    return step


def torch_step(shape: Shape, dropout: float) -> Callable[[Batch], None]:
    net = TorchTransformer(shape, dropout).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        pad = None if bool(batch.source_real.all()) else ~batch.source_real
        scores = net(batch.source, batch.target_in, pad)
        nn.functional.cross_entropy(scores.flatten(0, 1), labels(batch).flatten(), label_smoothing=SMOOTHING).backward()
        optimizer.step()

    return step


def run_trainer(shape: Shape, batches: Iterator[Batch], turns: Turns, folder: Path, dropout: float) -> None:
    """`Seq2SeqTrainer` runs its own loop; after each of its steps the others take their turn. Its time is from turn to turn."""
    transformers = need("transformers")
    need("accelerate")
    total = turns.warmup + turns.rounds

    class Take(transformers.TrainerCallback):
        since: float | None = None

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.since = self.since or time.perf_counter()  # the first step's data was fetched before; it is a warm-up

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.note("trainer", time.perf_counter() - (self.since or 0.0))
            turns.round()
            self.since = time.perf_counter()

    class Rows(torch.utils.data.IterableDataset):
        """Batches ready made: what a collator costs is not counted against it."""

        def __iter__(self) -> Iterator[dict[str, Any]]:
            for batch in batches:
                mask = padding(batch.source_real)
                made = {"input_ids": batch.source, "labels": labels(batch), "decoder_input_ids": batch.target_in}
                yield made if mask is None else {**made, "attention_mask": mask}

    arguments = transformers.Seq2SeqTrainingArguments(
        output_dir=str(folder / "trainer"),
        use_cpu=True,
        max_steps=total,
        per_device_train_batch_size=1,
        learning_rate=RATE,
        label_smoothing_factor=SMOOTHING,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    trainer = transformers.Seq2SeqTrainer(
        model=marian(shape, pad=PAD, start=START, end=END, dropout=dropout),
        args=arguments,
        train_dataset=Rows(),
        data_collator=lambda one: one[0],
        callbacks=[Take()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its libraries, about theirs
        trainer.train()


def run(job: Job, rounds: int, only: list[str], folder: Path, dropout: float = 0.1, warmup: int = 2, product: int = 1024) -> dict[str, Any]:
    """One step of every contestant a round, all on the same batch."""
    torch.manual_seed(0)
    names = [name for name in ("plait", *PEERS, "plait modern") if name in only]
    total = warmup + rounds
    shape, batches = (job.shape, random_batches(job, total)) if job.data is None else real_batches(job, total)
    batches = [batch for batch, _ in zip(cycle(batches), range(total), strict=False)]
    makers: dict[str, Callable[[], Callable[[Batch], None]]] = {
        "plait": lambda: plait_step(shape, "plait", folder, dropout),
        "plait modern": lambda: plait_step(shape, "plait modern", folder, dropout),
        "marian": lambda: marian_step(shape, dropout),
        "torch": lambda: torch_step(shape, dropout),
    }

    def stepping(name: str) -> Callable[[], None]:
        step, mine = makers[name](), iter(batches)
        return lambda: step(next(mine))

    rate = Product(product)
    turns = Turns({**{name: stepping(name) for name in names if name != "trainer"}, PRODUCT: rate}, rounds, warmup)
    if "trainer" in names:
        run_trainer(shape, iter(batches), turns, folder, dropout)
    else:
        turns.run()
    counted = batches[warmup:]
    tokens = sum(TeacherForcing().size(batch) for batch in counted) / rounds
    operations = sum(training(shape, len(b), b.source.shape[1], b.target_in.shape[1]) for b in counted) / rounds
    times = {name: turns.times[name] for name in names}
    found = summary(times, round(tokens), round(operations), rate.rate(rounds), "plait")
    for name, row in found["contestants"].items():
        row["what"] = WHAT[name]
    padded = sum(b.source.numel() + b.target_in.numel() for b in counted) / rounds
    return {"shape": asdict(shape), "described": str(shape), "dropout": dropout, "real_share": round(tokens / padded, 4), **found}


def shown(found: dict[str, Any]) -> str:
    of = f"{found['described']}; {found['tokens']:,} tokens a step, both sides counted, {100 * found['real_share']:.0f} % of them real"
    return table(f"training, float32, {of}", found, "plait")
