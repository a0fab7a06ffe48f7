"""What the matrices of a model are given: second moments of their inputs over some data, which say what rounding them costs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from plait.core.heads import Tied
from plait.core.linear import Linear
from plait.errors import InputError

ROWS = 256  # vectors that a matrix must have been given: of fewer the moments are chance
Forward = Callable[[], Any]  # runs a forward of the model on some data

Moments = dict[str, Tensor]  # name of a part -> mean of x xᵀ [d_in, d_in] over the vectors x that its matrix was multiplied by


@torch.no_grad()
def moments(net: nn.Module, forwards: Iterable[Forward]) -> Moments:
    """Of every `Linear`, and of the embedding behind a tied output, seen while each of `forwards` runs; the net is in evaluation mode.

    Memory does not grow with the data: one matrix [d_in, d_in] a part, in the dtype of its inputs, float32 at least. A part that was
    given fewer than `ROWS` vectors (a head that reads one vector a picture) is left out; InputError where that is all of them.
    """
    owners = {part: name for name, part in net.named_modules()}
    found: Moments = {}
    rows: dict[str, int] = {}

    def seen(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(part: nn.Module, given: tuple[Tensor, ...]) -> None:
            x = given[0].detach().flatten(0, -2)
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if name not in found:
                found[name], rows[name] = x.new_zeros(x.shape[1], x.shape[1]), 0
            found[name].addmm_(x.T, x)
            rows[name] += len(x)

        return see

    parts = {part: name for name, part in net.named_modules() if type(part) is Linear}
    parts |= {part: owners[part.tokens.part] for part in net.modules() if type(part) is Tied and part.tokens.part in owners}
    handles = [part.register_forward_pre_hook(seen(name)) for part, name in parts.items()]
    was = net.training
    net.eval()
    try:
        for forward in forwards:
            forward()
    finally:
        net.train(was)
        for handle in handles:
            handle.remove()
    enough = {name: found[name] / rows[name] for name in found if rows[name] >= ROWS}
    if not enough:
        raise InputError(
            f"too little data to calibrate with: the matrices were given {max(rows.values(), default=0):,} vectors, "
            f"{ROWS} are needed (tokens or patches; some thousands are better): give more"
        )
    return enough
