"""A tuning as part of the weights, where it is a change of them: then it costs nothing. The original tensors are kept aside."""

import torch
from torch import nn

from plait.core.adapted import Adapted
from plait.core.linear import Linear
from plait.core.model import Model
from plait.errors import InputError
from plait.tune.attach import attached, detach, put_own, select
from plait.tune.prefixes import Network


@torch.no_grad()
def merge(net: Model, name: str = "default", keep: bool = True) -> None:
    """The weights become those that the layers have with their parts on. Sums are formed in float64.

    `unmerge` brings the original bits back; without `keep` there are none: the model has its own types and names again, nothing is
    attached, and it learns as before. InputError where a part is no change of weights, or where weights are in few bits.
    """
    tuned = attached(net, name)
    if faults := unmergeable(net, name):
        raise InputError(f"{tuned.tuning.method}: cannot be merged", faults)
    select(net, None)
    values = tuned.values()
    for place, part in tuned.placed():
        layer = net.get_submodule(place)
        own = {end: values.get(f"{place}.{end}", getattr(layer, end)) for end in ("weight", "bias")}
        wide = [None if p is None else p.double() for p in own.values()]
        for (end, p), value in zip(own.items(), part.merged(*wide), strict=True):  # type: ignore[operator]
            if p is not None:
                values[f"{place}.{end}"] = nn.Parameter(value.to(p.dtype), requires_grad=False)
    put_own(net, values)
    tunings = net.tunings
    tunings.chosen, tunings.merged = name, True  # type: ignore[union-attr]
    if not keep:
        learned = {id(p) for p in tunings.learned}  # type: ignore[union-attr]
        for owner, end, was in tunings.taken:  # type: ignore[union-attr]
            getattr(owner, end).requires_grad_(id(was) in learned)
        tunings.taken, tunings.chosen = [], None  # type: ignore[union-attr]
        detach(net, name)


def unmerge(net: Model) -> None:
    """The original tensors are the weights again, and the tuning that was merged is chosen, beside them."""
    tunings = getattr(net, "tunings", None)
    if tunings is None or not tunings.merged:
        raise InputError("nothing is merged, or its original weights were not kept")
    select(net, tunings.chosen)


def mergeable(net: Model, name: str = "default") -> bool:
    return not unmergeable(net, name)


def unmergeable(net: Model, name: str = "default") -> list[str]:
    """Why not, for each part that cannot be merged."""
    faults = []
    for place, part in attached(net, name).placed():
        path, _, last = place.rpartition(".")
        here = None if isinstance(part, Network) else getattr(net.get_submodule(path), last)
        layer = here.layer if isinstance(here, Adapted) else here
        if not hasattr(part, "merged"):
            faults.append(f"{place}: a {type(part).__name__} computes what no weights of the model do; it stays beside them")
        elif not isinstance(layer, Linear):
            faults.append(
                f"{place}: its weights are in few bits, which would lose what was learned: open the model without bits, merge there"
            )
    return faults
