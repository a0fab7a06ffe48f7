"""torch's initial values, for tensors that have memory. On `meta` they would draw nothing, and import torch's compiler first (3 to 5 s)."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

from torch import Tensor, nn

P = ParamSpec("P")


def _in_memory(draw: Callable[Concatenate[Tensor, P], Tensor]) -> Callable[Concatenate[Tensor, P], Tensor]:
    @wraps(draw)
    def filled(p: Tensor, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        return p if p.is_meta else draw(p, *args, **kwargs)

    return filled


uniform_ = _in_memory(nn.init.uniform_)
normal_ = _in_memory(nn.init.normal_)
zeros_ = _in_memory(nn.init.zeros_)
ones_ = _in_memory(nn.init.ones_)
constant_ = _in_memory(nn.init.constant_)
xavier_uniform_ = _in_memory(nn.init.xavier_uniform_)
