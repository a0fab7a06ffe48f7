"""Small parts on a frozen model: attached under names, one of them chosen at a time, saved and loaded apart from it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from plait.core.adapted import Adapted
from plait.core.memory import Memory
from plait.core.model import Model
from plait.core.stream import Lent
from plait.errors import InputError, choices
from plait.tune.methods import Prefix, Tuning, described, tuning_of
from plait.tune.places import LAYERS, fitting, own_of, parts_of
from plait.tune.prefixes import Network


class Tuned(nn.Module):
    """What one tuning learns: its parts by place, and copies of the model's own parameters that it trains."""

    def __init__(self, tuning: Tuning, parts: Mapping[str, nn.Module], own: Mapping[str, nn.Parameter]):
        super().__init__()
        self.tuning = tuning
        # A name in a module has no dots.
        self.parts = nn.ModuleDict({place.replace(".", "/"): part for place, part in parts.items()})
        self.own = nn.ParameterDict({name.replace(".", "/"): p for name, p in own.items()})

    def placed(self) -> Iterator[tuple[str, nn.Module]]:
        return ((key.replace("/", "."), part) for key, part in self.parts.items())

    def values(self) -> dict[str, nn.Parameter]:
        return {key.replace("/", "."): p for key, p in self.own.items()}

    def kept(self) -> dict[str, Tensor]:
        """What is to be saved: of a prefix the keys and values, not what makes them."""
        found: dict[str, Tensor] = dict(self.values())
        for place, part in self.placed():
            if isinstance(part, Memory):
                found |= dict(zip((f"{place}.k", f"{place}.v"), part.learned(), strict=True))
            elif not isinstance(part, Network):
                found |= {f"{place}.{name}": p for name, p in part.named_parameters()}
        return {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in found.items()}


