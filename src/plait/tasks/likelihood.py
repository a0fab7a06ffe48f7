"""How likely a text is to a language model: nats a token, over windows where it is longer than one pass should be."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor

from plait.core.model import Model

ROWS = 256  # hidden vectors whose scores over the vocabulary are held at a time
AT_ONCE = 4096  # ids that the model reads in one pass, in windows of one length


@dataclass(frozen=True)
class Likelihood:
    """Of `tokens` scored ones (the first of a text has nothing before it): the mean negative log-probability, in nats."""

    nats_per_token: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token)


def batched(items: Iterable[Any], n: int) -> Iterator[list[Any]]:
    items = iter(items)
    while some := list(islice(items, n)):
        yield some


@torch.inference_mode()
def surprisals(net: Model, ids: Sequence[int], window: int, stride: int, head: str = "lm") -> Tensor:
    """Nats [L - 1] float64 of each id but the first (at least two are given), in the first window of `window` ids that reaches it.

    Windows begin `stride` < `window` apart, so later ids have `window - stride` or more before them.
    """
    row, found, done = torch.tensor(list(ids), device=next(net.parameters()).device), list[Tensor](), 1
    spans = list[tuple[int, int, int]]()  # of a window: its first id, the first one it scores, its end
    for begin in range(0, len(ids), stride):
        spans.append((begin, done, min(begin + window, len(ids))))
        done = spans[-1][2]
        if done == len(ids):
            break
    for alike, group in groupby(spans, lambda span: (span[1] - span[0], span[2] - span[0])):
        for some in batched(group, max(1, AT_ONCE // window)):
            inputs = torch.stack([row[begin:end] for begin, _, end in some])
            hidden = net.run("decoder", inputs).x[:, alike[0] - 1 : -1].flatten(0, 1)  # [windows x new, D]
            right = torch.cat([row[first:end] for _, first, end in some])
            for x, answers in zip(hidden.split(ROWS), right.split(ROWS), strict=True):
                scores = net.heads[head](x).float()
                found.append((scores.logsumexp(-1) - scores.gather(-1, answers[:, None])[:, 0]).double().cpu())
    return torch.cat(found)


def likelihood(net: Model, ids: Sequence[int], window: int, stride: int, head: str = "lm") -> Likelihood:
    """The mean of `surprisals`."""
    found = surprisals(net, ids, window, stride, head)
    return Likelihood(float(found.mean()), len(found))
