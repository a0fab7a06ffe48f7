"""Steps between the form in which a file stores weights and ours: bijections on bits, each with its inverse, no arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Step:
    """One step of a rule. `apply` goes from a file's tensor to ours, `undo` back: undo(apply(parts)) has the bits of `parts`."""

    by_rows = False  # whether it moves whole rows (what lies along the last axis), so that it works on packed ones too

    def apply(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> Sequence[Tensor]:
        """Tensors nearer to ours; `shapes` are the shapes wanted of them (a split reads its sizes there)."""
        raise NotImplementedError

    def undo(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        raise NotImplementedError


@dataclass(frozen=True)
class Transpose(Step):
    """Matrices stored [d_in, d_out] (GPT-2's Conv1D); vectors pass, so that one rule serves weight and bias."""

    def apply(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> Sequence[Tensor]:
        return self.undo(parts)

    def undo(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        return [t.transpose(-1, -2) if t.dim() > 1 else t for t in parts]


@dataclass(frozen=True)
class Split(Step):
    """Several of ours lie one after another along an axis of one of theirs (a fused query-key-value projection)."""

    axis: int = 0

    def apply(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> Sequence[Tensor]:
        (whole,) = parts
        return whole.split([shape[self.axis] for shape in shapes], self.axis)

    def undo(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        return [torch.cat(list(_alike(parts)), self.axis)]


@dataclass(frozen=True)
class Unstack(Step):
    """Several of ours, all of one shape, lie along an axis of their own in one of theirs (experts of a layer)."""

    axis: int = 0

    def apply(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> Sequence[Tensor]:
        (whole,) = parts
        return whole.unbind(self.axis)

    def undo(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        return [torch.stack(list(_alike(parts)), self.axis)]


@dataclass(frozen=True)
class Permute(Step):
    """Their axes in another order, as `Tensor.permute` takes it."""

    axes: tuple[int, ...]

    def apply(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> Sequence[Tensor]:
        return [t.permute(self.axes) for t in parts]

    def undo(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        back = [self.axes.index(axis) for axis in range(len(self.axes))]
        return [t.permute(back) for t in parts]


@dataclass(frozen=True)
class Regroup(Step):
    """Their first axis, of weights and of biases, is a grid of these sizes (one may be -1), whose axes ours has in another order."""

    grid: tuple[int, ...]
    order: tuple[int, ...]
    by_rows = True

    def apply(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> Sequence[Tensor]:
        return [_regrouped(t, self.grid, self.order) for t in parts]

    def undo(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        back = [self.order.index(axis) for axis in range(len(self.order))]
        return [_regrouped(t, [self.grid[axis] for axis in self.order], back) for t in parts]


def _regrouped(t: Tensor, grid: Sequence[int], order: Sequence[int]) -> Tensor:
    rest = range(len(grid), len(grid) + t.dim() - 1)
    return t.unflatten(0, tuple(grid)).permute(*order, *rest).flatten(0, len(grid) - 1)


transpose = Transpose()


def split(axis: int = 0) -> Split:
    return Split(axis)


def unstack(axis: int = 0) -> Unstack:
    return Unstack(axis)


def permute(*axes: int) -> Permute:
    if sorted(axes) != list(range(len(axes))):
        raise ValueError(f"permute{axes} is no order of the axes 0 to {len(axes) - 1}")
    return Permute(axes)


def regroup(grid: Sequence[int], order: Sequence[int]) -> Regroup:
    if sorted(order) != list(range(len(grid))):
        raise ValueError(f"order={tuple(order)} is no order of the axes of the grid {tuple(grid)}")
    return Regroup(tuple(grid), tuple(order))


def halves(d_head: int) -> Regroup:
    """Rotary channels of each head: theirs turn in pairs 2i, 2i + 1 (Meta's own files, GGUF), ours i and i + d_head / 2."""
    if d_head % 2:
        raise ValueError(f"d_head={d_head} is odd: rotary positions turn pairs of channels")
    return regroup((-1, d_head // 2, 2), (0, 2, 1))


def _alike(parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """Joining tensors of several dtypes would silently convert some of them."""
    if len(dtypes := sorted({str(t.dtype) for t in parts})) > 1:
        raise ValueError(f"weights that lie in one tensor of the file have dtypes {', '.join(dtypes)}: convert them to one")
    return parts


@dataclass(frozen=True)
class Row(Step):
    """A vector that a file stores as a matrix of one row."""

    def apply(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> Sequence[Tensor]:
        return [t.squeeze(0) for t in parts]

    def undo(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        return [t.unsqueeze(0) for t in parts]


row = Row()


@dataclass(frozen=True)
class Flat(Step):
    """A kernel [d_out, *sizes] as a matrix over what it covers, [d_out, product of sizes]; vectors pass."""

    sizes: tuple[int, ...]

    def apply(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> Sequence[Tensor]:
        return [t.flatten(1) if t.dim() > 1 else t for t in parts]

    def undo(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        return [t.unflatten(1, self.sizes) if t.dim() > 1 else t for t in parts]


def flat(*sizes: int) -> Flat:
    return Flat(sizes)
