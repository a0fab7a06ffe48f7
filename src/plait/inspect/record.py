"""What a forward pass computes, under the names of `taps.py`, whatever kernel computes its output."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from plait.core.model import Model
from plait.core.stream import Stream
from plait.errors import InputError
from plait.inspect.taps import chosen, evaluating, matches, ready, tapped

PATTERNS = "**.pattern"


class Record(dict[str, Tensor]):
    """Name -> what flowed there in the last forward pass, detached from the graph."""

    def stacked(self, pattern: str) -> Tensor:
        """[layers, B, ...] of the recorded names that match, in running order. InputError if none does, or if they differ in shape."""
        found = {name: value for name, value in self.items() if matches(name, pattern)}
        if len({value.shape for value in found.values()}) != 1:
            faults = [f"{name} is {list(value.shape)}" for name, value in found.items()]
            raise InputError(f"{pattern}: these cannot be stacked" if found else f"{pattern}: nothing of this name was recorded", faults)
        return torch.stack(list(found.values()))


@contextmanager
def record(model: Any, *patterns: str) -> Iterator[Record]:
    """Inside, what is asked for is kept of every forward pass of a net, or of a model that `plait.load` gave; of several, the last.

        with plait.record(model, "decoder.blocks.*.self_attn.pattern", "**.ffn.hidden") as seen:
            model.logits(ids)
        seen["decoder.blocks.3.self_attn.pattern"]     # [B, H, L, S]

    Without patterns the attention weights of all layers are kept. The output is bit for bit what it is without (and without gradients).
    Generation, which goes on from cached text, is refused. InputError for patterns that match nothing, with the nearest names.
    """
    net, seen = ready(model), Record()

    def keep(name: str) -> Any:
        def touch(found: Tensor) -> None:
            seen[name] = found.detach()

        return touch

    with tapped(net, {name: keep(name) for name in chosen(net, patterns or (PATTERNS,))}):
        yield seen


@torch.no_grad()
def recorded(net: Model, *patterns: str, **streams: Tensor | Stream) -> tuple[Record, dict[str, Stream]]:
    """(what was seen, the finished streams) of one forward pass over the towers' streams, without dropout."""
    with evaluating(net), record(net, *patterns) as seen:
        return seen, net(**streams)
