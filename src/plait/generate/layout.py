"""A pass before decoding: weights laid out in memory for products of few rows. No number changes, shapes and names stay."""

import torch

from plait.core.heads import Tied
from plait.core.linear import Linear, Packed
from plait.core.model import Model

ROWS = 64  # of a decoding step: sources times beams
LARGEST = 2**31  # bytes of weights; packed ones are a second copy, and large models should not need twice their memory


@torch.no_grad()
def for_few_rows(net: Model) -> Model:
    """Every `Linear` and tied output gets a packed copy of its weight (docs/log.md has what that brings); returns the same model.

    Where packing is not to be had, `Linear` weights [out, in] are stored column by column: BLAS multiplies a few rows by a matrix that
    lies so up to five times as fast, and many rows as fast as before.
    """
    parts = [part for part in net.modules() if type(part) in (Linear, Tied)]
    fits = sum(part.weight.nbytes for part in parts) <= LARGEST  # type: ignore[union-attr]
    for part in parts:
        assert isinstance(part, Linear | Tied)
        if fits and Packed.possible(part.weight):
            part.packed = Packed(part.weight, ROWS)
        elif isinstance(part, Linear):
            part.weight.data = part.weight.data.t().contiguous().t()
    return net
