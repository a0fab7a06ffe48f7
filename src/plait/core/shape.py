"""What is left of a model: the layers, heads and feed-forward units that a pass kept, as plain JSON, so that it is built again.

A shape is {"layers": {stack: [layers kept]}, "heads": {attention: [key heads kept]}, "units": {ffn: how many are kept}}; any of them may
be missing. Widths are named as they are once the layers are taken out. `Model.shape` lists the shapes that a model went through.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from plait.core.attention import Attention
from plait.core.biases import SomeHeads
from plait.core.blocks import Stack
from plait.core.feedforward import FFN
from plait.core.linear import Linear
from plait.core.memory import Memory
from plait.errors import InputError, choices

Net = TypeVar("Net", bound=nn.Module)


@torch.no_grad()
def shaped(net: Net, shape: Mapping[str, Mapping[str, Any]]) -> Net:
    """Takes out of `net`, in place, what the shape does not keep; on `meta` too. Grouped queries go and stay with their key head.

    `units` may list the units kept; their number alone is what a model needs that gets the weights of one that was pruned so.
    InputError names all that does not fit.
    """
    if odd := sorted(set(shape) - set(KINDS)):
        raise InputError(f"a shape says what is kept of {choices(KINDS)}, not of {', '.join(odd)}")
    said: dict[str, Any] = {}
    for kind, (of, narrowed) in KINDS.items():
        parts, faults = dict(net.named_modules()), []
        for name, kept in shape.get(kind, {}).items():
            part = parts.get(name)
            if not isinstance(part, of):
                faults.append(f"{name}: there is no {of.__name__} of this name")
            elif fault := _fault(part, kept):
                faults.append(f"{name}: {fault}")
        if faults:
            raise InputError(f"this model cannot keep such {kind}", faults)
        for name, kept in shape.get(kind, {}).items():
            narrowed(parts[name], range(kept) if isinstance(kept, int) else kept)
            said.setdefault(kind, {})[name] = kept if isinstance(kept, int) else len(kept) if kind == "units" else list(kept)
    net.shape = [*getattr(net, "shape", ()), said]  # type: ignore[assignment]
    return net


def size_of(part: nn.Module) -> int:
    """Key heads of an attention, units of a feed-forward step, layers of a stack: what a shape counts."""
    if isinstance(part, Stack):
        return len(part.order)
    if isinstance(part, Attention):
        return len(part.k_proj.weight) // part.d_head
    assert isinstance(part, FFN)
    return len(part.up_proj.weight)


def _fault(part: nn.Module, kept: Any) -> str | None:
    """What is wrong with what is to be kept of a part."""
    odd = [f"{name} is a {type(one).__name__}" for name, one in part.named_modules() if name.endswith("_proj") and type(one) is not Linear]
    if isinstance(part, Attention) and part.memory is not None and type(part.memory) is not Memory:
        odd.append(f"memory is a {type(part.memory).__name__}")
    if odd:
        return f"{', '.join(odd)}: what is quantised or adapted cannot be made narrower; do that first"
    ids, size = list(range(kept)) if isinstance(kept, int) else list(kept), size_of(part)
    if not ids:
        return "nothing of it would be left"
    if any(not isinstance(i, int) or not 0 <= i < size for i in ids) or ids != sorted(set(ids)):
        return f"keeps {str(ids)[:60]}: expected numbers from 0 to {size - 1}, each once and in order"
    return None


def _only_layers(stack: Stack, kept: Iterable[int]) -> None:
    order = [stack.order[i] for i in kept]
    blocks = {i: stack[i] for i in sorted(set(order))}
    places = {i: place for place, i in enumerate(blocks)}
    stack._modules.clear()
    stack.extend(blocks.values())
    stack.order = tuple(places[i] for i in order)


def _only_heads(part: Attention, kept: Iterable[int]) -> None:
    groups = list(kept)
    each = len(part.q_proj.weight) // len(part.k_proj.weight)  # queries of a key head
    queries = [group * each + i for group in groups for i in range(each)]
    channels, key_channels = (torch.tensor([h * part.d_head + i for h in heads for i in range(part.d_head)]) for heads in (queries, groups))
    rows = {"q_proj": channels, "k_proj": key_channels, "v_proj": key_channels}
    for layer, ids in [(layer, rows.get(name.rpartition(".")[2])) for name, layer in part.named_modules()]:
        if ids is not None:  # of places too, where an attention projects these apart
            _narrow(layer, ids)  # type: ignore[arg-type]
    _narrow(part.o_proj, columns=channels)
    if part.score_bias is not None and part.score_bias.fixed:  # others look at the queries, and so see fewer heads by themselves
        part.score_bias = SomeHeads(part.score_bias, queries)
    if isinstance(memory := part.memory, Memory):
        for name, p in list(memory.named_parameters()):
            setattr(memory, name, _some(p, 0, torch.tensor(groups)))


def _only_units(part: FFN, kept: Iterable[int]) -> None:
    units = torch.tensor(list(kept))
    for layer in (part.up_proj, part.gate_proj):
        if layer is not None:
            _narrow(layer, units)
    _narrow(part.down_proj, columns=units)


def _narrow(layer: Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    layer.packed = None
    for axis, ids in ((0, rows), (1, columns)):
        if ids is not None:
            layer.weight = _some(layer.weight, axis, ids)
    if rows is not None and layer.bias is not None:
        layer.bias = _some(layer.bias, 0, rows)


def _some(p: nn.Parameter, axis: int, ids: Tensor) -> nn.Parameter:
    return nn.Parameter(p.index_select(axis, ids.to(p.device)), p.requires_grad)


KINDS: dict[str, tuple[type[nn.Module], Any]] = {
    "layers": (Stack, _only_layers),
    "heads": (Attention, _only_heads),
    "units": (FFN, _only_units),
}
