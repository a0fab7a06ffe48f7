"""Automatic sizing: from the amount of data and the budget to a model, a vocabulary and a batch, with the reasons in words."""

import time
from collections.abc import Sequence
from itertools import islice

import torch

EPOCHS_WANTED = 1.0  # a larger model is taken only if the budget still shows it the data this often
TOKENS_A_PARAMETER = 1 / 8  # a model may have at most this many parameters a training token, or it learns the data by heart at once
UTILISATION = 0.45  # of the product rate, in training small models; docs/log.md has the measurements


def product_rate(size: int = 512, seconds: float = 0.4) -> float:
    """Multiply-adds x 2 a second of a float32 matrix product on this machine, in FLOP/s: the best within `seconds`.

    The best, since other work on the machine may come between, and the first products start the threads.
    """
    a = torch.randn(size, size)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
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


def epochs_for(parameters: int, tokens: int, seconds: float, flops: float) -> float:
    """How often the budget shows the data to a model of this size: 6 operations a weight and token."""
    return UTILISATION * flops * seconds / (6 * parameters * max(tokens, 1))


def pick(counts: dict[str, int], tokens: int, *, seconds: float | None = None, flops: float = 0.0) -> str:
    """Of the presets with these parameter counts the largest that the data, and the time where that is the budget, can train."""
    fitting = [name for name, n in counts.items() if n * TOKENS_A_PARAMETER <= tokens] or [min(counts, key=lambda name: counts[name])]
    if seconds is not None:
        enough = [name for name in fitting if epochs_for(counts[name], tokens, seconds, flops) >= EPOCHS_WANTED]
        fitting = enough or [min(fitting, key=lambda name: counts[name])]
    return max(fitting, key=lambda name: counts[name])


def regularisation(epochs: float) -> tuple[float, float]:
    """(dropout, label smoothing): nothing while every batch is nearly new, more the more often the data come again."""
    if epochs < 6:
        return 0.0, 0.0
    return (0.1 if epochs < 25 else 0.2 if epochs < 60 else 0.3), 0.1


STEP_TOKENS = 4096  # tokens a batch where the budget is a number of steps
UPDATES = 1800  # what a short budget is cut into: fewer leave Muon too few steps, more make products too small for the cores


def batch_tokens(tokens: int, epochs: float) -> int:
    """Tokens a batch, for a run that sees `tokens` training tokens `epochs` times."""
    return int(min(max(tokens * epochs / UPDATES, 1024), 8192))
