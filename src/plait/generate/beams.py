"""The beams of a search: what runs, what is finished, and when a source is done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Stopping = bool | Literal["never"]  # Hugging Face's `early_stopping`
Penalty = Callable[[int], float]  # length in tokens, end of sentence counted -> what the summed log-probability is divided by
NEVER = float("-inf")


@dataclass(frozen=True)
class Hypothesis:
    """An answer: its ids without start and end, the penalised score, the summed log-probability, and whether it ended by itself."""

    ids: list[int]
    score: float
    log_prob: float
    ended: bool


class Beams:
    """The running and finished beams of all sources. `active` are the sources still searched, in the order of the batch's rows.

    Diverse beams (Vijayakumar et al. 2018, section 3, Hamming diversity): the beams stand in `groups` of one size, each a search of its
    own with its own finished answers. In every step the groups choose one after another, and an id costs a group `diversity` for each
    beam of an earlier group that has just gone on with it. What was paid stays in a beam's score, as in the authors' program, and not in
    its log-probability. One group is the plain search.
    """

    def __init__(
        self,
        limits: list[int],
        beams: int,
        n_best: int,
        penalty: Penalty,
        start: Tensor,
        ends: Sequence[int],
        early_stopping: Stopping = "never",
        groups: int = 1,
        diversity: float = 0.0,
    ):
        self.limits, self.n_best, self.penalty, self.start, self.early_stopping = limits, n_best, penalty, start, early_stopping
        self.beams, self.groups, self.size, self.diversity = beams, groups, beams // groups, diversity
        device = start.device
        self.ends = torch.tensor(ends, dtype=torch.long, device=device)
        self.wide = (1 + max(len(ends), 1)) * self.size  # candidates of a group: even if all its ends are among them, `size` go on
        self.needed = self.wide + beams - self.size  # of a row: so many of its likeliest ids may have been taken by earlier groups
        self.active = [i for i, limit in enumerate(limits) if limit > 0]
        self.finished: list[list[list[Hypothesis]]] = [[[] for _ in range(groups)] for _ in limits]  # by source and group
        self.scores = torch.zeros(len(self.active), 1, device=device)  # [sources, beams] summed log-probabilities less what was paid
        self.paid = torch.zeros(len(self.active), 1, device=device)  # [sources, beams]
        self.tokens = torch.empty(len(self.active), 1, 0, dtype=torch.long, device=device)  # [sources, beams, steps]
        self.length = 0

    def so_far(self) -> Tensor:
        """What each row of the decoder has read [rows, P + steps], the start or the prompt first."""
        begun = self.start[self.active].repeat_interleave(self.tokens.shape[1], 0)
        return torch.cat([begun, self.tokens.flatten(0, 1)], 1)

    def advance(self, values: Tensor, tokens: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """One step from the `needed` likeliest ids of each row.

        `values` (log-probabilities) and `tokens` [sources * running, W] -> (former row of each new row or None if unchanged, new
        ids, sources kept or None).
        """
        self.length += 1
        n, running = self.scores.shape
        values, tokens = values.view(n, running, -1), tokens.view(n, running, -1)
        taken, chosen = tokens.new_empty(n, 0), []
        for group in range(self.groups):
            first = 0 if running == 1 else group * self.size  # before the first step there is one beam, which all groups continue
            of = slice(first, first + min(self.size, running))
            parent, token, score, paid = self.choose(group, of, values[:, of], tokens[:, of], taken)
            taken = torch.cat([taken, token.masked_fill(score == NEVER, -1)], 1)
            chosen.append((parent + first, token, score, paid))
        parent, token, self.scores, self.paid = (torch.cat(parts, 1) for parts in zip(*chosen, strict=True))
        before = self.tokens.gather(1, parent[:, :, None].expand(-1, -1, self.tokens.shape[2]))
        self.tokens = torch.cat([before, token[:, :, None]], 2)
        return self.retire(parent, token, running)

    def choose(self, group: int, of: slice, values: Tensor, tokens: Tensor, taken: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One group's beams (`of` them all) after a step: the beam of the group that each continues, its id, score and what it paid.

        `values` and `tokens` [sources, beams of the group, W]; ids that earlier groups have just `taken` [sources, beams before].
        """
        total = self.scores[:, of, None] + values
        cost = None
        if taken.shape[1]:
            cost = (tokens[..., None] == taken[:, None, None]).sum(-1, dtype=values.dtype) * self.diversity
            total = total - cost
        total = total.flatten(1)
        best, at = total.topk(min(self.wide, total.shape[1]), dim=1)
        parent = at // values.shape[2]  # [sources, W], the beam it continues
        token = tokens.flatten(1).gather(1, at)
        paid = self.paid[:, of].gather(1, parent)
        paid = paid if cost is None else paid + cost.flatten(1).gather(1, at)
        ends = torch.isin(token, self.ends) | (best == NEVER)
        self.collect(group, best, of.start + parent, paid, ends)
        # Candidates that go on, in their order, come first; there are at least `size` of them unless the vocabulary is tiny.
        order = torch.argsort(ends.to(torch.int8), dim=1, stable=True)[:, : self.size]
        if order.shape[1] < self.size:
            # A tiny vocabulary: all its tokens are candidates, so each row's last one is an ending, and no beam goes on from it.
            order = torch.cat([order, order[:, -1:].expand(-1, self.size - order.shape[1])], 1)
        score = best.gather(1, order).masked_fill(ends.gather(1, order), NEVER)
        return parent.gather(1, order), token.gather(1, order), score, paid.gather(1, order)

    def collect(self, group: int, best: Tensor, parent: Tensor, paid: Tensor, ends: Tensor) -> None:
        """Endings among the best candidates, as many as the group has beams, become finished answers."""
        found = (ends[:, : self.size] & (best[:, : self.size] > NEVER)).nonzero().tolist()
        if not found:
            return
        scores, parents, costs = best.tolist(), parent.tolist(), paid.tolist()
        for row, i in found:
            ids = self.tokens[row, parents[row][i]].tolist()
            self.finished[self.active[row]][group].append(self.answer(ids, scores[row][i], costs[row][i], True))

    def answer(self, ids: list[int], score: float, paid: float, ended: bool) -> Hypothesis:
        return Hypothesis(ids, score / self.penalty(self.length), score + paid, ended)

    def done(self, row: int, group: int, best: float) -> bool:
        source = self.active[row]
        finished, limit = self.finished[source][group], self.limits[source]
        if self.length >= limit or best == NEVER:
            return True
        wanted = min(self.n_best, self.size) if self.early_stopping == "never" else self.size
        if len(finished) < wanted:
            return False
        if self.size == 1 or self.early_stopping is True:  # greedy: the likeliest token was the end
            return True
        worst = sorted((h.score for h in finished), reverse=True)[wanted - 1]
        # log-probabilities only fall; the best a running beam can still reach is its sum over the kindest penalty ahead
        ahead = self.penalty(limit) if self.early_stopping == "never" else 0.0
        return worst >= best / max(self.penalty(self.length), ahead)

    def retire(self, parent: Tensor, token: Tensor, running: int) -> tuple[Tensor | None, Tensor, Tensor | None]:
        best = self.scores.unflatten(1, (self.groups, self.size)).amax(2).tolist()
        leave = set()
        for row, groups in enumerate(best):
            over = [group for group, score in enumerate(groups) if self.done(row, group, score)]
            for group in over:
                self.close(row, group)
            if len(over) == self.groups:
                leave.add(row)
        first = torch.arange(len(self.active), device=parent.device)[:, None] * running
        rows = first + parent  # [sources, K]: former rows
        unchanged = running == self.beams and not leave and bool((parent == torch.arange(running, device=parent.device)).all())
        if not leave:
            return None if unchanged else rows.flatten(), token.flatten(), None
        stay = [row for row in range(len(self.active)) if row not in leave]
        index = torch.tensor(stay, dtype=torch.long, device=parent.device)
        self.active = [self.active[row] for row in stay]
        self.scores, self.paid, self.tokens = self.scores[index], self.paid[index], self.tokens[index]
        return rows[index].flatten(), token[index].flatten(), index

    def close(self, row: int, group: int) -> None:
        """Running beams count as answers only if too few ended by themselves before the limit; the group's search is over."""
        finished, of = self.finished[self.active[row]][group], slice(group * self.size, (group + 1) * self.size)
        if missing := max(min(self.n_best, self.size) - len(finished), 0):
            parts = (self.scores[row, of].tolist(), self.paid[row, of].tolist(), self.tokens[row, of].tolist())
            running = sorted(zip(*parts, strict=True), key=lambda beam: -beam[0])
            finished += [self.answer(ids, score, paid, False) for score, paid, ids in running[:missing] if score > NEVER]
        self.scores[row, of] = NEVER

    def answers(self, source: int) -> list[Hypothesis]:
        """The best of all groups; what several of them found counts once."""
        if self.limits[source] <= 0:
            return [Hypothesis([], 0.0, 0.0, False)]
        # An answer that was cut at the limit comes after all that ended, so that the first one does not depend on `n_best`.
        best = sorted((h for group in self.finished[source] for h in group), key=lambda h: (not h.ended, -h.score))
        distinct = {(tuple(h.ids), h.ended): h for h in reversed(best)}
        return [h for h in best if distinct[tuple(h.ids), h.ended] is h][: self.n_best] or [Hypothesis([], NEVER, NEVER, False)]
