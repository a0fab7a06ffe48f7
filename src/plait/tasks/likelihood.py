"""How likely a text is to a language model: nats a token, over windows where it is longer than one pass should be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from plait.core.model import Model

ROWS = 256  # hidden vectors whose scores over the vocabulary are held at a time


@dataclass(frozen=True)
class Likelihood:
    """Of `tokens` scored ones (the first of a text has nothing before it): the mean negative log-probability, in nats."""

    nats_per_token: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token)


@torch.inference_mode()
def likelihood(net: Model, ids: Sequence[int], window: int, stride: int, head: str = "lm") -> Likelihood:
    """Each id but the first (at least two are given), once: in the first window of `window` ids that reaches it.

    Windows begin `stride` < `window` apart, so later ids have `window - stride` or more before them.
    """
    row, total, done = torch.tensor(list(ids), device=next(net.parameters()).device), 0.0, 1
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        hidden = net.run("decoder", row[None, begin:end]).x[0, done - begin - 1 : end - begin - 1]  # [new, D]
        for some, right in zip(hidden.split(ROWS), row[done:end].split(ROWS), strict=True):
            scores = net.heads[head](some).float()
            total += float((scores.logsumexp(-1) - scores.gather(-1, right[:, None])[:, 0]).sum(dtype=torch.float64))
        done = end
        if done == len(ids):
            break
    return Likelihood(total / (len(ids) - 1), len(ids) - 1)
