"""A block is an ordered set of named residual steps; a stack is blocks, one after another."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plait.core.residual import Rule
from plait.core.stream import Call

Maker = Callable[[int], nn.Module]  # called with the layer's index


class Block(nn.Module):
    """Steps that run in the order given, joined by the residual rule. Step `ffn` is the child `ffn`, its norm `ffn_norm`.

    A step is a module called as step(x [B, L, D], call, path) -> [B, L, D]; `path` is (tower, depth, step name).
    """

    def __init__(self, rule: Rule, norm: Callable[[], nn.Module], steps: dict[str, nn.Module]):
        super().__init__()
        self.names = tuple(steps)
        for name, step in steps.items():
            for place in rule.norms:
                self.add_module(f"{name}_{place}", rule.part(place, norm))
            self.add_module(name, step)
        self.residual = rule

    def forward(self, x: Tensor, call: Call, path: tuple) -> Tensor:
        steps = []
        for name in self.names:
            norms = [self.get_submodule(f"{name}_{place}") for place in self.residual.norms]
            steps.append((partial(self.get_submodule(name), call=call, path=(*path, name)), norms))
        return self.residual(x, steps)


class Stack(nn.ModuleList):
    """Blocks in running order. `order` names the block of each layer when layers share weights.

    order=[0] * 12 is one set of weights for twelve layers (ALBERT, Lan et al. 2020; Universal Transformer, Dehghani et al. 2019).
    With `recompute`, training keeps only what enters each block and computes its inside again on the way back (Chen et al. 2016).
    """

    recompute = False

    def __init__(self, blocks: Sequence[nn.Module], order: Sequence[int] | None = None):
        super().__init__(blocks)
        self.order = tuple(range(len(self)) if order is None else order)
        if any(not 0 <= i < len(self) for i in self.order):
            raise ValueError(f"order={self.order} names a block outside 0..{len(self) - 1}")

    def forward(self, x: Tensor, call: Call, path: tuple) -> Tensor:
        for depth, i in enumerate(self.order):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(self._alone, i, x, call, (*path, depth), use_reentrant=False)  # type: ignore[assignment]
            else:
                x = self[i](x, call, (*path, depth))
            if call.watch is not None and call.watch.wants((*path, depth)):
                call.watch.see((*path, depth), x)
        return x

    def _alone(self, i: int, x: Tensor, call: Call, path: tuple) -> Tensor:
        """A block that shares nothing with those before it: what it computes again must not find what it computed the first time."""
        return self[i](x, replace(call, memo=dict(call.memo)), path)


class PerLayer:
    """A value that differs from layer to layer: a function of the layer's index, or one value for each layer."""

    def __init__(self, values: Callable[[int], Any] | Sequence[Any]):
        self.values = values

    def at(self, layer: int) -> Any:
        return self.values(layer) if callable(self.values) else self.values[layer]


def each(make: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> Maker:
    """A maker for one step of every layer: a fresh module for each, `PerLayer` arguments filled in for that layer."""

    for name, value in (*enumerate(args), *kwargs.items()):
        if isinstance(value, nn.Module):
            raise TypeError(
                f"{name}={type(value).__name__}(...) would be one module for all layers: give PerLayer(maker), or Lent(part) to share"
            )

    def at(value: Any, layer: int) -> Any:
        return value.at(layer) if isinstance(value, PerLayer) else value

    return lambda layer: make(*[at(a, layer) for a in args], **{name: at(a, layer) for name, a in kwargs.items()})


def body(n_layers: int, norm: Callable[[], nn.Module], rule: Callable[[int], Rule], share: int | None = None, **steps: Maker) -> Stack:
    """n layers, each keyword one residual step (its name = its maker) in running order.

    `share`: how many different blocks there are; layer i then uses block i * share // n_layers (1: all layers share one set).
    """
    made = share or n_layers
    blocks = [Block(rule(i), norm, {name: make(i) for name, make in steps.items()}) for i in range(made)]
    return Stack(blocks, [i * made // n_layers for i in range(n_layers)])
