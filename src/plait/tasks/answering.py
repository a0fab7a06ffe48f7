"""Answers out of a text: where in it the answer to a question stands."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.errors import InputError
from plait.tasks.encoding import Encoder, Pieces, at_least_one, windows

NOWHERE = float("-inf")


@dataclass(frozen=True)
class Answer:
    """Characters [start, end) of a context. `score` is its share among all spans that could have been the answer.

    `null` is by how much the score of "there is no answer here" exceeds that of the best span, in the model's own units; only what
    was trained on questions without an answer (SQuAD 2.0) gives it a meaning. No answer is the empty text, from 0 to 0.
    """

    text: str
    score: float
    start: int
    end: int
    null: float


class Answerer(Encoder):
    """The span of a context that answers a question (Devlin et al. 2019, sections 4.2 and 4.3).

    A span scores its start's plus its end's. A context longer than the model goes through overlapping windows, and a span has its
    best score of all windows that hold it: raw scores are comparable between windows, probabilities within one are not.
    """

    def __call__(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        n_best: int = 1,
        null_threshold: float | None = None,
        max_answer_tokens: int = 30,
        first: int = 1,
    ) -> list[list[Answer]]:
        """For each question the `n_best` spans of its context, best first.

        With a `null_threshold`, "no answer" comes before them where its score exceeds the best span's by more. The least score over
        all windows counts for it: the answer need stand in one alone. `max_answer_tokens` is the longest answer. InputError names
        questions that leave less than half of what the model reads for the context, and contexts without words, by their numbers
        from `first`.
        """
        at_least_one(n_best=n_best, max_answer_tokens=max_answer_tokens)
        pieces = {text: self.pieces(text) for text in set(contexts)}
        asked, faults = [self.tokenizer.encode(question) for question in questions], list[str]()
        around = len(self.pair([], [])[0])
        for i, (question, context) in enumerate(zip(asked, contexts, strict=True), first):
            if len(question) + around > self.max_length // 2:
                most = self.max_length // 2 - around
                faults.append(f"input {i}: the question is {len(question)} tokens long, this model takes {most}: shorten it")
            if not pieces[context].ids:
                faults.append(f"input {i}: the context has no words: {context[:60]!r}; give the text in which the answer stands")
        if faults:
            raise InputError("some questions cannot be answered", faults)
        parts = [
            (i, w)
            for i, context in enumerate(contexts)
            for w in windows(len(pieces[context].ids), self.max_length - len(asked[i]) - around)
        ]
        rows = [self.pair(asked[i], pieces[contexts[i]].ids[w.start : w.stop]) for i, w in parts]
        scores = self.scores([ids for ids, _ in rows], [count for _, count in rows])
        seen: list[list[tuple[range, Tensor, Tensor]]] = [[] for _ in questions]
        for (i, w), (_, count), one in zip(parts, rows, scores, strict=True):
            seen[i].append((w, one[count : count + len(w)].double(), one[0].double().sum()))
        return [
            best_spans(context, pieces[context], windows_of, n_best, null_threshold, max_answer_tokens)
            for context, windows_of in zip(contexts, seen, strict=True)
        ]


def best_spans(
    context: str,
    pieces: Pieces,
    seen: Sequence[tuple[range, Tensor, Tensor]],
    n_best: int,
    null_threshold: float | None,
    longest: int,
) -> list[Answer]:
    """Answers from what was `seen` in each window: (its ids' numbers, their start and end scores [L, 2], the score of no answer)."""
    table = torch.full((len(pieces.ids), longest), NOWHERE, dtype=torch.float64)  # [L, K]: the span from each entry on, by its length
    for w, scores, _ in seen:
        start, end = scores.unbind(-1)
        ends = torch.cat([end, end.new_full((longest - 1,), NOWHERE)]).unfold(0, longest, 1)  # [L, K]: the end scores from each entry on
        table[w.start : w.stop] = table[w.start : w.stop].maximum(start[:, None] + ends)
    null = torch.stack([score for *_, score in seen]).min()
    spans = table.flatten()
    if bool(spans.isnan().any()):
        raise InputError("this model's scores are not numbers: its weights are broken, or of another model")
    values, places = spans.topk(min(n_best, int((spans > NOWHERE).sum())))
    over = float(null - values[0])
    candidates = spans if null_threshold is None else torch.cat([spans, null[None]])
    shares = (values - candidates.logsumexp(0)).exp().tolist()
    found: list[Answer] = []
    if null_threshold is not None and over > null_threshold:
        found.append(Answer("", float((null - candidates.logsumexp(0)).exp()), 0, 0, over))
    for share, place in zip(shares, places.tolist(), strict=True):
        at, more = divmod(place, longest)
        start, end = pieces.spans[at][0], pieces.spans[at + more][1]
        found.append(Answer(context[start:end], share, start, end, over))
    return found[:n_best]
