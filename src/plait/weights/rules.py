"""One table, two directions: which tensor of a file is which parameter of a model, and how its bits are laid out.

A table is a list of `rule`s, with `tie`s, `drop`s, `computed` tensors, `older` names and at most one `prefix`. `load` reads it forwards,
`export` backwards. Everything is checked by names and shapes before the first tensor is read: all of the file is accounted for, all of the
model is filled, each once.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plait.errors import InputError
from plait.weights.certificate import Certificate, Made, Tied
from plait.weights.config import ACTIVATIONS, Keys, activation, fixed, group, key
from plait.weights.config import read as read_keys
from plait.weights.config import write as write_keys
from plait.weights.entries import Computed, Drop, Entry, Older, Prefix, Rule, Tie, computed, drop, older, prefix, rule, tie
from plait.weights.rope import rope, ropes
from plait.weights.source import InBlocks, Source, Taker
from plait.weights.steps import Shape, flat, halves, permute, regroup, row, split, transpose, unstack

# A page declares its table of tensors and its table of settings through this one module.
__all__ = ["ACTIVATIONS", "Entry", "Keys", "activation", "computed", "drop", "export", "fixed", "flat", "group", "halves", "key", "load"]
__all__ += ["older", "permute", "prefix", "read_keys", "regroup", "rope", "ropes", "row", "rule", "split", "tie", "transpose"]
__all__ += ["unstack", "write_keys"]

ROUNDING = 1e-12


@dataclass(frozen=True)
class Fill:
    """A rule applied to one model: `shapes[k]` are the shapes after step k (the file's own first, ours last)."""

    theirs: str
    ours: tuple[str, ...]
    rule: Rule
    shapes: tuple[tuple[Shape, ...], ...]


def load(
    net: nn.Module, source: Source, rules: Iterable[Entry], *, dtype: torch.dtype | None = None, taker: Taker | None = None
) -> Certificate:
    """Fill every parameter (and stored buffer) of `net`, which may be on `meta`, from `source`: one tensor is in memory twice at most.

    Values are kept as read, unless `dtype` converts those of floating point; a model on a device stays there. What a `taker` takes is
    not filled.
    Raises one `InputError` with all faults, before anything is filled, unless the table, the model and the file agree in every name,
    shape and tie.
    """
    rules = list(rules)
    slots, shapes = stored(net), source.shapes()
    fills, faults = resolved(slots, rules)
    bare = _bare(rules, shapes)
    fills = [Fill(fill.theirs.removeprefix(bare), fill.ours, fill.rule, fill.shapes) for fill in fills]
    wanted = {fill.theirs for fill in fills}
    ties = {}
    for entry in rules:
        if isinstance(entry, Tie) and entry.copy.removeprefix(bare) not in wanted:
            copy, of = entry.copy.removeprefix(bare), entry.of.removeprefix(bare)
            ties[copy] = Tied(of, "absent" if copy not in shapes else "copy" if of in shapes else "instead")
    lies_at = {tied.of: copy for copy, tied in ties.items() if tied.found == "instead"}
    taken: dict[str, Fill] = {}
    for fill in fills:
        name, shape = lies_at.get(fill.theirs, fill.theirs), fill.shapes[0][0]
        name = name if name in shapes else next((old for old in _older(name, rules) if old in shapes), name)
        into = ", ".join(f"{ours} {_shape(slots[ours].shape)}" for ours in fill.ours)
        if name in shapes:
            taken[name] = fill
            if tuple(shapes[name]) != shape:
                faults.append(f"{name} is {_shape(shapes[name])} in the file, but {_shape(shape)} would fill {into}")
        else:
            faults.append(f"{name} {_shape(shape)} is not in the file, and is needed for {into}")
    made = {entry.theirs.removeprefix(bare): entry for entry in rules if isinstance(entry, Computed)}
    made = {name: entry for name, entry in made.items() if name in shapes}
    dropped = _dropped(shapes, [e for e in rules if isinstance(e, Drop)], bare, {*taken, *made}, ties, faults)
    faults += _untied(source, shapes, ties)
    found = {name: _made(source, name, entry, faults) for name, entry in made.items()}
    if faults:
        raise InputError(f"{source.path}: its tensors are not those of this model", faults)
    order = [name for name in shapes if name in taken]
    holders = _holders(net)
    dtypes: dict[str, int] = {}
    for name in order:
        kept = _fill(holders, source, name, taken[name], slots, dtype, taker)
        dtypes[kept] = dtypes.get(kept, 0) + 1
    numbers = sum(t.numel() for t in stored(net).values())
    cast = None if dtype is None or set(dtypes) == {_plain(dtype)} else _plain(dtype)
    claimed = {name: taken[name].ours for name in order}
    return Certificate(str(source.path), claimed, ties, dropped, found, tuple(shapes), dtypes, cast, bare, numbers)


def export(net: nn.Module, rules: Iterable[Entry], like: Certificate | None = None) -> dict[str, Tensor]:
    """The parameters of `net` under their names and in their form: the table backwards, bit for bit.

    `like` is the certificate of the file to be written again: its prefix, its tied copies, what it has of the computed tensors, and its
    order. Without one, names have the table's prefix, ties are stored once and nothing computed is.
    What no step changes shares its memory with the model. Raises `InputError` where the table does not cover the model.
    """
    rules = list(rules)
    slots = stored(net)
    fills, faults = resolved(slots, rules)
    if faults:
        raise InputError("this table cannot write this model", faults)
    bare, ties = ("", {}) if like is None else (like.bare, like.ties)
    names = {} if like is None else {ours: name for name, ours in like.claimed.items()}  # as the file spelled them
    out: dict[str, Tensor] = {}
    for fill in fills:
        parts: Sequence[Tensor] = [slots[ours].detach() for ours in fill.ours]
        try:
            for step in reversed(fill.rule.steps):
                parts = step.undo(parts)
        except ValueError as problem:
            raise InputError(f"{fill.theirs} cannot be made of {', '.join(fill.ours)}: {problem}") from None
        out[names.get(fill.ours, fill.theirs.removeprefix(bare))] = parts[0].contiguous()
    for copy, tied in ties.items():
        if tied.found == "copy":
            out[copy] = out[tied.of].clone()
    if like is not None:
        for entry in rules:
            if isinstance(entry, Computed) and (made := like.computed.get(entry.theirs.removeprefix(bare))) is not None:
                out[entry.theirs.removeprefix(bare)] = entry.make().to(getattr(torch, made.dtype))
        places = {name: place for place, name in enumerate(like.order)}
        out = dict(sorted(out.items(), key=lambda item: places.get(item[0], len(places))))
    return out


def stored(net: nn.Module) -> dict[str, Tensor]:
    """Everything that is stored of a model, shared tensors under their first name only."""
    first: dict[int, str] = {}
    state = net.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if first.setdefault(id(t), name) == name}


