"""How much a loss hangs on each head (Michel et al. 2019, "Are Sixteen Heads Really Better than One?", section 4.1)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from plait.core.model import Model
from plait.inspect.taps import attentions, evaluating, ready, tapped


def head_importance(model: Any, loss: Callable[[Model, Any], Tensor], batches: Iterable[Any]) -> dict[str, Tensor]:
    """Attention's name -> [H], the mean over rows of |d loss / d gate|, the gate being a factor of 1 on what the head gives.

    `loss(net, batch)` runs the net and gives a loss a row [B], or one number, which then counts as one row. Heads of one layer
    can be compared by it; to compare those of several, the paper divides the numbers of each layer by their norm, `found[name].norm()`.
    """
    net = ready(model)
    sums, rows = dict[str, Tensor](), 0
    for batch in batches:
        gates: dict[str, Tensor] = {}

        with evaluating(net), torch.inference_mode(False), torch.enable_grad():
            with tapped(net, {f"{name}.out": gate(name, gates) for name in attentions(net)}):
                losses = loss(net, batch)
            slopes = torch.autograd.grad(losses.sum(), list(gates.values()), allow_unused=True)
        n = losses.numel()
        rows += n
        for (name, one), slope in zip(gates.items(), slopes, strict=True):
            slope = torch.zeros_like(one) if slope is None else slope
            # A step may cut a row into several (a clip's frames): together they are one.
            share = slope.detach().double().unflatten(0, (n, -1)).sum(1).abs().sum(0)
            sums[name] = sums[name] + share if name in sums else share
    return {name: total / rows for name, total in sums.items()}


def gate(name: str, gates: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """What puts a gate [B, H] behind each head, and remembers it."""

    def touch(found: Tensor) -> Tensor:
        gates[name] = found.new_ones(found.shape[:2], requires_grad=True)
        return found * gates[name][..., None, None]

    return touch
