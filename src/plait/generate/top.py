"""The k largest of a row, quickly: a decoding step should not spend its time sorting the vocabulary."""

import torch
from torch import Tensor

BLOCK = 256


def top(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`x.topk(k)` of [N, V]: (values, indices) [N, min(k, V)], largest first.

    On a CPU a full topk walks the row in a sequential heap; here blocks are reduced to their maxima first (vectorised). The k largest
    entries lie in the k blocks with the largest maxima, so only those are sorted.
    """
    n, v = x.shape
    k = min(k, v)
    blocks = v // BLOCK
    if x.device.type != "cpu" or blocks < 4 * k:
        return x.topk(k, dim=1)
    body, rest = x[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK)), x[:, blocks * BLOCK :]
    best = body.amax(2).topk(k, dim=1).indices  # [N, k]
    few = body.gather(1, best[:, :, None].expand(-1, -1, BLOCK)).flatten(1)  # [N, k * BLOCK]
    where = (best[:, :, None] * BLOCK + torch.arange(BLOCK, device=x.device)).flatten(1)
    if rest.shape[1]:
        few = torch.cat([few, rest], 1)
        where = torch.cat([where, torch.arange(blocks * BLOCK, v, device=x.device).expand(n, -1)], 1)
    values, at = few.topk(k, dim=1)
    return values, where.gather(1, at)
