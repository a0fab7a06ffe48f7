"""Greedy and beam search over a static cache, with or without an encoder that the decoder reads; finished sources leave the batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from plait.core.cache import Cache
from plait.core.model import Model
from plait.core.stream import Stream
from plait.errors import InputError
from plait.generate.beams import Beams, Hypothesis, Penalty, Stopping
from plait.generate.constraints import Constraint
from plait.generate.memories import kept
from plait.generate.top import log_normaliser, top


def gnmt(alpha: float) -> Penalty:
    """((5 + length) / 6) ^ alpha (Wu et al. 2016, equation 14; Vaswani et al. 2017 use alpha = 0.6)."""
    return lambda length: ((5 + length) / 6) ** alpha


def mean(alpha: float = 1.0) -> Penalty:
    """length ^ alpha, the rule of Hugging Face's `generate`."""
    return lambda length: length**alpha


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
    groups: int = 1,
    diversity: float = 0.0,
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
    would not be among them. Beams in several `groups` differ from each other by `diversity` (`Beams`). Answers do not depend on what
    else is in the batch, up to the rounding of the matrix products. Where nothing may be answered, the answer is empty and its score
    -inf. InputError where the model's scores are NaN.
    """
    if beams < 1 or not 1 <= n_best <= beams:
        raise ValueError(f"beams={beams}, n_best={n_best}: at least one beam is needed, and n_best at most as many")
    if groups < 1 or beams % groups or not diversity >= 0:
        raise ValueError(f"beams={beams}, groups={groups}, diversity={diversity}: groups of one size, and a price that is not negative")
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
    state = Beams(limits, beams, n_best, penalty or gnmt(0.0 if beams == 1 else 0.6), start, ends, early_stopping, groups, diversity)
    cache = Cache(start.shape[1] - 1 + max(limits, default=1))
    ids = start  # the first step has one beam: the others would be its copies
    if 0 < len(state.active) < rows:  # a source that may have no token takes no part
        ids = ids[state.active]
        memory = None if memory is None else kept(memory, torch.tensor(state.active, device=device))
    banned = torch.tensor(list(forbidden), dtype=torch.long, device=device)
    while state.active:
        hidden = net.run(decoder, ids, None if memory is None else {encoder: memory}, cache).x[:, -1]  # [rows, D]
        scores, so_far = net.heads[head](hidden), state.so_far() if constraints else None
        parents, tokens, gone = state.advance(*candidates(scores, banned, state.needed, constraints, so_far))
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
