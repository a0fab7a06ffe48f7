"""The k largest of a row and its log-normaliser, quickly: a decoding step should not spend its time passing over the vocabulary.

Scores [N, V] may lie row by row or, as a product in the quick order leaves them (core/heads.py), column by column: both are read as
they lie.
"""

import torch
from torch import Tensor

BLOCK = 256
CHUNK = 2**18  # scores exponentiated at a time: 1 MB of float32 stays in a cache


def by_columns(x: Tensor) -> bool:
    return x.stride(0) == 1 and x.shape[0] > 1


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
    head, rest = x[:, : blocks * BLOCK], x[:, blocks * BLOCK :]
    if by_columns(x):  # torch's reductions are quick only over axes in the order of memory
        body = head.t().unflatten(0, (blocks, BLOCK))  # [blocks, BLOCK, N]
        best = body.amax(1).t().topk(k, dim=1).indices  # [N, k]
        few = body.gather(0, best.t()[:, None].expand(-1, BLOCK, -1)).permute(2, 0, 1).flatten(1)  # [N, k * BLOCK]
    else:
        body = head.unflatten(1, (blocks, BLOCK))
        best = body.amax(2).topk(k, dim=1).indices
        few = body.gather(1, best[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    where = (best[:, :, None] * BLOCK + torch.arange(BLOCK, device=x.device)).flatten(1)
    if rest.shape[1]:
        few = torch.cat([few, rest], 1)
        where = torch.cat([where, torch.arange(blocks * BLOCK, v, device=x.device).expand(n, -1)], 1)
    values, at = few.topk(k, dim=1)
    return values, where.gather(1, at)


def log_normaliser(x: Tensor) -> Tensor:
    """log Σ exp of each row of [N, V]: [N, 1]. Rows of nothing but -inf give -inf.

    On a CPU row by row: a sum is then in the same order in any batch, and the exponentials are never all written to memory, as log_softmax
    would; what lies by columns goes chunk by chunk.
    """
    if x.device.type != "cpu":
        return x.logsumexp(1, keepdim=True)
    if not by_columns(x):
        return torch.cat([row.logsumexp(1, keepdim=True) for row in x.split(1)]) if len(x) else x.new_empty(0, 1)
    columns = x.t()  # [V, N], rows contiguous
    largest = columns.amax(0).clamp_min_(torch.finfo(x.dtype).min)
    total = torch.zeros_like(largest)
    for part in columns.split(max(1, CHUNK // x.shape[0])):
        total += (part - largest).exp_().sum(0)
    return total.log_().add_(largest)[:, None]
