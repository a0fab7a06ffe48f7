"""The likeliest continuation of a prompt, one token at a time, for models of one causal tower."""

from collections.abc import Collection, Iterator, Sequence

import torch

from plait.core.cache import Cache
from plait.core.model import Model
from plait.generate.constraints import Constraint


def continued(
    net: Model,
    prompt: Sequence[int],
    max_new_tokens: int,
    stop: Collection[int] = (),
    constraints: Sequence[Constraint] = (),
    head: str = "lm",
) -> Iterator[int]:
    """Ids after `prompt` (at least one id), the likeliest each time, until one of `stop` (not given out) or `max_new_tokens`.

    The prompt is read in one pass and each later step feeds one id, over a static cache. `constraints` see the prompt too.
    """
    if not len(prompt):
        raise ValueError("an empty prompt has nothing to continue: give at least the token that begins a text")
    device = next(net.parameters()).device
    cache, so_far = Cache(len(prompt) + max_new_tokens), torch.tensor([list(prompt)], device=device)
    ids = so_far
    for _ in range(max_new_tokens):
        with torch.inference_mode():  # entered for each step: a generator may be left for good between two
            hidden = net.run("decoder", ids, cache=cache).x[:, -1]
            scores = net.heads[head](hidden)
            for constraint in constraints:
                constraint(scores, so_far)
            token = int(scores.argmax())
        if token in stop:
            return
        yield token
        ids = torch.tensor([[token]], device=device)
        so_far = torch.cat([so_far, ids], 1)