def resolved(slots: Mapping[str, Tensor], rules: Sequence[Entry]) -> tuple[list[Fill], list[str]]:
    """(each rule's instances in this model, what is wrong with table and model together)"""
    faults: list[str] = []
    groups: dict[tuple, dict[int, str]] = {}
    for name, slot in slots.items():
        hits = [
            ((place, tuple(sorted(holes.items()))), k)
            for place, entry in enumerate(rules)
            if isinstance(entry, Rule)
            for k, template in enumerate(entry.ours)
            if (holes := template.match(name)) is not None
        ]
        if len(hits) != 1:
            faults.append(f"{name} {_shape(slot.shape)} of the model is filled by {len(hits) or 'no'} rule{'s' * (len(hits) != 1)}")
        for instance, k in hits[:1]:
            groups.setdefault(instance, {})[k] = name
    fills: dict[str, Fill] = {}
    for (place, holes), names in groups.items():
        entry = rules[place]
        assert isinstance(entry, Rule)
        theirs = entry.theirs.fill(dict(holes))
        if missing := [t.fill(dict(holes)) for k, t in enumerate(entry.ours) if k not in names]:
            faults.append(f"{theirs} holds {', '.join(missing)}, which the model does not have, beside {', '.join(names.values())}")
            continue
        ours = tuple(names[k] for k in range(len(entry.ours)))
        if theirs in fills:
            faults.append(f"{theirs} would fill {', '.join(fills[theirs].ours)} and {', '.join(ours)}")
            continue
        try:
            fills[theirs] = Fill(theirs, ours, entry, _trail(entry, [slots[name] for name in ours]))
        except (RuntimeError, ValueError, IndexError) as problem:
            into = ", ".join(f"{name} {_shape(slots[name].shape)}" for name in ours)
            faults.append(f"{theirs} cannot hold {into}: {str(problem).splitlines()[0]}")
    return list(fills.values()), faults


def _trail(entry: Rule, slots: Sequence[Tensor]) -> tuple[tuple[Shape, ...], ...]:
    parts: Sequence[Tensor] = [torch.empty(slot.shape, device="meta") for slot in slots]
    trail = [tuple(tuple(t.shape) for t in parts)]
    for step in reversed(entry.steps):
        parts = step.undo(parts)
        trail.insert(0, tuple(tuple(t.shape) for t in parts))
    if len(parts) != 1:
        raise ValueError(f"{len(parts)} tensors in place of one: a rule with several of ours needs a split")
    return tuple(trail)


def _older(name: str, rules: Iterable[Entry]) -> Iterator[str]:
    for entry in rules:
        if isinstance(entry, Older) and name.endswith(entry.now):
            yield name.removesuffix(entry.now) + entry.ending


