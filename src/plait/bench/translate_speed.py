"""Translated tokens a second: ours against Hugging Face's `generate` and CTranslate2, all with the same weights, in turn."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.bench.measure import PRODUCT, Product, Turns, aligned, summary, table
from plait.bench.operations import Shape, decoding
from plait.bench.peers import ctranslate2, marian, need, with_weights_of
from plait.core.stream import Stream
from plait.generate.layout import for_few_rows
from plait.generate.search import mean, search

BASE = Shape(512, 8, 6, 2048, 58101, 58101)
PEERS = ("generate", "ctranslate2", "ctranslate2 int8")
REST = 0.3  # seconds between turns: Intel's OpenMP in CTranslate2 spins for 0.2 s after its work
WHAT = {
    "plait": "plait.models.vaswani with the peer's weights, plait.generate.search",
    "generate": "MarianMTModel.generate, min_new_tokens = max_new_tokens, otherwise as it comes",
    "ctranslate2": "Translator.translate_batch, float32, min_decoding_length = max_decoding_length",
    "ctranslate2 int8": "the same with int8 weights: other numbers, see `differs`",
}
Answers = list[tuple[list[int], float]]  # ids and mean log-probability of each source


def sources_of(shape: Shape, rows: int, length: int) -> Tensor:
    """Ids [rows, length] that are neither end, unknown nor padding."""
    return torch.randint(2, shape.source_vocab - 1, (rows, length), generator=torch.Generator().manual_seed(1))


def plait_answers(net: Any, ids: Tensor, beams: int, length: int, end: int, pad: int) -> Answers:
    """Exactly `length` tokens: the end is forbidden, so every beam runs to the limit."""
    found = search(net, Stream(ids), start=pad, end=end, max_length=length, beams=beams, penalty=mean(), forbidden=[end])
    return [(best.ids, best.score) for (best,) in found]


def generate_answers(peer: Any, ids: Tensor, beams: int, length: int) -> Answers:
    options = dict(num_beams=beams, do_sample=False, min_new_tokens=length, max_new_tokens=length)
    out = peer.generate(ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, output_scores=beams > 1, **options)
    scores = out.sequences_scores.tolist() if beams > 1 else [float("nan")] * len(ids)
    return list(zip(out.sequences[:, 1:].tolist(), scores, strict=True))


def ctranslate2_answers(translator: Any, words: list[str], numbers: dict[str, int], ids: Tensor, beams: int, length: int) -> Answers:
    rows = [[words[i] for i in row] for row in ids.tolist()]
    options = dict(beam_size=beams, min_decoding_length=length, max_decoding_length=length, length_penalty=1, return_scores=True)
    found = translator.translate_batch(rows, max_batch_size=0, **options)
    return [([numbers[word] for word in one.hypotheses[0]], one.scores[0]) for one in found]


def differing(found: dict[str, Answers]) -> dict[str, dict[str, float]]:
    """Beside ours: the share of sources with another answer, and by how much the mean log-probability differs at most."""
    done = {}
    for name, answers in found.items():
        if name != "plait" and "plait" in found:
            pairs = list(zip(found["plait"], answers, strict=True))
            gaps = [abs(a[1] - b[1]) for a, b in pairs if b[1] == b[1]]
            done[name] = {"other_answers": sum(a[0] != b[0] for a, b in pairs) / len(pairs), "score_gap": max(gaps, default=float("nan"))}
    return done


def contestants(shape: Shape, names: list[str], folder: Path, threads: int) -> dict[str, Callable[[Tensor, int, int], Answers]]:
    """Each a function of (source ids, beams, length)."""
    transformers = need("transformers")
    transformers.logging.set_verbosity_error()
    end, pad = 0, shape.source_vocab - 1
    peer = marian(shape, pad=pad, start=pad, end=end, dropout=0.0).eval()
    peer.generation_config.bad_words_ids = None
    made: dict[str, Callable[[Tensor, int, int], Answers]] = {}
    if "plait" in names:
        net = for_few_rows(with_weights_of(peer, shape))  # as plait.load does
        made["plait"] = lambda ids, beams, length: plait_answers(net, ids, beams, length, end, pad)
    if "generate" in names:
        made["generate"] = lambda ids, beams, length: generate_answers(peer, ids, beams, length)
    for name, kind in (("ctranslate2", "float32"), ("ctranslate2 int8", "int8")):
        if name in names:
            translator, words = ctranslate2(peer, folder / "ctranslate2", kind, threads)
            numbers = {word: i for i, word in enumerate(words)}
            made[name] = partial(ctranslate2_answers, translator, words, numbers)
    return made


def run(
    shape: Shape,
    rounds: int,
    only: list[str],
    folder: Path,
    threads: int,
    beams: list[int],
    rows: int = 16,
    source: int = 32,
    target: int = 32,
    rest: float = REST,
    product: int = 1024,
) -> dict[str, Any]:
    """One batch translated by every contestant a round; the answers of the last round are compared."""
    torch.manual_seed(0)
    names = [name for name in ("plait", *PEERS) if name in only]
    made = contestants(shape, names, folder, threads)
    ids = sources_of(shape, rows, source)
    found: dict[str, Any] = {"shape": asdict(shape), "described": str(shape), "rows": rows, "source": source, "target": target, "beams": {}}
    for width in beams:
        answers: dict[str, Answers] = {}

        def work(name: str, width: int = width, answers: dict[str, Answers] = answers) -> None:
            answers[name] = made[name](ids, width, target)

        rate = Product(product)
        turns = Turns({**{name: lambda name=name: work(name) for name in names}, PRODUCT: rate}, rounds, 1, rest).run()
        times = {name: turns.times[name] for name in names}
        one = summary(times, rows * target, decoding(shape, rows, source, target, width), rate.rate(rounds), "plait")
        for name, row in one["contestants"].items():
            row["what"] = WHAT[name]
        found["beams"][str(width)] = {**one, "differs": differing(answers)}
    return found


def shown(found: dict[str, Any]) -> str:
    parts = []
    for width, one in found["beams"].items():
        of = f"beam {width}, {found['rows']} sources of {found['source']} tokens to exactly {found['target']}"
        parts.append(table(f"translation, float32, {of}; {found['described']}", one, "plait"))
        if one["differs"]:
            rows = [["", "other answers", "largest gap of a mean log-probability"]]
            rows += [[n, f"{100 * d['other_answers']:.0f} %", f"{d['score_gap']:.1e}"] for n, d in one["differs"].items()]
            parts.append("\n".join(["beside plait's answers:", *aligned(rows)]))
    return "\n\n".join(parts)
