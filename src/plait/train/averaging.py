"""A moving average of the weights, kept beside those that learn."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from plait.core.model import learning
from plait.train.placement import local


class MovingAverage:
    """average = decay · average + (1 - decay) · weights after each step (Polyak & Juditsky 1992, in the form of Tarvainen & Valpola 2017).

    In the first steps the decay is smaller, (1 + step) / (10 + step), so that the start is soon forgotten.
    """

    def __init__(self, net: nn.Module, decay: float):
        self.decay = decay
        self.params = learning(net)
        self.average = {name: p.detach().clone() for name, p in self.params.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step`, counted from 1."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        params = [local(p.detach()) for p in self.params.values()]
        torch._foreach_lerp_([local(t) for t in self.average.values()], params, weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model's weights are the average."""
        with torch.no_grad():
            kept = {name: p.detach().clone() for name, p in self.params.items()}
            for name, p in self.params.items():
                p.copy_(self.average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self.params.items():
                    p.copy_(kept[name])

    def state(self) -> dict[str, Tensor]:
        return self.average

    def load(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.average.items():
            tensor.copy_(state[name])
