"""What a prefix or a prompt begins as: what the model makes of real entries, which learns sooner than noise does."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plait.core.memory import Memory, Prompt
from plait.core.model import Model
from plait.tune.attach import attached
from plait.tune.prefixes import Made


@torch.no_grad()
def begin(net: Model, forward: Callable[[], Any], name: str = "default") -> int:
    """Runs `forward()`, which lets the model read something, and puts what it saw into the parts that stand before what is read: what
    the model by itself makes of it, since the parts do nothing meanwhile.

    A prefix takes the keys and values of entries spread evenly over all that are real (Li & Liang 2021, section 7.4: real words rather
    than noise), a prompt their vectors (Lester et al. 2021, section 3.2.1). Those that a network makes stay as they are, like all else.
    Returns how many parts were set.
    """
    parts = [part for _, part in attached(net, name).placed() if isinstance(part, Memory | Prompt) and not isinstance(part, Made)]
    seen, was = dict[nn.Module, list[Tensor]](), net.training
    handles = [part.register_forward_hook(partial(_see, seen)) for part in parts]
    try:
        net.eval()
        forward()
    finally:
        net.train(was)
        for handle in handles:
            handle.remove()
    for part, values in seen.items():
        for p, value in zip(part.parameters(), values, strict=True):
            p.copy_(value)
    return len(seen)


def _see(seen: dict[nn.Module, list[Tensor]], part: Any, given: tuple, _: Any) -> Any:
    """Keeps what the part is given, keys and values [B, G, S, K] of their places, or a stream [B, L, D]; and hands it on as it is."""
    if isinstance(part, Prompt):
        (s,) = given
        seen[part] = [_spread(s.x, s.real, len(part.weight))]
        return s
    k, v, places, _ = given
    seen[part] = [_spread(x.transpose(1, 2), places.real, part.n).transpose(0, 1) for x in (k, v)]
    return k, v, places


def _spread(x: Tensor, real: Tensor | None, n: int) -> Tensor:
    """`n` of the real entries of x [B, S, ...], evenly; with few some come twice."""
    rows = x.flatten(0, 1) if real is None else x[real.expand(x.shape[:2])]
    return rows[torch.linspace(0, len(rows) - 1, n, device=x.device).round().long()]
