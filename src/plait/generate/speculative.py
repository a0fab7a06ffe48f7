"""Speculative decoding: guessed tokens are checked in one pass of the model, and nothing but time depends on the guesses.

As Leviathan et al. 2023, but that a guess stands where it is what the text takes anyway, by its own random number of that place: then a
drawn text, too, is the very one that is drawn without guesses, by whatever draft. One text at a time, for causal models and for
decoders that read an encoder.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plait.core.cache import Cache
from plait.core.model import Model
from plait.core.stream import Stream
from plait.errors import InputError
from plait.generate.running import Continuation, chosen, sound

Draft = Callable[[Continuation, int], Sequence[int]]  # (a text, at most so many) -> guesses of its next ids

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
        known = known if self.cache.rewindable(known) else 0
        self.cache.rewind(known)
        with torch.inference_mode():
            ids = torch.tensor([text[known:]], device=self.device)
            hidden = self.net.run(self.decoder, ids, self.memories, self.cache).x[0, -last:]
            self.seen = text
            return self.net.heads[self.head](hidden)


def speculating(
    turns: Iterable[tuple[Reader, Continuation, Draft]], tally: Tally | None = None
) -> Iterator[tuple[Continuation, int | None]]:
    """As `continuing`, one text after the other, whatever is guessed: the same ids, drawn ones too.

    But where two scores are equal up to rounding, since a pass of several ids adds up in another order than one of a single id. Readers
    may be made as they are asked for. InputError at the end names every text for which nothing could be chosen, and at once a draft
    whose guess is no id of the model.
    """
    tally, texts = tally or Tally(), list[Continuation]()
    for reader, text, draft in turns:
        texts.append(text)
        yield from _guessed(reader, text, draft, tally)
    sound(texts)


def _guessed(reader: Reader, text: Continuation, draft: Draft, tally: Tally) -> Iterator[tuple[Continuation, int | None]]:
    """The number of guesses doubles when all stood; else it becomes one more than stood."""
    if not len(text.prompt):
        raise ValueError("an empty prompt has nothing to continue: give at least the token that begins a text")
    budget, vocab = FIRST, 0  # vocab: known after the first pass, which has no guesses
    while not text.done:
        guesses = list(draft(text, min(budget, text.max_new_tokens - len(text.ids) - 1))) if vocab else []
        if odd := [f"it guessed the id {guess}" for guess in guesses if not 0 <= guess < vocab]:
            raise InputError(f"the model has {vocab} ids, its draft others: take a draft with the same vocabulary", odd)
        scores = reader.scores([*text.prompt, *text.ids, *guesses], len(guesses) + 1)
        vocab = scores.shape[1]
        tally.passes, tally.proposed = tally.passes + 1, tally.proposed + len(guesses)
        stood = 0
        for row, guess in zip(scores.split(1), [*guesses, None], strict=True):
            (token,) = chosen(row, [text])
            yield text, token
            if text.done or token != guess:
                break
            stood, tally.accepted = stood + 1, tally.accepted + 1
        if guesses:
            budget = min(2 * budget if stood == len(guesses) else stood + 1, MOST)


@dataclass(frozen=True)
class Lookup:
    """Guesses that what followed the last ids before follows again (prompt lookup): in the text, and in a `source` of the same ids.

    Of all places where the end of the text stands already, the longest match counts (`shortest` to `longest` ids), then the latest. What
    followed a place in the text goes on into the guesses themselves, so that a text that goes in circles is guessed at any length.
    """

    source: Sequence[int] = ()
    shortest: int = 2
    longest: int = 8

    def __call__(self, text: Continuation, most: int) -> list[int]:
        ids, source = [*text.prompt, *text.ids], list(self.source)
        here, there = self.latest(ids, ids), self.latest(source, ids)
        if not max(here[0], there[0]):
            return []
        if there[0] > here[0]:
            return source[there[1] : there[1] + most]
        circle = ids[here[1] :]
        return (circle * (most // len(circle) + 1))[:most]

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
    """Guesses by another model with the same vocabulary: what it would go on with itself, by the rules and random numbers of the text."""

    reader: Reader

    def __call__(self, text: Continuation, most: int) -> list[int]:
        ahead = replace(text, ids=list(text.ids), max_new_tokens=len(text.ids) + most)
        while not ahead.done:  # an end or a fault of its own is no guess
            chosen(self.reader.scores([*ahead.prompt, *ahead.ids]), [ahead])
        return ahead.ids[len(text.ids) :]
