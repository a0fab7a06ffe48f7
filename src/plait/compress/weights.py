"""Weights in 8 or 4 bits: a pass over a finished model, the way back from a file, and GGUF's blocks taken as they are."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from plait.compress.aware import aware
from plait.compress.calibration import Moments
from plait.compress.gptq import gptq
from plait.core.codes import GROUP
from plait.core.embeddings import Tokens
from plait.core.linear import Linear
from plait.core.quantised import Quantised, packed, place, quantised
from plait.errors import InputError, choices

BITS = (8, 4)
ACTIVATIONS = ("int8", "float32")
BLOCKS = {"Q8_0": (8, 2), "Q4_0": (4, 2), "Q4_1": (4, 4)}  # of GGUF: bits, and bytes before the codes: the scale, in Q4_1 the least value
Net = TypeVar("Net", bound=nn.Module)

MATRIX = ".matrix."  # what stands in a state's names between a part and the tensors of its quantised matrix


class Quantising:
    """Takes the matrices of `net` one at a time, as `quantise` makes them, and then puts them in place.

    Of a model that is loaded from a file it is the taker (`weights.source.Taker`), so that no more than one matrix is there in float32;
    blocks of a GGUF that have no more than `bits` bits stay as they are, without a second rounding.
    """

    def __init__(
        self,
        net: nn.Module,
        bits: int,
        only: Sequence[str] = ("*",),
        activations: str = "int8",
        method: str = "nearest",
        moments: Moments | None = None,
    ):
        names = [name for name, _ in net.named_modules()]
        lost = [pattern for pattern in only if not any(fnmatchcase(name, pattern) for name in names)]
        faults = [f"{pattern!r} matches no part; patterns are like 'decoder.blocks.*'" for pattern in lost]
        if bits not in BITS:
            faults.append(f"bits={bits!r}: expected {choices(map(str, BITS))}")
        if activations not in ACTIVATIONS:
            faults.append(f"activations={activations!r}: expected {choices(ACTIVATIONS)}")
        if method not in METHODS:
            faults.append(f"method={method!r}: expected {choices(METHODS)}{_meant(method)}")
        elif bits in BITS and bits not in (allowed := METHODS[method][1]):
            faults.append(f"method={method!r} goes with {choices(map(str, allowed))} bits, not with {bits}")
        if method != "nearest" and not moments:
            faults.append(f"method={method!r} needs the second moments of what the matrices are given (`plait.compress.moments`)")
        parts = {name: part for name, part in _parts(net).items() if any(fnmatchcase(name, pattern) for pattern in only)}
        if moments and (odd := [name for name, part in parts.items() if name in moments and len(moments[name]) != part.weight.shape[1]]):
            faults += [f"{name}: moments of {len(moments[name])} inputs for a matrix of {parts[name].weight.shape[1]}" for name in odd]
        if not parts and not faults:
            faults.append("no Linear and no token embedding is left that is not quantised")
        if faults:
            raise InputError("the model cannot be quantised so; it was left as it was", faults)
        self.net, self.bits, self.activations, self.encode, self.moments = net, bits, activations, METHODS[method][0], moments or {}
        self.parts = {f"{name}.weight": part for name, part in parts.items()}
        self.matrices: dict[str, Quantised] = {}
        self.faults: list[str] = []

    def wants(self, ours: Sequence[str], kind: str) -> bool:
        return kind in BLOCKS and BLOCKS[kind][0] <= self.bits and all(name in self.parts for name in ours)

    def takes(self, ours: str, rows: Tensor, kind: str | None = None) -> bool:
        if ours not in self.parts:
            return False
        name = ours.removesuffix(".weight")
        try:
            if kind is None:
                encode = self.encode if name in self.moments else _nearest
                self.matrices[name] = encode(rows, self.bits, self.moments.get(name), self.activations == "int8")
            else:
                self.matrices[name] = from_gguf(rows, kind, self.parts[ours].weight.shape, self.activations)
        except ValueError as error:
            self.faults.append(f"{name}: {error}")
        return True

    def placed(self) -> None:
        """InputError names every matrix that cannot be held; then none is in its place."""
        if self.faults:
            raise InputError("the model cannot be quantised so; it was left as it was", self.faults)
        place(self.net, self.matrices)


@torch.no_grad()
def quantise(
    net: Net,
    bits: int = 8,
    *,
    only: Sequence[str] = ("*",),
    activations: str = "int8",
    method: str = "nearest",
    moments: Moments | None = None,
) -> Net:
    """Every `Linear` and token embedding (a tied output with it) gets a matrix of 8 or 4 bits a value, in place; returns the model.

    `only` are patterns of their names (`decoder.blocks.*`, `*.embed.tokens`): a second pass with other bits takes the rest, since
    what is quantised stays. `activations="int8"` rounds what is multiplied, too, to 127 steps of each group of 32: faster, and beside
    4 bits without consequence. Positions, norms and biases stay. InputError where nothing is left to do or a weight cannot be held.

    `method` is how codes are found: "nearest" rounds; "gptq" and, in 4 bits, "awq" know by `moments` (`calibration.moments`) what the
    matrices are multiplied by. All fill the same bits; a matrix without a moment is rounded to the nearest.
    """
    made = Quantising(net, bits, only, activations, method, moments)
    if meta := [name for name, part in made.parts.items() if part.weight.is_meta]:
        raise InputError(f"{len(meta)} weights have no values yet, {meta[0]} among them: load the checkpoint first")
    for name, part in made.parts.items():
        made.takes(name, part.weight)
    made.placed()
    return net


def limited(net: Net, bits: int) -> Net:
    """`quantise` of what is not, in place, so that no matrix has more than `bits` bits; InputError where one has more already.

    To round a second time would lose more than to round the numbers that it was made of.
    """
    if bits in BITS and (wide := [part.bits for part in net.modules() if isinstance(part, Quantised) and part.bits > bits]):
        raise InputError(f"bits={bits}: {len(wide)} of its matrices have {wide[0]} bits already; take the model that it was made of")
    return quantise(net, bits) if _parts(net) or bits not in BITS else net


def is_quantised(names: Iterable[str]) -> bool:
    """Whether a state's names are those of a model that `quantise` has made."""
    return any(MATRIX in name for name in names)


