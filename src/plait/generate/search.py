"""Greedy and beam search over a static cache, with or without an encoder that the decoder reads; finished sources leave the batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from plait.core.cache import Cache
from plait.core.model import Model
from plait.core.stream import Stream
from plait.errors import InputError
from plait.generate.constraints import Constraint
from plait.generate.memories import kept
from plait.generate.top import log_normaliser, top

Stopping = bool | Literal["never"]  # Hugging Face's `early_stopping`
Penalty = Callable[[int], float]  # length in tokens, end of sentence counted -> what the summed log-probability is divided by


def gnmt(alpha: float) -> Penalty:
    """((5 + length) / 6) ^ alpha (Wu et al. 2016, equation 14; Vaswani et al. 2017 use alpha = 0.6)."""
    return lambda length: ((5 + length) / 6) ** alpha


def mean(alpha: float = 1.0) -> Penalty:
    """length ^ alpha, the rule of Hugging Face's `generate`."""
    return lambda length: length**alpha


@dataclass(frozen=True)
class Hypothesis:
    """An answer: its ids without start and end, the penalised score, the summed log-probability, and whether it ended by itself."""

    ids: list[int]
    score: float
    log_prob: float
    ended: bool


@torch.inference_mode()
def search(
    net: Model,
    sources: Stream | None,
    *,
    start: int | Tensor,
    end: int | Sequence[int],
    max_length: int | Sequence[int],
    beams: int = 1,
    n_best: int = 1,
    penalty: Penalty | None = None,
    forbidden: Sequence[int] = (),
    constraints: Sequence[Constraint] = (),
    early_stopping: Stopping = "never",
    encoder: str = "encoder",
    decoder: str = "decoder",
    head: str = "lm",
) -> list[list[Hypothesis]]:
    """The `n_best` (at most `beams`) best answers for each of B source rows, best first.

    `start` is the id that every answer begins with, or what is already there of each [B, P]: a language model, which has no `sources`,
    continues prompts of one length. `end` is one id or several, of which each ends an answer. `max_length` counts generated ids, the
    end included: one number or one a source. `forbidden` ids (padding, start) never occur; `constraints` see the start, or the prompt,
    from place 0 on. A source is done when no running beam can still beat its `n_best`-th finished answer. The other rules of
    `early_stopping` are Hugging Face's: True stops at the first `beams` finished answers, False where the best running beam, ended now,
    would not be among them. Answers do not depend on what else is in the batch, up to the rounding of the matrix products. Where
    nothing may be answered, the answer is empty and its score -inf. InputError where the model's scores are NaN.
    """
    if beams < 1 or not 1 <= n_best <= beams:
        raise ValueError(f"beams={beams}, n_best={n_best}: at least one beam is needed, and n_best at most as many")
    device = next(net.parameters()).device
    memory = None if sources is None else net.run(encoder, sources)
    if isinstance(start, int):
        assert sources is not None, "what does not read a source continues prompts [B, P]"
        start = torch.full((sources.x.shape[0], 1), start, device=device)
    rows = len(start)
    limits = [max_length] * rows if isinstance(max_length, int) else list(max_length)
    if len(limits) != rows:
        raise ValueError(f"{len(limits)} limits for {rows} sources: one number or one a source is needed")
    ends = [end] if isinstance(end, int) else list(end)
    state = Beams(limits, beams, n_best, penalty or gnmt(0.0 if beams == 1 else 0.6), start, ends, early_stopping)
    cache = Cache(start.shape[1] - 1 + max(limits, default=1))
    ids = start  # the first step has one beam: the others would be its copies
    if 0 < len(state.active) < rows:  # a source that may have no token takes no part
        ids = ids[state.active]
        memory = None if memory is None else kept(memory, torch.tensor(state.active, device=device))
    banned = torch.tensor(list(forbidden), dtype=torch.long, device=device)
    while state.active:
        hidden = net.run(decoder, ids, None if memory is None else {encoder: memory}, cache).x[:, -1]  # [rows, D]
        scores, so_far = net.heads[head](hidden), state.so_far() if constraints else None
        parents, tokens, gone = state.advance(*candidates(scores, banned, state.wide, constraints, so_far))
        if gone is not None:
            memory = None if memory is None else kept(memory, gone)
            cache.keep_sources(gone)
        if not state.active:
            break
        if parents is not None:
            cache.reorder(parents)
        ids = tokens[:, None]
    return [state.answers(row) for row in range(rows)]


