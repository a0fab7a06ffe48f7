"""What a decoding step may not choose, or must: small rules over the scores of the next token, in any order that makes sense.

A constraint is called with scores [N, V], which it changes in place, and with the ids so far [N, L]: those that the decoder has read,
so the start of an answer, or a prompt, counts too. Search hands it log-probabilities, greedy continuation raw scores.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.generate.top import log_normaliser

Constraint = Callable[[Tensor, Tensor], None]
NEVER = float("-inf")


@dataclass(frozen=True)
class AtLeast:
    """None of the `ends` before `length` ids are there."""

    length: int
    ends: Sequence[int]

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        if ids.shape[1] < self.length:
            scores[:, list(self.ends)] = NEVER


@dataclass(frozen=True)
class NoRepeat:
    """No run of `n` ids occurs twice (Paulus et al. 2018, section 2.5)."""

    n: int

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        if ids.shape[1] < self.n:
            return
        runs = ids.unfold(1, self.n, 1)  # [N, L - n + 1, n]
        last = ids[:, None, ids.shape[1] - self.n + 1 :]
        row, at = (runs[:, :, :-1] == last).all(2).nonzero(as_tuple=True)
        scores[row, runs[row, at, -1]] = NEVER


@dataclass(frozen=True)
class NoSequence:
    """None of these sequences of ids, of any length."""

    sequences: Sequence[Sequence[int]]

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        for *before, banned in self.sequences:
            if len(before) <= ids.shape[1]:
                tail = ids[:, ids.shape[1] - len(before) :]
                scores[(tail == torch.tensor(before, dtype=ids.dtype, device=ids.device)).all(1), banned] = NEVER


@dataclass(frozen=True)
class NotAt:
    """None of the `tokens` as the id of place `place`."""

    place: int
    tokens: Sequence[int]

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        if ids.shape[1] == self.place:
            scores[:, list(self.tokens)] = NEVER


@dataclass(frozen=True)
class Forced:
    """The id of some places, by place. It is certain there, so it costs an answer nothing."""

    at: Mapping[int, int]

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        if (token := self.at.get(ids.shape[1])) is not None:
            scores.fill_(NEVER)[:, token] = 0.0


@dataclass(frozen=True)
class Bias:
    """A number added to the score of some ids."""

    by: Mapping[int, float]

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        scores[:, list(self.by)] += torch.tensor(list(self.by.values()), dtype=scores.dtype, device=scores.device)


@dataclass(frozen=True)
class Repetition:
    """Scores of ids that are there already, a prompt's too, are divided by `penalty` where positive, else multiplied.

    Keskar et al. 2019, section 4.1, as everybody builds it: their formula would make ids of negative scores likelier.
    """

    penalty: float

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        found = scores.gather(1, ids)
        scores.scatter_(1, ids, torch.where(found < 0, found * self.penalty, found / self.penalty))


@dataclass(frozen=True)
class Used:
    """Scores fall by `presence` for each id that was generated, and by `frequency` for each time; the first `begin` ids are a prompt's."""

    presence: float
    frequency: float
    begin: int

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        new = ids[:, self.begin :]
        times = torch.zeros_like(scores).scatter_add_(1, new, torch.ones_like(new, dtype=scores.dtype))
        scores -= self.frequency * times + self.presence * (times > 0)


def renormalised(scores: Tensor, ids: Tensor) -> None:
    """What is left shares the whole probability again; the last constraint where it is wanted."""
    scores.sub_(log_normaliser(scores))
