"""Speculative decoding: guessed tokens are checked in one pass of the model, and nothing but time depends on the guesses.

Leviathan et al. 2023 (algorithm 1), Chen et al. 2023. One text at a time, for causal models and for decoders that read an encoder.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.core.cache import Cache
from plait.core.model import Model
from plait.core.stream import Stream
from plait.errors import InputError
from plait.generate.constraints import Constraint

Uniform = Callable[[], float]  # the next random number in [0, 1): `random.Random(seed).random`
# (ids so far, at most so many) -> guessed ids, and the distributions [n, V] that they were drawn from; None: they were certain.
Draft = Callable[[Sequence[int], int], tuple[list[int], Tensor | None]]

FIRST, MOST = 4, 16  # guesses at first, and at most; a pass over 16 ids takes little longer than one over 2, which reads the same weights


@dataclass
class Tally:
    """What the guesses brought: passes of the model, ids guessed, guesses that stood."""

    passes: int = 0
    proposed: int = 0
    accepted: int = 0


class Reader:
    """A model that has read a text and reads on: only what changed since the last call is computed."""

    def __init__(self, net: Model, memories: Mapping[str, Stream] | None = None, decoder: str = "decoder", head: str = "lm", room: int = 0):
        """`room`: how long the text will become; a longer one is read anew."""
        self.net, self.memories, self.decoder, self.head = net, dict(memories or {}), decoder, head
        self.device = next(net.parameters()).device
        self.cache, self.seen = Cache(room), []

    def scores(self, text: Sequence[int], last: int = 1) -> Tensor:
        """Scores [last, V] of what comes after each of the last ids of `text`."""
        text = list(text)
        if len(text) > self.cache.max_length:
            self.cache, self.seen = Cache(2 * len(text)), []
        known = min(len(self.seen), len(text) - last)
        while self.seen[:known] != text[:known]:
            known -= 1
        self.cache.rewind(known)
        with torch.inference_mode():
            ids = torch.tensor([text[known:]], device=self.device)
            hidden = self.net.run(self.decoder, ids, self.memories, self.cache).x[0, -last:]
            self.seen = text
            return self.net.heads[self.head](hidden)


def speculated(
    reader: Reader,
    prompt: Sequence[int],
    max_new_tokens: int,
    draft: Draft,
    *,
    stop: Collection[int] = (),
    constraints: Sequence[Constraint] = (),
    random: Uniform | None = None,
    tally: Tally | None = None,
) -> Iterator[int]:
    """Ids after `prompt`, until one of `stop` (not given out) or `max_new_tokens`; the same with any `draft`.

    Without `random` the likeliest id of the model's own scores each time: what one step after the other gives, but where two scores
    are equal up to rounding (a pass of several ids adds up in another order than one of a single id). With `random`, ids drawn from the
    softmax of the scores as `constraints` leave them; a guess x of a draft with distribution q stands with probability
    min(1, p(x) / q(x)), else the id is drawn from max(p - q, 0): the result is distributed as p. `constraints` see the prompt too.
    The number of guesses doubles when all stood; else it becomes one more than stood. InputError where scores are no numbers, where
    nothing is allowed, and where a guess is no id of this model.
    """
    if not len(prompt):
        raise InputError("an empty prompt has nothing to continue: give at least the token that begins a text")
    tally = tally or Tally()
    text, budget, end = list(prompt), FIRST, len(prompt) + max_new_tokens
    vocab = None  # known after the first pass, which has no guesses
    while len(text) < end:
        guesses, drawn_from = draft(text, min(budget, end - len(text) - 1)) if vocab is not None else ([], None)
        if vocab is not None:
            same_vocabulary(guesses, drawn_from, vocab)
        scores = reader.scores([*text, *guesses], len(guesses) + 1)
        vocab = scores.shape[1]
        tally.passes, tally.proposed = tally.passes + 1, tally.proposed + len(guesses)
        stood = 0
        for i, guess in enumerate([*guesses, None]):
            row = shaped(scores[i : i + 1], text, constraints)
            check(row, len(text))
            if random is None:
                token = int(row.argmax())
            else:
                token = drawn(row, guess, None if drawn_from is None or guess is None else drawn_from[i], random)
            if token in stop:
                return
            text.append(token)
            yield token
            if token != guess:
                break
            stood, tally.accepted = stood + 1, tally.accepted + 1
        if guesses:
            budget = min(2 * budget if stood == len(guesses) else stood + 1, MOST)


def same_vocabulary(guesses: Sequence[int], drawn_from: Tensor | None, vocab: int) -> None:
    faults = [f"it guessed the id {token}" for token in guesses if not 0 <= token < vocab]
    if drawn_from is not None and drawn_from.shape[1] != vocab:
        faults.append(f"it has {drawn_from.shape[1]} ids")
    if faults:
        raise InputError(f"the model has {vocab} ids, its draft others: take a draft with the same vocabulary", faults)


@torch.inference_mode()
def shaped(scores: Tensor, text: Sequence[int], constraints: Sequence[Constraint]) -> Tensor:
    """The scores [1, V] of one step as the constraints leave them: [V]."""
    if constraints:
        so_far = torch.tensor([text], device=scores.device)
        for constraint in constraints:
            constraint(scores, so_far)
    return scores[0]


def check(scores: Tensor, length: int) -> None:
    best = float(scores.max())
    if best == float("-inf"):
        raise InputError(f"no token may follow the {length} so far: the constraints together forbid all; loosen one of them")
    if not math.isfinite(best):
        raise InputError(f"the scores after {length} tokens are no finite numbers: look for NaN in the weights, or take a wider dtype")


def drawn(scores: Tensor, guess: int | None, drawn_from: Tensor | None, random: Uniform) -> int:
    """An id distributed as softmax(scores) [V], the guess if it may be; `drawn_from` [V] is the guess's distribution, None: certain."""
    p = scores.double().softmax(0)
    if guess is not None:
        q = torch.zeros_like(p).index_fill_(0, torch.tensor(guess, device=p.device), 1.0) if drawn_from is None else drawn_from
        if random() * float(q[guess]) < float(p[guess]):
            return guess
        rest = (p - q).clamp_min(0.0)
        p = rest if float(rest.sum()) > 0.0 else p  # nothing is left only where p and q are equal up to rounding
    return pick(p, random)