class Tunings(nn.Module):
    """What is attached to a model, by name (`net.tunings`), and what was taken out of it for the one that is chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: str | None = None
        self.merged = False
        self.taken: list[tuple[nn.Module, str, Any]] = []
        self.learned: list[nn.Parameter] = []  # what the model learned by itself

    def put(self, owner: nn.Module, name: str, value: Any) -> None:
        self.taken.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def clear(self) -> None:
        """The model as it was, bit for bit."""
        for owner, name, was in reversed(self.taken):
            if isinstance(was, nn.Parameter):  # out of the model it was not moved with it
                now = getattr(owner, name)
                was.data = was.data.to(now.device, now.dtype)
            setattr(owner, name, was)
        self.taken, self.chosen, self.merged = [], None, False


def attach(net: Model, tuning: Tuning, name: str = "default", also: Sequence[str] = ()) -> list[str]:
    """Freezes the model, puts the parts of a tuning in place, and chooses them: returns the names of the parameters that are trained.

    `also` are patterns of parameters, or modules, that are trained and saved besides, such as "heads.*".
    Raises one `InputError` with every fault, and leaves the model as it was.
    """
    tuning = tuning_of(described(tuning))  # settings that were made by hand are checked too
    tunings = _tunings(net)
    was, faults = tunings.chosen, list[str]()
    if not name.isidentifier() or hasattr(tunings, name):
        faults.append(f"name={name!r}: {'is taken' if name in names(net) else 'expected a word of letters, digits and underscores'}")
    select(net, None)
    tunings.learned = tunings.learned or [p for p in net.parameters() if p.requires_grad]
    parts, own = parts_of(net, tuning, faults), own_of(net, tuning, also, faults)
    if not (parts or own or faults):
        faults.append("there is nothing it would train")
    if faults:
        select(net, was)
        _forget(net)
        raise InputError(f"{tuning.method}: this model cannot be tuned so", faults)
    values = {path: nn.Parameter(net.get_parameter(path).detach().clone()) for path in own}
    tuned = Tuned(tuning, {place: fitting(part, _under(net, place)) for place, part in parts.items()}, values)
    for p in net.parameters():
        p.requires_grad_(False)
    tunings.add_module(name, tuned.train(net.training))
    select(net, name)
    return [path for path, p in net.named_parameters() if p.requires_grad]


def names(net: Model) -> list[str]:
    """Of what is attached."""
    tunings: Any = getattr(net, "tunings", None)
    return [] if tunings is None else [name for name, _ in tunings.named_children()]


def select(net: Model, name: str | None) -> None:
    """From now on the model computes with what is attached under this name; None: as if nothing were."""
    if name is None and not names(net):
        return
    tunings = _tunings(net)
    tuned = None if name is None else attached(net, name)
    tunings.clear()
    if tuned is None:
        return
    tunings.chosen = name
    put_own(net, tuned.values())
    for place, part in tuned.placed():
        path, _, last = place.rpartition(".")
        if isinstance(part, Network):
            continue
        owner = net.get_submodule(path)
        here = getattr(owner, last)
        tunings.put(owner, last, Adapted(here, part).train(net.training) if isinstance(here, LAYERS) else Lent(part))


@contextmanager
def using(net: Model, name: str | None) -> Iterator[Model]:
    """`select`, and afterwards what was chosen before: for one request."""
    tunings: Any = getattr(net, "tunings", None)
    was = None if tunings is None else tunings.chosen
    if tunings is not None and tunings.merged:
        raise InputError(f"{was!r} is merged into the weights: unmerge it before another is used")
    select(net, name)
    try:
        yield net
    finally:
        select(net, was)


def detach(net: Model, name: str = "default") -> None:
    """Takes it off for good; the last one leaves the model as it was before, learning what it learned."""
    attached(net, name)
    tunings = _tunings(net)
    if tunings.chosen == name:
        tunings.clear()
    delattr(tunings, name)
    _forget(net)


def small(net: Model, name: str = "default") -> dict[str, Tensor]:
    """All that was trained, and nothing else, by names that do not tell what else is attached."""
    return attached(net, name).kept()


def fill(net: Model, state: Mapping[str, Tensor], name: str = "default") -> None:
    """What `small` gave, into what is attached under this name. InputError with every tensor that does not fit."""
    tuned = attached(net, name)
    tensors = dict(tuned.values())
    for place, part in tuned.placed():
        tensors |= {f"{place}.{path}": p for path, p in part.named_parameters()}
    if faults := misfits({path: t.shape for path, t in tensors.items()}, state):
        raise InputError("these tensors are those of another model, or of another tuning", faults)
    with torch.no_grad():
        for path, t in tensors.items():
            t.copy_(state[path])


def load_small(net: Model, tuning: Tuning, state: Mapping[str, Tensor], name: str = "default") -> None:
    """Attaches a tuning that was saved; what its tensors are of the model's own parameters was trained besides."""
    own = dict(net.named_parameters())
    attach(
        net,
        tuning if not isinstance(tuning, Prefix) else Prefix(tuning.length, None, tuning.attentions),
        name,
        [p for p in state if p in own],
    )
    try:
        fill(net, state, name)
    except InputError:
        detach(net, name)
        raise


def misfits(wanted: Mapping[str, Sequence[int]], state: Mapping[str, Tensor]) -> list[str]:
    faults = []
    for path, shape in wanted.items():
        if path not in state:
            faults.append(f"{path} {list(shape)} is missing")
        elif tuple(state[path].shape) != tuple(shape):
            faults.append(f"{path} is {list(state[path].shape)}, this model takes {list(shape)}")
    for path in state.keys() - wanted.keys():
        near = get_close_matches(path, wanted, 1)
        faults.append(f"{path} has no place in this model{f'; near it is {near[0]}' if near else ''}")
    return sorted(faults)


def attached(net: Model, name: str) -> Tuned:
    known = names(net)
    if name not in known:
        raise InputError(f"nothing is attached under the name {name!r}; there is {choices(known) if known else 'nothing at all'}")
    return net.tunings.get_submodule(name)  # type: ignore[return-value, union-attr]


def put_own(net: Model, values: Mapping[str, nn.Parameter]) -> None:
    for path, value in values.items():
        owner, _, last = path.rpartition(".")
        _tunings(net).put(net.get_submodule(owner), last, value)


def _tunings(net: Model) -> Tunings:
    if not hasattr(net, "tunings"):
        net.tunings = Tunings()
    return net.tunings  # type: ignore[return-value]


def _forget(net: Model) -> None:
    if not names(net):
        for p in net.tunings.learned:  # type: ignore[union-attr]
            p.requires_grad_(True)
        del net.tunings


def _under(net: Model, place: str) -> nn.Module:
    """What a part stands on, as far as it is a module."""
    path, _, last = place.rpartition(".")
    owner = net.get_submodule(path)
    here = getattr(owner, last, None)
    return here if isinstance(here, nn.Module) else owner
