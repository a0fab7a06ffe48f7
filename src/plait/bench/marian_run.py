"""The contestant of `plait bench quality`: MarianMTModel trained for some minutes on a built-in set, then scored; a process of its own.

python -m plait.bench.marian_run cmudict 5

It gets the same reading, cleaning, split, tokenizers and batches by length as ours; its minutes count from the start of the process,
as ours do. AdamW with the usual settings: 200 steps of warm-up, then straight down to zero over the minutes, gradients clipped at 1.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from plait.bench.operations import Shape
from plait.bench.peers import marian, with_weights_of
from plait.bench.train_speed import labels, padding
from plait.core.model import parameters
from plait.data.batches import BatchOrder
from plait.data.builtin import load
from plait.data.corpus import Corpus
from plait.data.split import answers
from plait.tasks.metrics import score
from plait.tasks.translation import Translator
from plait.train.log import process_age
from plait.verbs.train import Train
from plait.verbs.training import read, tokenizers_for

SHAPE = dict(d_model=160, n_heads=4, n_layers=2, d_ff=640)  # 1.4 M parameters on cmudict
RATE, WARMUP, BATCH_TOKENS, DROPOUT = 1e-3, 200, 2048, 0.0


def run(data: str, minutes: float, dropout: float = DROPOUT) -> dict[str, Any]:
    started = time.perf_counter() - process_age()
    say = lambda text: print(text, file=sys.stderr)  # noqa: E731
    verb = Train("translation", Path("unused"), [data], minutes=minutes)
    parts = read(verb, say)
    source, target = tokenizers_for(verb, parts, say)
    corpus = Corpus.encode(parts.train, source, target, verb.context, verb.context)
    shape = Shape(source_vocab=source.vocab_size, target_vocab=target.vocab_size, joint=source is target, **SHAPE)
    torch.manual_seed(0)
    peer = marian(shape, pad=target.pad_id, start=target.bos_id, end=target.eos_id, dropout=dropout).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=RATE)
    step, tokens = 0, 0
    for _, _, rows in BatchOrder(corpus.lengths, BATCH_TOKENS).stream():
        progress = (time.perf_counter() - started) / (60 * minutes)
        if progress >= 1:
            break
        step += 1
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, step / WARMUP) * (1 - progress)
        batch = corpus.batch(rows)
        optimizer.zero_grad()
        loss = peer(input_ids=batch.source, attention_mask=padding(batch.source_real), labels=labels(batch)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        tokens += int(batch.source_real.sum()) + batch.n_target
        if step % 200 == 0:
            say(f"step {step}  loss {loss.item():.4f}")
    seconds = time.perf_counter() - started
    # Scored through our search, with its weights in our 2017 page: tests/parity shows that both compute the same.
    net = with_weights_of(peer.eval(), shape)
    right = answers(load(data, "test"))
    translate = Translator(net, source, target, verb.context, int(1.25 * corpus.targets.lengths.max()) + 4)
    found = {}
    for beams in (1, 4):
        given = [answer.text for answer in translate(list(right), beams=beams)]
        found[f"beam {beams}"] = score(given, list(right.values()))[0]
    return {"metrics": found, "parameters": parameters(peer), "steps": step, "tokens": tokens, "seconds": seconds, "shape": str(shape)}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], float(sys.argv[2]))))