def pick(weights: Tensor, random: Uniform) -> int:
    """An index with a probability in proportion to its weight [V]; one without weight never."""
    totals = weights.cumsum(0)
    return min(int(torch.searchsorted(totals, random() * totals[-1], right=True)), len(totals) - 1)


@dataclass(frozen=True)
class Lookup:
    """Guesses that what followed the last ids before follows again (prompt lookup): in the text, and in a `source` of the same ids.

    Of all places where the end of the text stands already, the longest match counts (`shortest` to `longest` ids), then the latest. What
    followed a place in the text goes on into the guesses themselves, so that a text that goes in circles is guessed at any length.
    """

    source: Sequence[int] = ()
    shortest: int = 2
    longest: int = 8

    def __call__(self, text: Sequence[int], most: int) -> tuple[list[int], None]:
        text, source = list(text), list(self.source)
        here, there = self.latest(text, text), self.latest(source, text)
        if not max(here[0], there[0]):
            return [], None
        if there[0] > here[0]:
            return source[there[1] : there[1] + most], None
        circle = text[here[1] :]
        return (circle * (most // len(circle) + 1))[:most], None

    def latest(self, place: list[int], text: list[int]) -> tuple[int, int]:
        """(ids matched, where the next one stands); (0, 0) if there is no match. What ends the place has nothing after it."""
        best, found = 0, 0
        for at in range(len(place) - 2, -1, -1):
            if place[at] == text[-1] and best < self.longest and (same := self.matching(place, at, text)) >= max(best + 1, self.shortest):
                best, found = same, at + 1
        return best, found

    def matching(self, place: Sequence[int], at: int, text: Sequence[int]) -> int:
        """How many ids up to place `at` are those that the text ends with."""
        most = min(self.longest, at + 1, len(text))
        return next((n for n in range(most) if place[at - n] != text[-1 - n]), most)


@dataclass
class Smaller:
    """Guesses by another model with the same vocabulary: its likeliest ids, or ids drawn with `random` from its own distribution.

    `constraints` shape its scores; any are right, and the closer to the model's own, the more guesses stand.
    """

    reader: Reader
    constraints: Sequence[Constraint] = ()
    random: Uniform | None = None

    def __call__(self, text: Sequence[int], most: int) -> tuple[list[int], Tensor | None]:
        guesses, rows = [], []
        while len(guesses) < most:
            so_far = [*text, *guesses]
            row = shaped(self.reader.scores(so_far), so_far, self.constraints)
            if not math.isfinite(float(row.max())):  # nothing may follow, as after an end: then there is nothing to guess
                break
            if self.random is None:
                guesses.append(int(row.argmax()))
            else:
                rows.append(row.double().softmax(0))
                guesses.append(pick(rows[-1], self.random))
        return guesses, torch.stack(rows) if rows else None
