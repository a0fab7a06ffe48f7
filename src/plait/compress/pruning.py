"""Structured pruning: the least important heads, feed-forward units or layers go, and the model is smaller by them."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from plait.core.attention import Attention
from plait.core.blocks import Stack
from plait.core.feedforward import FFN
from plait.core.shape import shaped, size_of
from plait.errors import InputError

What = Literal["heads", "units", "layers"]
Net = TypeVar("Net", bound=nn.Module)
KINDS: dict[str, type[nn.Module]] = {"heads": Attention, "units": FFN, "layers": Stack}


def prune(net: Net, what: What, share: float, losses: Iterable[Callable[[], Tensor]] | None = None) -> Net:
    """Takes the least important `share` of all heads, units or layers out of a model, in place; returns it.

    `losses` compute the loss of some data, gradients and all: what they say is worth most is kept (`importance`). Without them weights
    decide, and layers go evenly. With grouped queries a head is a key head and all its queries. InputError where nothing would go,
    or nothing of some part would be left; the model is then as it was. `net.shape` says what was kept.
    """
    if what == "layers" and losses is None:
        return shaped(net, {what: {name: spread(size_of(part), share) for name, part in _parts(net, what).items()}})
    return shaped(net, {what: kept(importance(net, what, losses), share, what)})


def spread(n: int, share: float) -> list[int]:
    """Of n layers those that stay where a share goes evenly, the first and the last among the last to go (Fan et al. 2020, section 3.2)."""
    stay = n - len(_going(share, n, 1, "layers"))
    return [round(i * (n - 1) / max(1, stay - 1)) for i in range(stay)]


def kept(scores: dict[str, Tensor], share: float, what: str) -> dict[str, list[int]]:
    """What stays in each part: all but the lowest scores of all parts together; the best of each part stays in any case."""
    ranked = sorted((float(score), name, i) for name, of in scores.items() for i, score in enumerate(of) if i != int(of.argmax()))
    gone = {ranked[i][1:] for i in _going(share, sum(map(len, scores.values())), len(scores), what)}
    return {name: [i for i in range(len(of)) if (name, i) not in gone] for name, of in scores.items()}


def _going(share: float, total: int, parts: int, what: str) -> range:
    """How many of `total` go, where one of each part must stay."""
    if not 0 < share < 1:
        raise InputError(f"share={share}: expected a share of the {what} between 0 and 1, such as 0.33")
    going, most = round(share * total), total - parts
    if not going:
        raise InputError(f"share={share}: none of the {total} {what} would go; choose {1 / total:.2g} or more")
    if going > most:
        said = f"{going} of the {total} {what} would go, and one must stay in each of {parts} parts"
        raise InputError(f"share={share}: {said}: choose at most {most / total:.2g}")
    return range(going)


def importance(net: nn.Module, what: What, losses: Iterable[Callable[[], Tensor]] | None = None) -> dict[str, Tensor]:
    """Name of each part -> how much each of its heads, units or layers matters.

    With `losses`, |∂loss / ∂gate| of a gate of 1 on what it adds, summed over rows: activation times gradient (Michel et al. 2019,
    section 4.1), which is also weight times gradient over the weights that read it (Molchanov et al. 2019, section 3.1). Without them
    the norm of its weights. Either is divided by its norm over the part, so that parts compare (Molchanov et al. 2017, 2.2).
    """
    parts = _parts(net, what)
    found = _magnitudes(parts) if losses is None else _gates(net, parts, losses)
    return {name: of / of.norm().clamp_min(torch.finfo(of.dtype).tiny) for name, of in found.items()}


def _parts(net: nn.Module, what: What) -> dict[str, Any]:
    """Name -> part that loses something."""
    parts = {name: part for name, part in net.named_modules() if isinstance(part, KINDS[what])}
    if not parts:
        raise InputError(f"this model has no {what} to take out")
    return parts


@torch.no_grad()
def _magnitudes(parts: dict[str, Any]) -> dict[str, Tensor]:
    found = {}
    for name, part in parts.items():
        if isinstance(part, Stack):
            blocks = [sum(p.square().sum() for p in block.parameters()) for block in part]
            found[name] = torch.stack([blocks[i] for i in part.order])  # type: ignore[arg-type]
            continue
        inside, last = _around(part)
        squares = [layer.weight.square().sum(1).view(size_of(part), -1).sum(1) for layer in inside]
        found[name] = sum(squares) + last.weight.square().sum(0).view(size_of(part), -1).sum(1)
    return {name: of.sqrt() for name, of in found.items()}


def _around(part: Any) -> tuple[list[Any], Any]:
    """The matrices whose rows belong to a head or a unit, and the one whose columns do."""
    if isinstance(part, Attention):
        return [layer for name, layer in part.named_modules() if name.endswith(("q_proj", "k_proj", "v_proj"))], part.o_proj
    return [layer for layer in (part.up_proj, part.gate_proj) if layer is not None], part.down_proj


def _gates(net: nn.Module, parts: dict[str, Any], losses: Iterable[Callable[[], Tensor]]) -> dict[str, Tensor]:
    """Sums over all rows of |∂loss / ∂gate|. Parameters get no gradient."""
    kept = {p: p.requires_grad for p in net.parameters()}
    found = {name: next(net.parameters()).new_zeros(size_of(part)) for name, part in parts.items()}
    gates: list[tuple[Tensor, Callable[[Tensor], None]]] = []  # of this loss, each with what its gradient is for

    def one_for_each(x: Tensor, n: int, name: str, at: slice = slice(None)) -> Tensor:
        def take(grad: Tensor) -> None:
            found[name][at] += grad.abs().sum(0)

        gates.append((x.new_ones(x.shape[0], n, requires_grad=True), take))
        return gates[-1][0]

    def widths(name: str, n: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        def gated(layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
            (x,) = given  # [B, L, n * any]
            gate = one_for_each(x, n, name).view(-1, *[1] * (x.ndim - 2), n, 1)
            return ((x.unflatten(-1, (n, -1)) * gate).flatten(-2),)

        return gated

    def layers(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def gated(block: nn.Module, given: tuple[Any, ...], y: Tensor) -> Tensor:
            x, _, path = given
            gate = one_for_each(x, 1, name, slice(path[-1], path[-1] + 1)).view(-1, *[1] * (x.ndim - 1))
            return x + (y - x) * gate

        return gated

    handles = []
    for name, part in parts.items():
        if isinstance(part, Stack):
            handles += [block.register_forward_hook(layers(name)) for block in part]
        else:
            handles.append(_around(part)[1].register_forward_pre_hook(widths(name, size_of(part))))
    was = net.training
    net.eval().requires_grad_(False)
    try:
        for loss in losses:
            gates.clear()
            with torch.enable_grad():
                value = loss()
                grads = torch.autograd.grad(value, [gate for gate, _ in gates], allow_unused=True)
            for (_, take), grad in zip(gates, grads, strict=True):
                if grad is not None:
                    take(grad)
    finally:
        net.train(was)
        for p, wanted in kept.items():
            p.requires_grad_(wanted)
        for handle in handles:
            handle.remove()
    if not any(of.any() for of in found.values()):
        raise InputError("too little data to find what matters: no loss was given, or none that depends on the model: give more")
    return found
