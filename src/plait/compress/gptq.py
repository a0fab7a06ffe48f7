"""GPTQ: rounding column by column, each column's error made good by those that follow (Frantar et al. 2023)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.compress.aware import SHRINKS, weighing
from plait.core.codes import GROUP, STEPS, encoded4, encoded8, halved
from plait.core.quantised import Quantised, packed

COLUMNS = 4 * GROUP  # of a block, behind which the others are brought up to date together (section 3.3, step 2)
DAMPING = 0.01  # of the mean of the moments' diagonal is added to it (section 3.3, step 3)


def gptq(weight: Tensor, bits: int, moment: Tensor, rounding: bool = True, *, damping: float = DAMPING, in_order: bool = True) -> Quantised:
    """A matrix [d_out, d_in] in 8 or 4 bits, so that its products with inputs of this second moment [d_in, d_in] change little.

    Scales are those of `quantised`, fitted to each group of 32 as its turn comes, errors of earlier columns included. Otherwise than
    with `in_order` the columns that weigh most come first (the authors' "act-order"); scales are then of the weights as they are.
    """
    n, d_in = weight.shape
    w = F.pad(weight.detach().double(), (0, -d_in % GROUP))
    size = w.shape[1]
    columns = torch.arange(size, device=w.device)
    h = torch.eye(size, dtype=w.dtype, device=w.device)
    h[:d_in, :d_in] = moment.double()
    if not in_order:
        columns = h.diagonal()[:d_in].argsort(descending=True, stable=True)
        columns = torch.cat([columns, torch.arange(d_in, size, device=w.device)])
    scale, least, weights = w.new_zeros(n, size // GROUP), w.new_zeros(n, size // GROUP), weighing(moment)
    if not in_order:
        for group in range(size // GROUP):
            scale[:, group], least[:, group] = fitted(w[:, group * GROUP : (group + 1) * GROUP], bits, weights[group])
    inverse = factor(h, damping)[columns][:, columns] if in_order else factor(h[columns][:, columns], damping)
    w, codes = w[:, columns], torch.empty(n, size, dtype=torch.int16, device=w.device)
    bounds = (-STEPS, STEPS) if bits == 8 else (0, 15)
    for start in range(0, size, COLUMNS):
        stop = min(start + COLUMNS, size)
        errors = w.new_zeros(n, stop - start)
        for i in range(start, stop):
            group = int(columns[i]) // GROUP
            if in_order and i % GROUP == 0:
                scale[:, group], least[:, group] = fitted(w[:, i : i + GROUP], bits, weights[group])
            step = torch.where(scale[:, group] == 0, 1.0, scale[:, group])
            code = ((w[:, i] - least[:, group]) / step).round().clamp(*bounds)
            error = (w[:, i] - code * scale[:, group] - least[:, group]) / inverse[i, i]
            w[:, i:stop] -= error[:, None] * inverse[i, i:stop]
            errors[:, i - start], codes[:, columns[i]] = error, code.to(torch.int16)
        w[:, stop:] -= errors @ inverse[start:stop, stop:]
    grouped = codes.unflatten(1, (-1, GROUP))
    stored = grouped.to(torch.int8).view(torch.uint8) if bits == 8 else halved(grouped.to(torch.uint8))
    return packed(stored, scale.half(), least.half() if bits == 4 else None, d_in, rounding)


def fitted(w: Tensor, bits: int, weighing: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and least value [N] that a group [N, 32] is rounded with, as the numbers that float16 holds."""
    group = w.float()[:, None]
    _, scale, least = encoded8(group) if bits == 8 else encoded4(group, weighing[None], SHRINKS)
    return scale[:, 0].to(w.dtype), torch.zeros_like(w[:, 0]) if least is None else least[:, 0].to(w.dtype)


def factor(h: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of a second moment [D, D], damped; more where it is nearly singular."""
    h = h.clone()
    diagonal = h.diagonal()
    diagonal[diagonal == 0] = 1.0  # an input that was always zero: its column is rounded, and changes no other
    mean = diagonal.mean()
    while True:
        lower, failed = torch.linalg.cholesky_ex(h + damping * mean * torch.eye(len(h), dtype=h.dtype, device=h.device))
        if not failed:
            return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
        damping = max(10 * damping, 1e-8)
