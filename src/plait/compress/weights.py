"""Weights in 8 or 4 bits: a pass over a finished model, the way back from a file, and GGUF's blocks taken as they are."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from plait.core.embeddings import Tokens
from plait.core.linear import Linear
from plait.core.quantised import GROUP, Quantised, packed, place, quantised
from plait.errors import InputError, choices

BITS = (8, 4)
ACTIVATIONS = ("int8", "float32")
Net = TypeVar("Net", bound=nn.Module)

MATRIX = ".matrix."  # what stands in a state's names between a part and the tensors of its quantised matrix


@torch.no_grad()
def quantise(net: Net, bits: int = 8, *, only: Sequence[str] = ("*",), activations: str = "int8") -> Net:
    """Every `Linear` and token embedding (a tied output with it) gets a matrix of 8 or 4 bits a value, in place; returns the model.

    `only` are patterns of their names (`decoder.blocks.*`, `*.embed.tokens`): a second pass with other bits takes the rest, since
    what is quantised stays. `activations="int8"` rounds what is multiplied, too, to 127 steps of each group of 32: faster, and beside
    4 bits without consequence. Positions, norms and biases stay. InputError where nothing is left to do or a weight cannot be held.
    """
    names = [name for name, _ in net.named_modules()]
    lost = [pattern for pattern in only if not any(fnmatchcase(name, pattern) for name in names)]
    faults = [f"{pattern!r} matches no part; patterns are like 'decoder.blocks.*'" for pattern in lost]
    if bits not in BITS:
        faults.append(f"bits={bits!r}: expected {choices(map(str, BITS))}")
    if activations not in ACTIVATIONS:
        faults.append(f"activations={activations!r}: expected {choices(ACTIVATIONS)}")
    parts = {name: part for name, part in _parts(net).items() if any(fnmatchcase(name, pattern) for pattern in only)}
    if not parts and not faults:
        faults.append("no Linear and no token embedding is left that is not quantised")
    if meta := [name for name, part in parts.items() if part.weight.is_meta]:
        faults.append(f"{len(meta)} weights have no values yet, {meta[0]} among them: load the checkpoint first")
    if not faults:
        matrices = {}
        for name, part in parts.items():
            try:
                matrices[name] = quantised(part.weight, bits, activations == "int8")
            except ValueError as error:
                faults.append(f"{name}: {error}")
    if faults:
        raise InputError("the model cannot be quantised so; it was left as it was", faults)
    place(net, matrices)
    return net


def restore(net: Net, state: Mapping[str, Tensor], *, activations: str = "int8") -> Net:
    """A model as it was built, on `meta` or not, with the state of a quantised one: which parts are quantised is seen from its names.

    InputError lists all names and shapes that do not fit. The tensors of `state` are used, not copied.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if MATRIX in name:
            found.setdefault(name.split(MATRIX)[0], {})[name.split(MATRIX)[1]] = tensor
    parts, faults, matrices = _parts(net), [], {}
    if activations not in ACTIVATIONS:
        faults.append(f"activations={activations!r}: expected {choices(ACTIVATIONS)}")
    for name, tensors in found.items():
        if name not in parts:
            faults.append(f"{name}: is no Linear and no token embedding of this model")
        elif fault := _fault(tensors, tuple(parts[name].weight.shape)):
            faults.append(f"{name}: {fault}")
        else:
            matrices[name] = Quantised(**{"least": None, **tensors}, rounding=activations == "int8")  # type: ignore[arg-type]
    expected = {n: tuple(t.shape) for n, t in net.state_dict().items() if not any(n == f"{name}.weight" for name in found)}
    given = {n: tuple(t.shape) for n, t in state.items() if MATRIX not in n}
    for name in sorted({**expected, **given}):
        if expected.get(name) != given.get(name):
            faults.append(f"{name}: expected {expected.get(name, 'nothing')}, given {given.get(name, 'nothing')}")
    if faults:
        raise InputError("these weights are not of this model, or not whole", faults)
    place(net, matrices)
    net.load_state_dict(dict(state), assign=True)
    return net


def from_gguf(data: Tensor, kind: str, shape: Sequence[int], activations: str = "int8") -> Quantised:
    """The blocks of a GGUF tensor (uint8, as `GgufFile.raw` gives them) of type Q8_0, Q4_0 or Q4_1 and torch's shape [d_out, d_in].

    The numbers are those of the file: Q4_0 counts from -8 * scale, which needs no least value.
    """
    heads = {"Q8_0": 2, "Q4_0": 2, "Q4_1": 4}  # bytes before the codes of a block: the scale, and in Q4_1 the least value
    d_out, d_in = shape
    if kind not in heads:
        raise InputError(f"{kind} blocks are not multiplied as they are; {choices(heads)} are, others become float32")
    blocks = data.view(d_out, d_in // GROUP, -1)
    halves = blocks[..., : heads[kind]].contiguous().view(torch.float16)
    least = halves[..., 1] if kind == "Q4_1" else None
    return packed(blocks[..., heads[kind] :], halves[..., 0], least, d_in, activations == "int8")


def _parts(net: nn.Module) -> dict[str, Any]:
    return {name: part for name, part in net.named_modules() if type(part) in (Linear, Tokens)}


def _fault(tensors: Mapping[str, Tensor], size: tuple[int, ...]) -> str | None:
    """What is wrong with the tensors of a quantised matrix, whose sizes the kernels trust."""
    blocks, groups = -(-size[0] // 8), -(-size[1] // GROUP)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    codes = next((c for b in BITS if (c := (blocks, groups, b, 8, 4)) == shapes.get("codes")), None)
    expected = {"codes": codes, "scale": (blocks, groups, 8), "size": (2,), **({"least": (blocks, groups, 8)} if "least" in shapes else {})}
    types = {"codes": torch.uint8, "scale": torch.int16, "least": torch.int16, "size": torch.int64}
    if shapes != expected or any(tensors[name].dtype != types[name] for name in tensors):
        return f"{shapes} do not make a matrix of {size[0]} rows and {size[1]} columns in {choices(map(str, BITS))} bits"
    return None if tuple(tensors["size"].tolist()) == size else f"is a matrix {tensors['size'].tolist()}, expected {list(size)}"
