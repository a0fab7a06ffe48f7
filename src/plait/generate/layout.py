"""A pass before decoding: weights laid out in memory for products of few rows. No number changes, shapes and names stay."""

import torch

from plait.core import native
from plait.core.heads import Tied
from plait.core.linear import Fixed, Linear, Packed
from plait.core.model import Model
from plait.errors import InputError

ROWS = 64  # of a decoding step with beams: sources times beams
ENOUGH = 16  # rows from which on a packed weight is faster than one by columns (docs/log.md)
LARGEST = 2**31  # bytes of weights; packed ones are a second copy, and large models should not need twice their memory


@torch.no_grad()
def for_few_rows(net: Model, rows: int = ROWS) -> Model:
    """Every `Linear` and tied output gets a packed copy of its weight (docs/log.md has what that brings); returns the same model.

    Where that brings nothing (products of very few `rows`) or is not to be had, weights stay as they are for the native program of a step
    (`core/program.py`); where there is none, `Linear` weights [out, in] are stored column by column, in no more memory: BLAS multiplies
    a few rows by a matrix that lies so up to five times as fast, and many rows as fast as before.
    """
    parts = [part for part in net.modules() if type(part) in (Linear, Tied)]
    pays = rows >= ENOUGH and sum(part.weight.nbytes for part in parts) <= LARGEST  # type: ignore[union-attr]
    for part in parts:
        assert isinstance(part, Linear | Tied)
        if pays and Packed.possible(part.weight):
            part.packed = Packed(part.weight, rows)
        elif isinstance(part, Linear) and native.library("step") is None:
            part.weight.data = part.weight.data.t().contiguous().t()
    return net


@torch.no_grad()
def exactly(net: Model) -> Model:
    """Every sum is taken in one order, so that a text's numbers are the same bits alone, in any batch, padded, cached or not.

    What is computed without gradients becomes slower for many rows at a time: 1.2 times for 16 texts, 1.75 for a prompt of 512
    (docs/log.md). InputError where a weight is not float32 on a CPU, or there is no native kernel.
    """
    faults = []
    for name, part in net.named_modules():
        if type(part) in (Linear, Tied):
            try:
                part.packed = Fixed(part.weight)  # type: ignore[union-attr, arg-type]
            except ValueError as error:
                faults.append(f"{name}: {error}")
    if faults:
        raise InputError("this model cannot be computed exactly", faults)
    net.exact = True
    return net