def numbers(net: nn.Module) -> dict[str, Tensor]:
    """A model's state by the names it has without quantised matrices: of these the numbers of their codes, float32."""
    state = {name: t for name, t in net.state_dict().items() if MATRIX not in name}
    parts = ((name, part) for name, part in net.named_modules() if isinstance(part, Quantised))
    return state | {f"{name.removesuffix(MATRIX.rstrip('.'))}.weight": part.values() for name, part in parts}


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
    expected = {n: _kind(t) for n, t in net.state_dict().items() if not any(n == f"{name}.weight" for name in found)}
    given = {n: _kind(t) for n, t in state.items() if MATRIX not in n}
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
    d_out, d_in = shape
    if kind not in BLOCKS:
        raise InputError(f"{kind} blocks are not multiplied as they are; {choices(BLOCKS)} are, others become float32")
    head = BLOCKS[kind][1]
    blocks = data.reshape(d_out, d_in // GROUP, -1)
    halves = blocks[..., :head].contiguous().view(torch.float16)
    least = halves[..., 1] if kind == "Q4_1" else None
    return packed(blocks[..., head:], halves[..., 0], least, d_in, activations == "int8")


def _nearest(weight: Tensor, bits: int, moment: Tensor | None, rounding: bool) -> Quantised:
    return quantised(weight, bits, rounding)


def _meant(method: str) -> str:
    near = get_close_matches(method, METHODS, n=1)
    return f"; did you mean {near[0]}?" if near else ""


# What finds the codes of a matrix [d_out, d_in] for the moment [d_in, d_in] of its inputs, and the bits it is for.
METHODS: dict[str, tuple[Callable[..., Quantised], tuple[int, ...]]] = {
    "nearest": (_nearest, BITS),
    "gptq": (gptq, BITS),
    "awq": (aware, (4,)),
}


def _parts(net: nn.Module) -> dict[str, Any]:
    return {name: part for name, part in net.named_modules() if type(part) in (Linear, Tokens)}


def _kind(t: Tensor) -> str:
    """Its shape, and whether its numbers are whole."""
    return f"{list(t.shape)} of {'floating point' if t.is_floating_point() else str(t.dtype).removeprefix('torch.')}"


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
