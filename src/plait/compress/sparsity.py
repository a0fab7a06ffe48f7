"""Unstructured pruning: single weights become zero. A dense product takes as long with zeros: this saves no time here, and no bytes
before a file is compressed; it is for studying what a model needs, and for hardware that skips zeros."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from plait.core.blocks import Stack
from plait.core.linear import Linear
from plait.errors import InputError

Net = TypeVar("Net", bound=nn.Module)


def magnitude(net: Net, share: float, moments: Mapping[str, Tensor] | None = None) -> Net:
    """The smallest `share` of the weights of each matrix of the blocks becomes zero, in place (Han et al. 2015; one share for all layers).

    With `moments` (`calibration.moments`) a weight counts with the size of its input, and the smallest of each row go (Wanda, Sun et
    al. 2024, section 3).
    """
    if not 0 < share < 1:
        raise InputError(f"share={share}: expected a share of the weights between 0 and 1, such as 0.5")

    def small(size: Tensor, whole_rows: bool) -> Tensor:
        flat = size if whole_rows else size.flatten()[None]
        going = flat.argsort(dim=1, stable=True)[:, : round(share * flat.shape[1])]
        return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, going, True).view_as(size)

    return _zeroed(net, small, moments)


def two_of_four(net: Net, moments: Mapping[str, Tensor] | None = None) -> Net:
    """Of each four neighbours in a row of the blocks' matrices the two smallest become zero, in place (2:4, Mishra et al. 2021, 3).

    Columns behind the last whole four stay. `moments` as of `magnitude`.
    """

    def small(size: Tensor, whole_rows: bool) -> Tensor:
        whole = size.shape[1] // 4 * 4
        fours = size[:, :whole].unflatten(1, (-1, 4))
        going = torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, fours.argsort(dim=-1, stable=True)[..., :2], True)
        return nn.functional.pad(going.flatten(1), (0, size.shape[1] - whole))

    return _zeroed(net, small, moments)


@torch.no_grad()
def _zeroed(net: Net, small: Callable[[Tensor, bool], Tensor], moments: Mapping[str, Tensor] | None) -> Net:
    stacks = [name for name, part in net.named_modules() if isinstance(part, Stack)]
    inside = {
        name: part for name, part in net.named_modules() if type(part) is Linear and any(name.startswith(f"{stack}.") for stack in stacks)
    }
    if not inside:
        raise InputError("no matrix of the model's blocks has weights of its own: what is quantised or adapted already cannot be pruned so")
    for name, part in inside.items():
        size, known = part.weight.abs(), moments is not None and name in moments
        if moments is not None and known:
            size = size * moments[name].diagonal().sqrt().to(size.dtype)
        part.weight.masked_fill_(small(size, known), 0.0)
    return net
