"""The likeliest continuation of a prompt, one token at a time, for models of one causal tower."""

from collections.abc import Collection, Iterator, Sequence

import torch

from plait.core.cache import Cache
from plait.core.model import Model


def continued(net: Model, prompt: Sequence[int], max_new_tokens: int, stop: Collection[int] = (), head: str = "lm") -> Iterator[int]:
    """Ids after `prompt` (at least one id), the likeliest each time, until one of `stop` (not given out) or `max_new_tokens`.

    The prompt is read in one pass and each later step feeds one id, over a static cache.
    """
    if not len(prompt):
        raise ValueError("an empty prompt has nothing to continue: give at least the token that begins a text")
    cache, ids = Cache(len(prompt) + max_new_tokens), torch.tensor([list(prompt)])
    for _ in range(max_new_tokens):
        with torch.inference_mode():  # entered for each step: a generator may be left for good between two
            hidden = net.run("decoder", ids, cache=cache).x[:, -1]
            token = int(net.heads[head](hidden).argmax())
        if token in stop:
            return
        yield token
        ids = torch.tensor([[token]])