def _bare(rules: Sequence[Entry], names: Iterable[str]) -> str:
    (*_, text) = ["", *(entry.text for entry in rules if isinstance(entry, Prefix))]
    return text if text and not any(name.startswith(text) for name in names) else ""


def _dropped(
    shapes: Mapping[str, Shape], drops: Sequence[Drop], bare: str, taken: Collection[str], ties: Mapping[str, Tied], faults: list[str]
) -> dict[str, str]:
    dropped: dict[str, str] = {}
    for name, shape in shapes.items():
        why = [entry.why for entry in drops if (entry.pattern.match(name) or entry.pattern.match(bare + name)) is not None]
        claims = (name in taken) + (name in ties and name not in taken) + len(why)
        if claims == 0:
            faults.append(f"{name} {_shape(shape)} of the file has no place in the model")
        elif claims > 1:
            faults.append(f"{name} {_shape(shape)} of the file is claimed by {claims} entries of the table")
        elif why:
            dropped[name] = why[0]
    return dropped


def _untied(source: Source, shapes: Mapping[str, Shape], ties: Mapping[str, Tied]) -> Iterator[str]:
    for copy, tied in ties.items():
        if tied.found != "copy":
            continue
        both = f"{copy} {_shape(shapes[copy])} and {tied.of} {_shape(shapes[tied.of])}"
        if shapes[copy] != shapes[tied.of] or not _same_bits(source.read(copy), source.read(tied.of)):
            yield f"{both} differ in the file, but are one in this model: build it untied"


def _made(source: Source, name: str, entry: Computed, faults: list[str]) -> Made:
    """How the file's tensor stands to the computed one: `ROUNDING` is what two ways of computing in float64 may differ by."""
    wanted, read = entry.make(), source.read(name)
    exact = _same_bits(wanted.to(read.dtype), read)
    if tuple(wanted.shape) != tuple(read.shape):
        faults.append(f"{name} is {_shape(read.shape)} in the file, but {entry.what} are {_shape(wanted.shape)}")
    elif not exact:
        rounded = wanted.to(read.dtype).double()
        gap = (read.double() - rounded).abs()
        if not bool((gap <= torch.finfo(read.dtype).eps * rounded.abs() + ROUNDING).all()):
            faults.append(f"{name} {_shape(read.shape)} differs from {entry.what} by up to {gap.max():.3g}: this model computes them")
    return Made(entry.what, _plain(read.dtype), exact)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


# Of each parameter or buffer, by its id: the dictionaries of modules that hold it, and under which name.
Holders = Mapping[int, Sequence[tuple[dict[str, Any], str]]]


def _holders(net: nn.Module) -> Holders:
    found: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for module in net.modules():
        for kind in (module._parameters, module._buffers):
            for name, held in kind.items():
                found.setdefault(id(held), []).append((kind, name))
    return found


def _fill(
    holders: Holders,
    source: Source,
    name: str,
    fill: Fill,
    slots: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    taker: Taker | None,
) -> str:
    """One tensor of the file into the model; a function of its own, so that nothing of it lives on when the next one is read."""
    shape, kind = fill.shapes[0][0], None
    if taker is not None and isinstance(source, InBlocks) and all(step.by_rows for step in fill.rule.steps):
        kind = source.types[name] if taker.wants(fill.ours, source.types[name]) else None
    read = source.read(name) if kind is None or not isinstance(source, InBlocks) else source.raw(name).view(*shape[:-1], -1)
    if tuple(read.shape) != shape and kind is None:
        raise InputError(f"{source.path}: {name} was announced as {_shape(shape)}, but {_shape(read.shape)} was read")
    parts: Sequence[Tensor] = [read]
    for step, after in zip(fill.rule.steps, fill.shapes[1:], strict=True):
        parts = step.apply(parts, after)
    for ours, part in zip(fill.ours, parts, strict=True):
        if taker is None or not taker.takes(ours, part, kind):
            _assign(holders, slots[ours], _own(part, dtype))
    return kind or _plain(read.dtype)


def _own(t: Tensor, dtype: torch.dtype | None) -> Tensor:
    """In memory of its own: a view would keep alive the whole tensor it was cut from, and could not be saved."""
    if dtype is not None and t.is_floating_point():
        t = t.to(dtype)
    whole = t.is_contiguous() and t.untyped_storage().nbytes() == t.nbytes
    return t if whole else t.clone(memory_format=torch.contiguous_format)


def _assign(holders: Holders, slot: Tensor, value: Tensor) -> None:
    if slot.device.type != "meta":
        slot.data = value.to(slot.device)
        return
    made = nn.Parameter(value, requires_grad=slot.requires_grad) if isinstance(slot, nn.Parameter) else value
    for held, name in holders[id(slot)]:
        held[name] = made


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape(shape: Iterable[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
