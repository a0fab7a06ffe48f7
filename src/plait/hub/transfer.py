"""Weights of one model for another: what has the same name and shape is taken, tables of positions are interpolated, the rest is new."""

from typing import NamedTuple

from torch import Tensor

from plait.compress import numbers
from plait.core.model import Model
from plait.core.pixels import GridPositions


class Transfer(NamedTuple):
    """Names of tensors: taken as they are, taken in another size, and those that start anew."""

    taken: list[str]
    resized: list[str]
    new: list[str]

    @property
    def all(self) -> list[str]:
        """Those that come from the old model."""
        return [*self.taken, *self.resized]

    def __str__(self) -> str:
        told = f"; interpolated: {', '.join(self.resized)}" if self.resized else ""
        return f"{len(self.all)} tensors taken{told}" + (f"; new: {', '.join(self.new)}" if self.new else "")


def transfer(old: Model, net: Model) -> Transfer:
    """Fills in `net` from `old`, in place."""
    own, resized = net.state_dict(), positions_from(old, net)
    (head,) = net.heads if len(net.heads) == 1 else ("",)
    # What a head of another name has in the same form is kept: the pooler that a bare encoder brings is what reads a classifier's text.
    weights = {
        f"heads.{head}.{name.split('.', 2)[2]}" if name.startswith("heads.") else name: t.detach() for name, t in numbers(old).items()
    }
    weights |= resized
    same = {name: weights[name] for name, t in own.items() if name in weights and weights[name].shape == t.shape}
    net.load_state_dict(same, strict=False)
    return Transfer([name for name in same if name not in resized], list(resized), [name for name in own if name not in same])


def positions_from(old: Model, net: Model) -> dict[str, Tensor]:
    """Tables of positions for the new model's grid, interpolated from the old one's."""
    parts, found = dict(old.named_modules()), {}
    for name, part in net.named_modules():
        was = parts.get(name)
        if isinstance(part, GridPositions) and isinstance(was, GridPositions) and part.grid != was.grid and part.before == was.before:
            found[f"{name}.weight"] = was.resized(*part.grid).detach()
    return found
