"""Residual rules: where the norms of a block stand, how its steps are added, dropout and stochastic depth.

pre       x + f(norm(x))              sandwich  x + norm'(f(norm(x)))
post      norm(x + f(x))              parallel  x + f(norm(x)) + g(norm'(x))
scaled    x + scale · f(norm(x))
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from plait.core import init
from plait.core.dropout import add_dropped

Step = tuple[Callable[[Tensor], Tensor], list[nn.Module]]  # what the step computes, and its norms in the order of `Rule.norms`


class Rule(nn.Module):
    """How the steps of a block join the stream. `norms` names the norms each step needs: step `ffn` gets `ffn_norm`, and so on.

    `dropout` falls on every step's output (Vaswani et al. 2017, section 5.4). `drop_path` drops a step for a whole row with that
    chance (stochastic depth, Huang et al. 2016), the kept ones scaled up.
    """

    norms: tuple[str, ...] = ("norm",)

    def __init__(self, dropout: float = 0.0, drop_path: float = 0.0):
        super().__init__()
        self.dropout, self.drop_path = dropout, drop_path

    def part(self, place: str, norm: Callable[[], nn.Module]) -> nn.Module:
        """What stands at a place of `norms`."""
        return norm()

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        if self.training and self.drop_path > 0.0:
            kept = torch.rand(y.shape[0], *[1] * (y.ndim - 1), device=y.device) >= self.drop_path
            y = y * (kept.to(y.dtype) / (1.0 - self.drop_path))
        return add_dropped(x, y, self.dropout, self.training)

    def forward(self, x: Tensor, steps: Iterable[Step]) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}, drop_path={self.drop_path}"


class Pre(Rule):
    """Norm before each step (Xiong et al. 2020; GPT-2)."""

    def forward(self, x: Tensor, steps: Iterable[Step]) -> Tensor:
        for step, (norm,) in steps:
            x = self.join(x, step(norm(x)))
        return x


class Post(Rule):
    """Norm after each addition (Vaswani et al. 2017, section 3.1)."""

    def forward(self, x: Tensor, steps: Iterable[Step]) -> Tensor:
        for step, (norm,) in steps:
            x = norm(self.join(x, step(x)))
        return x


class Sandwich(Rule):
    """Norms on both sides of each step, inside the residual branch (CogView, Ding et al. 2021, Gemma 2)."""

    norms = ("norm", "post_norm")

    def forward(self, x: Tensor, steps: Iterable[Step]) -> Tensor:
        for step, (before, after) in steps:
            x = self.join(x, after(step(before(x))))
        return x


class LayerScale(nn.Module):
    """y = x · weight, channel by channel, near zero at the start (Touvron et al. 2021, "Going deeper with image Transformers", 2)."""

    def __init__(self, d: int, start: float = 1e-5):
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.full((d,), start))

    def reset_parameters(self) -> None:
        init.constant_(self.weight, self.start)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Scaled(Sandwich):
    """Norm before each step, a LayerScale after it: x + scale(f(norm(x))) (CaiT, DINOv2)."""

    norms = ("norm", "scale")

    def __init__(self, d_model: int, start: float = 1e-5, dropout: float = 0.0, drop_path: float = 0.0):
        super().__init__(dropout, drop_path)
        self.d_model, self.start = d_model, start

    def part(self, place: str, norm: Callable[[], nn.Module]) -> nn.Module:
        return LayerScale(self.d_model, self.start) if place == "scale" else norm()


class Parallel(Rule):
    """All steps read the same stream and are added together (GPT-J, GPT-NeoX, ViT-22B)."""

    def forward(self, x: Tensor, steps: Iterable[Step]) -> Tensor:
        outputs = [step(norm(x)) for step, (norm,) in steps]
        for y in outputs:
            x = self.join(x, y)
        return x
