"""Sampling: which ids may be drawn, as steps over scores like the constraints, and random numbers that belong to a text.

A filter takes ids away by setting their scores to -inf, in place; it looks at the scores alone. In the order of Hugging Face's
`generate` temperature comes first, then top-k, top-p, min-p and typical.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plait.generate.constraints import NEVER


@dataclass(frozen=True)
class Temperature:
    """Scores divided by `temperature` > 0: below 1 the likely gets likelier."""

    temperature: float

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        scores.div_(self.temperature)


@dataclass(frozen=True)
class TopK:
    """The `k` likeliest ids, and those as likely as the last of them (Fan et al. 2018, section 5.4)."""

    k: int

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        least = scores.topk(min(self.k, scores.shape[1]), dim=1).values[:, -1:]
        scores[scores < least] = NEVER


@dataclass(frozen=True)
class TopP:
    """The fewest likeliest ids that have the probability `p` together (Holtzman et al. 2020, section 3.1)."""

    p: float

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        ordered, where = scores.sort(dim=1, stable=True)  # ascending: what goes is the tail with at most 1 - p
        gone = ordered.softmax(1).cumsum(1) <= 1 - self.p
        gone[:, -1] = False
        scores[gone.scatter(1, where, gone)] = NEVER


@dataclass(frozen=True)
class MinP:
    """Ids with at least `p` times the probability of the likeliest (Nguyen et al. 2024, section 3)."""

    p: float

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        probability = scores.softmax(1)
        scores[probability < self.p * probability.amax(1, keepdim=True)] = NEVER


@dataclass(frozen=True)
class Typical:
    """The ids whose surprise is nearest to the expected one, with the probability `mass` together (Meister et al. 2023, equation 11)."""

    mass: float

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        logs = scores.log_softmax(1)
        probability = logs.exp()
        expected = -(logs * probability).nansum(1, keepdim=True)  # 0 · -inf counts nothing
        ordered, where = (-logs - expected).abs().sort(dim=1, stable=True)
        before = probability.gather(1, where).cumsum(1) < self.mass
        last = ordered.gather(1, before.sum(1, keepdim=True).clamp_max(scores.shape[1] - 1))
        scores[(-logs - expected).abs() > last] = NEVER


@dataclass(frozen=True)
class Draws:
    """The random numbers of one text: a pure function of `key` and the step, so batch, order and threads do not matter.

    Philox (Salmon et al. 2011) with the step as its counter.
    """

    key: int

    @classmethod
    def of(cls, seed: int, sample: int, *prompt: Sequence[int]) -> "Draws":
        """Of the sample of that number, of a prompt (and the source beside it): other prompts and samples have unrelated numbers."""
        said = repr((seed, sample, *(list(map(int, ids)) for ids in prompt)))
        return cls(int.from_bytes(hashlib.blake2b(said.encode(), digest_size=16).digest(), "little"))

    def uniform(self, step: int) -> float:
        """In [0, 1)."""
        return np.random.Generator(np.random.Philox(key=self.key, counter=step)).random()


def drawn(scores: Tensor, uniform: Sequence[float]) -> Tensor:
    """An id of each row of scores [N, V], by the inverse of the distribution function over ids in their order, in float64."""
    total = scores.double().softmax(1).cumsum(1)  # [N, V]
    at = torch.tensor(uniform, dtype=total.dtype, device=total.device)[:, None] * total[:, -1:]
    at = torch.minimum(at, torch.nextafter(total[:, -1:], torch.zeros_like(at)))  # below the total, whatever rounding does
    return torch.searchsorted(total, at, right=True)[:, 0].clamp_max(scores.shape[1] - 1)