def candidates(
    scores: Tensor, banned: Tensor, k: int, constraints: Sequence[Constraint] = (), so_far: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k likeliest ids of each row of scores [N, V] (which are overwritten): (log-probabilities, ids) [N, k]."""
    normaliser = log_normaliser(scores)  # over all ids: what is forbidden does not make the rest likelier
    if bool(normaliser.isnan().any()):
        raise InputError("the model's scores of the next token are not numbers (NaN), so none can be chosen")
    if len(banned):
        scores[:, banned] = float("-inf")
    if so_far is None:  # subtracted from k scores a row, not from all of them
        values, ids = top(scores, k)
        return values.sub_(normaliser), ids
    scores.sub_(normaliser)
    for constraint in constraints:
        constraint(scores, so_far)
    return top(scores, k)


class Beams:
    """The running and finished beams of all sources. `active` are the sources still searched, in the order of the batch's rows."""

    def __init__(
        self,
        limits: list[int],
        beams: int,
        n_best: int,
        penalty: Penalty,
        start: Tensor,
        ends: Sequence[int],
        early_stopping: Stopping = "never",
    ):
        self.limits, self.beams, self.n_best, self.penalty, self.start = limits, beams, n_best, penalty, start
        self.ends, self.early_stopping, device = torch.tensor(ends, dtype=torch.long, device=start.device), early_stopping, start.device
        self.wide = (1 + max(len(ends), 1)) * beams  # candidates of a row: even if all its ends are among them, K go on
        self.active = [i for i, limit in enumerate(limits) if limit > 0]
        self.finished: list[list[Hypothesis]] = [[] if limit > 0 else [Hypothesis([], 0.0, 0.0, False)] for limit in limits]
        self.scores = torch.zeros(len(self.active), 1, device=device)  # [sources, beams] summed log-probabilities
        self.tokens = torch.empty(len(self.active), 1, 0, dtype=torch.long, device=device)  # [sources, beams, steps]
        self.length = 0

    def so_far(self) -> Tensor:
        """What each row of the decoder has read [rows, P + steps], the start or the prompt first."""
        begun = self.start[self.active].repeat_interleave(self.tokens.shape[1], 0)
        return torch.cat([begun, self.tokens.flatten(0, 1)], 1)

    def advance(self, values: Tensor, tokens: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """One step from the W = K + K · ends likeliest ids of each row: a beam has at most so many endings, so that leaves K that go on.

        `values` (log-probabilities) and `tokens` [sources * running, W] -> (former row of each new row or None if unchanged, new
        ids, sources kept or None).
        """
        self.length += 1
        n, running = self.scores.shape
        total = (self.scores.view(-1, 1) + values).view(n, -1)  # [sources, running * W]
        best, at = total.topk(min(self.wide, total.shape[1]), dim=1)
        parent = at // values.shape[1]  # [sources, W], the beam it continues
        token = tokens.view(n, -1).gather(1, at)
        ends = torch.isin(token, self.ends) | (best == float("-inf"))
        # Candidates that go on, in their order, come first; there are at least K of them unless the vocabulary is tiny.
        order = torch.argsort(ends.to(torch.int8), dim=1, stable=True)[:, : self.beams]
        self.collect(best, parent, token, ends)
        if order.shape[1] < self.beams:
            # A tiny vocabulary: all its tokens are candidates, so each row's last one is an ending, and no beam goes on from it.
            order = torch.cat([order, order[:, -1:].expand(-1, self.beams - order.shape[1])], 1)
        going = ~ends.gather(1, order)
        self.scores = best.gather(1, order).masked_fill(~going, float("-inf"))
        parent, token = parent.gather(1, order), token.gather(1, order)
        before = self.tokens.gather(1, parent[:, :, None].expand(-1, -1, self.tokens.shape[2]))
        self.tokens = torch.cat([before, token[:, :, None]], 2)
        return self.retire(parent, token, running)

    def collect(self, best: Tensor, parent: Tensor, token: Tensor, ends: Tensor) -> None:
        """Endings among the best K candidates become finished answers."""
        found = (ends[:, : self.beams] & (best[:, : self.beams] > float("-inf"))).nonzero().tolist()
        if not found:
            return
        scores, parents = best.tolist(), parent.tolist()
        divisor = self.penalty(self.length)
        for row, i in found:
            ids = self.tokens[row, parents[row][i]].tolist()
            self.finished[self.active[row]].append(Hypothesis(ids, scores[row][i] / divisor, scores[row][i], True))

    def done(self, row: int, best: float) -> bool:
        source = self.active[row]
        finished, limit = self.finished[source], self.limits[source]
        if self.length >= limit or best == float("-inf"):
            return True
        wanted = self.n_best if self.early_stopping == "never" else self.beams
        if len(finished) < wanted:
            return False
        if self.beams == 1 or self.early_stopping is True:  # greedy: the likeliest token was the end
            return True
        worst = sorted((h.score for h in finished), reverse=True)[wanted - 1]
        # log-probabilities only fall; the best a running beam can still reach is its sum over the kindest penalty ahead
        ahead = self.penalty(limit) if self.early_stopping == "never" else 0.0
        return worst >= best / max(self.penalty(self.length), ahead)

    def retire(self, parent: Tensor, token: Tensor, running: int) -> tuple[Tensor | None, Tensor, Tensor | None]:
        best = self.scores.amax(1).tolist()
        leave = [row for row in range(len(self.active)) if self.done(row, best[row])]
        for row in leave:
            self.close(row)
        first = torch.arange(len(self.active), device=parent.device)[:, None] * running
        rows = first + parent  # [sources, K]: former rows
        unchanged = running == self.beams and not leave and bool((parent == torch.arange(running, device=parent.device)).all())
        if not leave:
            return None if unchanged else rows.flatten(), token.flatten(), None
        stay = [row for row in range(len(self.active)) if row not in set(leave)]
        index = torch.tensor(stay, dtype=torch.long, device=parent.device)
        self.active = [self.active[row] for row in stay]
        self.scores, self.tokens = self.scores[index], self.tokens[index]
        return rows[index].flatten(), token[index].flatten(), index

    def close(self, row: int) -> None:
        """Running beams count as answers only if too few ended by themselves before the limit."""
        finished = self.finished[self.active[row]]
        if len(finished) >= self.n_best:
            return
        divisor = self.penalty(self.length)
        running = sorted(zip(self.scores[row].tolist(), self.tokens[row].tolist(), strict=True), key=lambda pair: -pair[0])
        for score, ids in running[: self.n_best - len(finished)]:
            if score > float("-inf"):
                finished.append(Hypothesis(ids, score / divisor, score, False))

    def answers(self, source: int) -> list[Hypothesis]:
        # An answer that was cut at the limit comes after all that ended, so that the first one does not depend on `n_best`.
        best = sorted(self.finished[source], key=lambda h: (not h.ended, -h.score))[: self.n_best]
        return best or [Hypothesis([], float("-inf"), float("-inf"), False)]
