"""The likeliest continuation of a prompt, one token at a time, for models of one causal tower."""

from collections.abc import Collection, Iterator, Sequence

from plait.core.model import Model
from plait.generate.constraints import Constraint
from plait.generate.running import Continuation, Running, continuing


def continued(
    net: Model,
    prompt: Sequence[int],
    max_new_tokens: int,
    stop: Collection[int] = (),
    constraints: Sequence[Constraint] = (),
    head: str = "lm",
) -> Iterator[int]:
    """Ids after `prompt` (at least one id), the likeliest each time, until one of `stop` (not given out) or `max_new_tokens`.

    A running batch of one text. `constraints` see the prompt too.
    """
    text = Continuation(prompt, max_new_tokens, stop, constraints)
    return (token for _, token in continuing(Running(net, head=head), [([text], None)]) if token is not None)
