"""Translation: one sequence in, another out, learned by teacher forcing and answered by beam search."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from plait.core.losses import linear_cross_entropy
from plait.core.model import Model
from plait.core.stream import Stream
from plait.data.batches import Batch
from plait.data.cleaning import regular
from plait.errors import InputError
from plait.generate.search import Hypothesis, gnmt, search
from plait.tasks.objective import Loss
from plait.text.tokenizer import Tokenizer


class TeacherForcing:
    """The decoder is given the right answer so far and predicts the next token (Vaswani et al. 2017, section 5), with label smoothing."""

    def __init__(self, smoothing: float = 0.1, head: str = "lm"):
        self.smoothing, self.head = smoothing, head

    def loss(self, net: Model, batch: Batch) -> Loss:
        batch = batch.to(next(net.parameters()).device)
        source, target = padded(batch.source, batch.source_real), padded(batch.target_in, batch.target_real)
        hidden = net(encoder=source, decoder=target)["decoder"].x
        if target.real is not None:
            hidden, answers = hidden[batch.target_real], batch.target_out[batch.target_real]  # [N, D], [N]
        else:
            hidden, answers = hidden.flatten(0, 1), batch.target_out.flatten()
        head = net.heads[self.head]
        smoothing = self.smoothing if net.training else 0.0
        if not hasattr(head, "weight"):  # an adapted or quantised head: its own forward counts
            raise TypeError(f"head {type(head).__name__} has no weight matrix to take the loss against")
        scale = getattr(head, "scale", 1.0)
        hidden = hidden if scale == 1.0 else hidden * scale
        total, plain = linear_cross_entropy(hidden, head.weight, head.bias, answers, smoothing)  # type: ignore[arg-type]
        return Loss(total, plain, batch.n_target)

    def parts(self, batch: Batch, n: int) -> list[Batch]:
        if n == 1:
            return [batch]
        rows = torch.arange(len(batch)).tensor_split(min(n, len(batch)))
        return [slice_of(batch, r) for r in rows]

    def size(self, batch: Batch) -> int:
        return int(batch.source_real.sum()) + batch.n_target


def padded(ids: torch.Tensor, real: torch.Tensor) -> Stream:
    """A stream without a mask where nothing is padded: batches of one length are common, and cheaper so."""
    return Stream(ids, real=None if bool(real.all()) else real)


def slice_of(batch: Batch, rows: torch.Tensor) -> Batch:
    """Some rows, with the columns that are padding in all of them dropped."""
    wide, long = int(batch.source_real[rows].sum(1).max()), int(batch.target_real[rows].sum(1).max())
    source, source_real = batch.source[rows, : max(wide, 1)], batch.source_real[rows, : max(wide, 1)]
    target_real = batch.target_real[rows, :long]
    return Batch(source, source_real, batch.target_in[rows, :long], batch.target_out[rows, :long], target_real, int(target_real.sum()))


@dataclass(frozen=True)
class Answer:
    """A translation with its penalised score (mean-like log-probability, nats) and the runners-up."""

    text: str
    score: float
    alternatives: tuple[tuple[str, float], ...] = ()


SENTENCE_END = re.compile(r"(?<=[.!?…。！？;:])\s+|\n+")


class Translator:
    """Texts in, texts out: what a trained translation run does. Inputs longer than `max_source` tokens go in pieces, never cut.

    `extend` puts a neighbour from a translation memory behind each piece; only of that may something be cut for want of room.
    """

    def __init__(
        self,
        net: Model,
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        max_source: int,
        max_target: int,
        extend: Callable[[str], str] | None = None,
    ):
        self.net, self.source_tokenizer, self.target_tokenizer = net, source_tokenizer, target_tokenizer
        self.max_source, self.max_target, self.extend = max_source, max_target, extend

    def __call__(
        self,
        texts: Sequence[str],
        *,
        beams: int = 4,
        length_penalty: float = 0.6,
        n_best: int = 1,
        batch_tokens: int = 4096,
        first: int = 1,
    ) -> list[Answer]:
        """One answer a text, in order. An empty text gives an empty answer. Texts of like length share a batch.

        InputError names every text that cannot be translated by its number; `first` is that of the first one.
        """
        pieces: list[tuple[int, list[int]]] = []  # (text, ids)
        faults = []
        for i, text in enumerate(texts):
            try:
                pieces += [(i, ids) for ids in self.pieces(text)]
            except InputError as fault:
                faults += [f"input {first + i}: {line}" for line in fault.faults or [fault.message]]
        if faults:
            raise InputError("some inputs cannot be translated", faults)
        found: dict[int, list[Hypothesis]] = {}
        for batch in self.batches([ids for _, ids in pieces], batch_tokens, beams):
            for at, hypotheses in zip(batch, self.search([pieces[at][1] for at in batch], beams, length_penalty, n_best), strict=True):
                found[at] = hypotheses
        answers: list[list[list[Hypothesis]]] = [[] for _ in texts]
        for at, (i, _) in enumerate(pieces):
            answers[i].append(found[at])
        return [self.read(parts) for parts in answers]

    def read(self, parts: list[list[Hypothesis]]) -> Answer:
        """The answer of a text from those of its pieces."""
        if not parts:
            return Answer("", 0.0)
        decode = self.target_tokenizer.decode
        text = " ".join(decode(hypotheses[0].ids) for hypotheses in parts)
        others = parts[0][1:] if len(parts) == 1 else []
        score = sum(hypotheses[0].score for hypotheses in parts) / len(parts)
        return Answer(text, score, tuple((decode(h.ids), h.score) for h in others))

    def pieces(self, text: str) -> list[list[int]]:
        """What the model is fed for a text: its ids, in several pieces where it is longer than the model takes."""
        return [self.fed(part) for part in self.parts(text)]

    def fed(self, part: str) -> list[int]:
        return self.encode(part) if self.extend is None else self.encode(self.extend(regular(part)))[: self.max_source]

    def parts(self, text: str) -> list[str]:
        """The text, cut at sentence ends, else at spaces, where it is too long."""
        ids = self.encode(text)
        if not ids:
            return []
        if len(ids) <= self.max_source:
            return [text]
        done: list[str] = []
        part = ""
        for chunk in self.chunks(text):
            longer = f"{part} {chunk}" if part else chunk
            if len(self.encode(longer)) <= self.max_source:
                part = longer
                continue
            if part:
                done.append(part)
            part = chunk
        return [*done, part] if part else done

    def encode(self, text: str) -> list[int]:
        """Ids of the text in the form that training saw: stripped, NFC, one line."""
        return self.source_tokenizer.encode(regular(text))

    def chunks(self, text: str) -> Iterator[str]:
        """Sentences; words of those that are too long; an error for a word that is too long."""
        for sentence in filter(None, SENTENCE_END.split(text)):
            if len(self.encode(sentence)) <= self.max_source:
                yield sentence
                continue
            for word in sentence.split():
                if (n := len(self.encode(word))) > self.max_source:
                    raise InputError(
                        f"{word[:40]!r}... is {n} tokens without a space to cut at, this model takes {self.max_source}: shorten it, "
                        "or train with a larger --context"
                    )
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

    def search(self, rows: list[list[int]], beams: int, length_penalty: float, n_best: int) -> list[list[Hypothesis]]:
        device = next(self.net.parameters()).device
        width = max(len(ids) for ids in rows)
        ids = torch.full((len(rows), width), self.source_tokenizer.pad_id)
        real = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            real[i, : len(row)] = True
        was = self.net.training
        self.net.eval()
        tokenizer = self.target_tokenizer
        try:
            return search(
                self.net,
                padded(ids.to(device), real.to(device)),
                start=tokenizer.bos_id,
                end=tokenizer.eos_id,
                max_length=self.max_target,
                beams=beams,
                n_best=n_best,
                penalty=gnmt(length_penalty),
                forbidden=sorted({tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id} - {None, tokenizer.eos_id}),
            )
        finally:
            self.net.train(was)
