"""Texts to texts by an encoder and a decoder: long ones in pieces, batches of like length, answers in order."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from plait.core.model import Model
from plait.core.stream import Stream
from plait.errors import InputError
from plait.generate.constraints import NEVER, Constraint, NoSequence, Repetition
from plait.generate.running import Continuation, Running, continuing
from plait.generate.sampling import Draws
from plait.generate.search import Hypothesis, search
from plait.generate.speculative import Draft, Lookup, Reader, Smaller, speculating
from plait.generate.text import before

Guesses = Literal["lookup"] | Model  # of a text's next ids: what followed before, or what a smaller model goes on with


def padded(ids: torch.Tensor, real: torch.Tensor) -> Stream:
    """A stream without a mask where nothing is padded: batches of one length are common, and cheaper so."""
    return Stream(ids, real=None if bool(real.all()) else real)


def searched(net: Model, rows: list[list[int]], **how: Any) -> list[list[Hypothesis]]:
    """`search` from lists of source ids, in evaluation mode; the model's mode is as before afterwards."""
    width = max(len(ids) for ids in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)  # padding is masked, so any id does
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        real[i, : len(row)] = True
    device, was = next(net.parameters()).device, net.training
    net.eval()
    try:
        return search(net, padded(ids.to(device), real.to(device)), **how)
    finally:
        net.train(was)


@dataclass(frozen=True)
class Answer:
    """An answer with its penalised score (mean-like log-probability, nats) and the runners-up."""

    text: str
    score: float
    alternatives: tuple[tuple[str, float], ...] = ()


SENTENCE_END = re.compile(r"(?<=[.!?…。！？;:])\s+|\n+")


