"""Activation-aware rounding to 4 bits: what is multiplied by large inputs is rounded with most care (AWQ, Lin et al. 2024).

AWQ scales the channels of a matrix so that the weights of large inputs lose less, and divides the norm or the matrix before it by the
same. What may be divided depends on the model: behind a post-norm or a norm of parallel steps others read it too. Our groups have a
scale and a least value of their own, so the same is had inside the matrix, for every model: of each group's ranges, clipped more or
less, the one is taken, and fitted by least squares, whose error is least when that of each column is weighed by the mean square of its
inputs. The bits and the product are those of plain rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.core.codes import GROUP, encoded4
from plait.core.quantised import Quantised, packed

SHRINKS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.72, 0.64)
ROWS = 256  # at a time, so that the passes over them stay in the CPU's cache
FLOOR = 1e-3  # of a group's mean: an input that was never seen counts a little


def weighing(moment: Tensor) -> Tensor:
    """What the squared error of each column counts within its group, [groups, 32]; what fills up the last one counts next to nothing."""
    squares = F.pad(moment.diagonal().float(), (0, -len(moment) % GROUP)).view(-1, GROUP)
    squares = squares + FLOOR * squares.mean(-1, keepdim=True) + torch.finfo(squares.dtype).tiny
    return squares / squares.sum(-1, keepdim=True)


def aware(weight: Tensor, bits: int, moment: Tensor, rounding: bool = True) -> Quantised:
    """A matrix [d_out, d_in] in 4 bits for inputs of this second moment [d_in, d_in], of which the diagonal is used."""
    assert bits == 4
    d_in, weights = weight.shape[1], weighing(moment)
    w = F.pad(weight.detach().float(), (0, -d_in % GROUP)).unflatten(1, (-1, GROUP))
    made = [encoded4(part, weights, SHRINKS) for part in w.split(ROWS)]
    codes, scale, least = (torch.cat(parts) for parts in zip(*made, strict=True))
    return packed(codes, scale, least, d_in, rounding)
