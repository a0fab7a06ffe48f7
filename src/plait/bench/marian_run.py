"""The peer of `quality`: MarianMTModel in a plain AdamW loop, with all that a careful user would give it, in a process of its own.

It reads, cleans, splits, tokenizes and batches with our code, so both see the same; fused AdamW, clipping, a warm-up and a linear decay
over the budget; no evaluation takes of its time. Its minutes count from the start of the process, imports included, as ours do.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plait.bench.operations import Shape
from plait.bench.peers import marian, need
from plait.data.batches import Batch
from plait.data.corpus import Corpus
from plait.text.tokenizer import Tokenizer
from plait.train.log import Reporter, process_age
from plait.train.schedules import linear_decay
from plait.verbs.lessons.translation import read, tokenizers_for
from plait.verbs.train import Train

RESULT, WEIGHTS, SOURCE, TARGET = "result.json", "weights.pt", "source.json", "target.json"
WARMUP = 200
CONTEXT = 256


@dataclass(frozen=True)
class Settings:
    data: str
    out: str
    size: dict[str, int]
    rate: float
    dropout: float
    smoothing: float
    batch_tokens: int
    minutes: float | None
    steps: int | None
    threads: int
    seed: int


def loss_of(net: Any, batch: Batch, smoothing: float) -> torch.Tensor:
    mask = None if bool(batch.source_real.all()) else batch.source_real.long()
    scores = net(input_ids=batch.source, attention_mask=mask, decoder_input_ids=batch.target_in, use_cache=False).logits
    labels = batch.target_out.masked_fill(~batch.target_real, -100)
    return nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), label_smoothing=smoothing, reduction="sum") / batch.n_target


@torch.no_grad()
def valid_loss(net: Any, corpus: Corpus) -> float:
    net.eval()
    total, count = 0.0, 0
    for batch in corpus.feed(8192).all():
        total, count = total + float(loss_of(net, batch, 0.0)) * batch.n_target, count + batch.n_target
    return total / max(count, 1)


def train(s: Settings) -> dict[str, Any]:
    started = time.perf_counter() - process_age()
    torch.set_num_threads(s.threads)
    say = Reporter().say
    need("transformers").logging.set_verbosity_error()
    verb = Train("translation", Path(s.out), [s.data], minutes=s.minutes, steps=s.steps, seed=s.seed)
    data = read(verb, say)
    source, target = tokenizers_for(verb, data, say)
    corpus, valid = (Corpus.encode(part, source, target, CONTEXT, CONTEXT) for part in (data.train, data.valid))
    torch.manual_seed(s.seed)
    shape = Shape(**s.size, source_vocab=source.vocab_size, target_vocab=target.vocab_size, joint=source is target)
    net = marian(shape, pad=source.pad_id, start=target.bos_id, end=target.eos_id, dropout=s.dropout).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=s.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = linear_decay(WARMUP)
    steps = tokens = 0
    told = started
    for _, _, batch in corpus.feed(s.batch_tokens, s.seed).stream(0, 0):
        now = time.perf_counter()
        progress = steps / s.steps if s.steps else (now - started) / (60 * (s.minutes or 1))
        if progress >= 1:
            break
        steps += 1
        for group in optimizer.param_groups:
            group["lr"] = s.rate * schedule(steps, progress)
        optimizer.zero_grad()
        loss = loss_of(net, batch, s.smoothing)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        tokens += int(batch.source_real.sum()) + batch.n_target
        if now - told > 15:
            told = now
            say(f"{100 * progress:5.1f}%  step {steps}  loss {loss.item():.3f}  {tokens / (now - started):,.0f} tokens/s")
    seconds = time.perf_counter() - started
    out = Path(s.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), out / WEIGHTS)
    source.save(out / SOURCE)
    target.save(out / TARGET)
    longest = min(CONTEXT, int(1.25 * corpus.targets.lengths.max()) + 4)  # as ours
    parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
    found = {"shape": asdict(shape), "parameters": parameters, "longest": longest, "steps": steps, "tokens": tokens, "seconds": seconds}
    return {**found, "tokens_per_second": tokens / seconds, "valid_loss": valid_loss(net, valid)}


def write(found: dict[str, Any], out: Path) -> None:
    (out / RESULT).write_text(json.dumps(found, indent=2))


def opened(out: Path) -> Callable[[list[str], int], list[str]]:
    """The trained peer as (sources, beams) -> answers, by its own `generate` with its own length penalty."""
    found = json.loads((out / RESULT).read_text())
    source, target = Tokenizer.load(out / SOURCE), Tokenizer.load(out / TARGET)
    need("transformers").logging.set_verbosity_error()
    net = marian(Shape(**found["shape"]), pad=source.pad_id, start=target.bos_id, end=target.eos_id).eval()
    net.load_state_dict(torch.load(out / WEIGHTS, weights_only=True))

    def translate(texts: list[str], beams: int, batch: int = 64) -> list[str]:
        rows = [row[:CONTEXT] for row in source.encode_batch(texts)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        answers = [""] * len(texts)
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            width = max(1, *(len(rows[i]) for i in part))
            ids = torch.tensor([rows[i] + [source.pad_id] * (width - len(rows[i])) for i in part])
            mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in part])
            out = net.generate(ids, attention_mask=mask, num_beams=beams, do_sample=False, max_new_tokens=found["longest"])
            for i, row in zip(part, out[:, 1:].tolist(), strict=True):
                answers[i] = target.decode(row[: row.index(target.eos_id)] if target.eos_id in row else row)
        return answers

    return translate


if __name__ == "__main__":
    settings = Settings(**json.loads(sys.argv[1]))
    write(train(settings), Path(settings.out))
