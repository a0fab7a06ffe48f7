"""Attention weights of a forward pass, whatever kernel computes its output."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.core.model import Model
from plait.core.stream import Stream, Watcher


class Recorder(Watcher):
    """Keeps the attention weights of the paths it `wants`: (tower, depth, step), such as ("decoder", 2, "cross_attn").

    The output still comes from the model's own kernel; the weights are computed beside it, from the same queries and keys.
    """

    def __init__(self, wants: Callable[[tuple], bool] = lambda path: True):
        self._wants = wants
        self.seen: dict[tuple, Tensor] = {}

    def wants(self, path: tuple) -> bool:
        return len(path) == 3 and self._wants(path)

    def see(self, path: tuple, found: Tensor) -> None:
        self.seen[path] = found.detach()

    def stacked(self, tower: str, step: str) -> np.ndarray | None:
        """Weights [layers, heads, L, S] of one kind of attention for the first row; None where the tower has no such step."""
        found = [w[0] for (t, _, s), w in sorted(self.seen.items(), key=lambda item: item[0][1]) if (t, s) == (tower, step)]
        return torch.stack(found).float().cpu().numpy() if found else None


@torch.inference_mode()
def record(net: Model, wants: Callable[[tuple], bool] = lambda path: True, **streams: Tensor | Stream) -> tuple[Recorder, dict[str, Any]]:
    """One forward pass over the towers' streams -> (what was seen, the finished streams)."""
    recorder = Recorder(wants)
    was = net.training
    net.eval()
    try:
        return recorder, net(watch=recorder, **streams)
    finally:
        net.train(was)
