"""Automatic sizing: from the amount of data and the budget to a model, a vocabulary and a batch, with the reasons in words."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

EPOCHS_WANTED = 1.7  # a larger model is taken only if the budget still shows it the data this often
TOKENS_A_PARAMETER = 1 / 8  # a model may have at most this many parameters a training token, or it learns the data by heart at once
UTILISATION = 0.45  # of the product rate, in training small models; docs/log.md has the measurements


@dataclass(frozen=True)
class Shape:
    """What the data look like: tokens an epoch (both sides) and rows."""

    rows: int
    tokens: int


def product_rate(size: int = 384, repeats: int = 6) -> float:
    """Multiply-adds x 2 a second of a float32 matrix product on this machine, in FLOP/s; the best of a few, in some 10 ms."""
    a = torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def text_kind(sources: Sequence[str]) -> str:
    """`characters` for single words, `words` for a small set of symbols set apart by spaces, else `bpe`."""
    sample = list(islice(sources, 0, None, max(1, len(sources) // 5000)))
    if not sample:
        return "bpe"
    if sum(len(text.split()) == 1 for text in sample) > 0.95 * len(sample) and max(map(len, sample)) < 64:
        return "characters"
    symbols = [symbol for text in sample for symbol in text.split()]
    # A few hundred symbols that come again and again are an alphabet (phonemes, notes); words of a language never are so few.
    if len(symbols) > 20 * len(set(symbols)) and len(set(symbols)) <= 300:
        return "words"
    return "bpe"


def vocabulary(words: int) -> int:
    """Tokens of a joint subword vocabulary: 4,000 at 150 thousand running words, 32,000 at 230 million, a power law between."""
    size = 4000 * (max(words, 1) / 150e3) ** 0.284
    return int(min(max(round(size / 500) * 500, 1000), 32000))


def pick(
    counts: dict[str, int],
    tokens: int,
    *,
    seconds: float | None = None,
    epochs: float | None = None,
    rate: Callable[[], float] = product_rate,
) -> tuple[str, str]:
    """(preset, why): of the presets with these parameter counts the largest that data and budget can train."""
    fitting = [name for name, n in counts.items() if n * TOKENS_A_PARAMETER <= tokens] or [min(counts, key=lambda name: counts[name])]
    why = f"{tokens:,} training tokens"
    if seconds is not None:
        flops = rate()
        shown = {name: UTILISATION * flops * seconds / (6 * counts[name]) for name in fitting}  # 6 operations a weight and token
        enough = [name for name in fitting if shown[name] >= EPOCHS_WANTED * tokens]
        fitting = enough or [min(fitting, key=lambda name: counts[name])]
        why += f" and {seconds / 60:.0f} minutes at {flops / 1e9:.0f} GFLOP/s"
    elif epochs is not None:
        why += f" and {epochs:g} epochs"
    best = max(fitting, key=lambda name: counts[name])
    if seconds is not None:
        why += f": time for about {shown[best] / max(tokens, 1):.0f} epochs"
    return best, f"{why} ({counts[best] / 1e6:.1f} M parameters)"


def batch_tokens(tokens: int) -> int:
    """Tokens a batch: at least some hundred updates an epoch on small data, large enough to keep the products efficient on big data."""
    return int(min(max(tokens // 300, 1024), 8192))