class Rewriter:
    """Texts in, texts out. A text longer than `max_source` ids (None: nothing limits it) goes in pieces, or is refused; never cut.

    A task says how a text is read (`encode`), and a caller, or the task, how ids are answered (`search`).
    """

    in_pieces = True  # whether the answers of a text's pieces, joined, are its answer
    deed, advice = "answered", "shorten it"  # words of the errors

    def __init__(self, net: Model, decode: Callable[[Sequence[int]], str], max_source: int | None):
        self.net, self.decode, self.max_source = net, decode, max_source

    @property
    def shared(self) -> bool:
        """Whether an id means the same in a text and in its answer."""
        return False

    def encode(self, text: str) -> list[int]:
        """Ids of a text or a piece as the encoder reads them; none where there is nothing to answer."""
        raise NotImplementedError

    def search(
        self,
        rows: list[list[int]],
        *,
        beams: int,
        n_best: int,
        seed: int | None = None,
        stops: Sequence[str] = (),
        draft: Guesses | None = None,
        filters: Sequence[Constraint] = (),
        **how: Any,
    ) -> list[list[Hypothesis]]:
        """The `n_best` answers of each row of ids: by `search`, which `how` goes to, or written one token after the other.

        The latter where there is a `seed`, which draws them by the `filters`, where `stops` are strings that end an answer, and where a
        `draft` guesses. InputError where the settings forbid every answer.
        """
        # Without beams a repetition is penalised by the raw scores, as Hugging Face's greedy search does; with beams by log-probabilities.
        penalised = beams == 1 and any(isinstance(rule, Repetition) for rule in how.get("constraints", ()))
        if seed is not None or stops or draft or penalised:
            texts = self.texts(rows, n_best, seed=seed, stops=stops, filters=filters, **how)
            for _ in self.written(rows, texts, draft):
                pass
            return [[Hypothesis(text.ids, text.log_prob, text.log_prob, text.ended) for text in some] for some in texts]
        found = searched(self.net, rows, beams=beams, n_best=n_best, **how)
        if any(some[0].score == NEVER for some in found):
            raise InputError("no answer can be found: the settings forbid every one; ask for less")
        return found

    def texts(
        self,
        rows: list[list[int]],
        n: int = 1,
        *,
        start: int,
        end: int,
        max_length: int,
        forbidden: Sequence[int] = (),
        constraints: Sequence[Constraint] = (),
        filters: Sequence[Constraint] = (),
        seed: int | None = None,
        stops: Sequence[str] = (),
        **_: Any,
    ) -> list[list[Continuation]]:
        """What is to be written: `n` texts for each row of source ids."""
        rules = (*([NoSequence([[id] for id in forbidden])] if forbidden else ()), *constraints, *filters)
        stopped = (lambda ids: before(text := self.decode(ids), stops) != text) if stops else None

        def text(i: int, k: int) -> Continuation:
            draws = None if seed is None else Draws.of(seed, k, rows[i], [start])
            return Continuation([start], max_length, [end], rules, draws, stopped, f"text {i + 1} of its batch")

        return [[text(i, k) for k in range(n)] for i in range(len(rows))]

    def written(
        self, rows: list[list[int]], texts: list[list[Continuation]], draft: Guesses | None = None
    ) -> Iterator[tuple[Continuation, int | None]]:
        """(text, its next id) until all are done.

        Each source is encoded when there is room for its texts, by itself, so nothing is computed for padding. "lookup" looks in the
        source too where it has the same ids (`shared`).
        """

        def memory(net: Model, row: list[int]) -> Stream:
            with torch.inference_mode():
                return net.run("encoder", torch.tensor([row], device=next(net.parameters()).device))

        def turn(row: list[int], text: Continuation) -> tuple[Reader, Continuation, Draft]:
            room = len(text.prompt) + text.max_new_tokens
            guess = Smaller(reader(draft, row, room)) if isinstance(draft, Model) else Lookup(row if self.shared else ())
            return reader(self.net, row, room), text, guess

        def reader(net: Model, row: list[int], room: int) -> Reader:
            return Reader(net, {"encoder": memory(net, row)}, room=room)

        both = zip(rows, texts, strict=True)
        if draft is None:
            return continuing(Running(self.net), ((some, memory(self.net, row)) for row, some in both))
        return speculating(turn(row, text) for row, some in both for text in some)

    def __call__(
        self,
        texts: Sequence[str],
        *,
        beams: int = 4,
        n_best: int = 1,
        batch_tokens: int = 4096,
        first: int = 1,
        stops: Sequence[str] = (),
        whole: bool = False,
        **how: Any,
    ) -> list[Answer]:
        """One answer a text, in order; `how` goes to `search`. An empty text gives an empty answer. Texts of like length share a batch.

        An answer goes up to the first of the `stops` in it. With `whole` a text that would go in pieces is refused.

        InputError names every text that cannot be answered by its number; `first` is that of the first one.
        """
        pieces: list[tuple[int, list[int]]] = []  # (text, ids)
        faults = []
        for i, text in enumerate(texts):
            try:
                parts = self.pieces(text)
                if whole and len(parts) > 1:
                    raise InputError(f"goes in {len(parts)} pieces, and what was asked is of one answer: {self.advice}")
                pieces += [(i, ids) for ids in parts]
            except InputError as fault:
                faults += [f"input {first + i}: {line}" for line in fault.faults or [fault.message]]
        if faults:
            raise InputError(f"some inputs cannot be {self.deed}", faults)
        found: dict[int, list[Hypothesis]] = {}
        for batch in self.batches([ids for _, ids in pieces], batch_tokens, beams):
            rows = [pieces[at][1] for at in batch]
            found.update(zip(batch, self.search(rows, beams=beams, n_best=n_best, stops=stops, **how), strict=True))
        answers: list[list[list[Hypothesis]]] = [[] for _ in texts]
        for at, (i, _) in enumerate(pieces):
            answers[i].append(found[at])
        return [self.read(parts, stops) for parts in answers]

    def read(self, parts: list[list[Hypothesis]], stops: Sequence[str] = ()) -> Answer:
        """The answer of a text from those of its pieces."""
        if not parts:
            return Answer("", 0.0)

        def text_of(hypothesis: Hypothesis) -> str:
            return before(self.decode(hypothesis.ids), stops)

        text = " ".join(text_of(hypotheses[0]) for hypotheses in parts)
        others = parts[0][1:] if len(parts) == 1 else []
        score = sum(hypotheses[0].score for hypotheses in parts) / len(parts)
        return Answer(text, score, tuple((text_of(h), h.score) for h in others))

    def pieces(self, text: str) -> list[list[int]]:
        """What the model is fed for a text: its ids, in several pieces where it is longer than the model takes."""
        return [self.fed(part) for part in self.parts(text)]

    def fed(self, part: str) -> list[int]:
        return self.encode(part)

    def fits(self, ids: list[int]) -> bool:
        return self.max_source is None or len(ids) <= self.max_source

    def parts(self, text: str) -> list[str]:
        """The text, cut at sentence ends, else at spaces, where it is too long."""
        ids = self.encode(text)
        if not ids:
            return []
        if self.fits(ids):
            return [text]
        if not self.in_pieces:
            raise InputError(f"is {len(ids)} tokens long, this model takes {self.max_source}: {self.advice}")
        done: list[str] = []
        part = ""
        for chunk in self.chunks(text):
            longer = f"{part} {chunk}" if part else chunk
            if self.fits(self.encode(longer)):
                part = longer
                continue
            if part:
                done.append(part)
            part = chunk
        return [*done, part] if part else done

    def chunks(self, text: str) -> Iterator[str]:
        """Sentences; words of those that are too long; an error for a word that is too long."""
        for sentence in filter(None, SENTENCE_END.split(text)):
            if self.fits(self.encode(sentence)):
                yield sentence
                continue
            for word in sentence.split():
                if not self.fits(ids := self.encode(word)):
                    said = f"{word[:40]!r}... is {len(ids)} tokens without a space to cut at"
                    raise InputError(f"{said}, this model takes {self.max_source}: {self.advice}")
                yield word

    def batches(self, rows: list[list[int]], batch_tokens: int, beams: int) -> Iterator[list[int]]:
        """Indices of rows that go together: like lengths, at most `batch_tokens` source tokens times beams."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        batch: list[int] = []
        for i in order:
            if batch and (len(batch) + 1) * len(rows[i]) * beams > batch_tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch
