"""Tensors that are spread over ranks (`DTensor`): this rank's piece of one, and the whole of one.

torch's module of them takes most of a second to import, so nothing here imports it for the tensors of a single process.
"""

from typing import Any

import torch
from torch import Tensor


def spread(t: Tensor) -> bool:
    return hasattr(t, "to_local")


def local(t: Any) -> Tensor:
    """What of a tensor lies on this rank, sharing its memory; a plain tensor lies here whole."""
    return t.to_local() if spread(t) else t


def whole(t: Any) -> Tensor:
    """All of a tensor, on every rank of its mesh: all of them must ask."""
    if not spread(t):
        return t
    from torch.distributed.tensor import Replicate

    for axis in range(t.device_mesh.ndim):  # one after the other, the last cut first
        t = t.redistribute(placements=[Replicate() if i <= axis else placement for i, placement in enumerate(t.placements)])
    return t.to_local()


def like(piece: Tensor, t: Any) -> Tensor:
    """This rank's piece as a tensor spread the way `t` is, sharing the piece's memory."""
    if not spread(t):
        return piece
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(piece, t.device_mesh, t.placements, run_check=False, shape=t.shape, stride=t.stride())


def piece(full: Tensor, t: Any) -> Tensor:
    """The part of `full` that lies on this rank where it is spread the way `t` is.

    The last dimension of a mesh cuts first: fully sharded parameters are cut inside what tensor parallelism has left of them.
    """
    if not spread(t):
        return full
    mesh, at = t.device_mesh, t.device_mesh.get_coordinate()
    for axis in reversed(range(mesh.ndim)):
        if not (shard := t.placements[axis]).is_replicate():
            cut = full.chunk(mesh.size(axis), shard.dim)
            full = cut[at[axis]] if at[axis] < len(cut) else full.narrow(shard.dim, 0, 0)
    return full


def placed_as(t: Any) -> tuple:
    """Equal for tensors whose pieces can be stacked."""
    return (tuple(t.shape), t.device_mesh, tuple(t.placements)) if spread(t) else (tuple(t.shape),)


@torch.no_grad()
def fill(t: Tensor, full: Tensor) -> None:
    """A tensor takes the values of a whole one, each rank its own piece."""
    local(t).copy_(piece(full, t))
