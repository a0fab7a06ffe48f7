"""Where the parts of a tuning go in a model: patterns of names -> parts by place, or every fault at once."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from plait.core.attention import Attention
from plait.core.blocks import Block
from plait.core.feedforward import ACTIVATIONS
from plait.core.linear import Linear
from plait.core.memory import Memory, Prompt
from plait.core.model import Model
from plait.core.quantised import Quantised, QuantisedLinear
from plait.tune.methods import IA3, Adapter, BitFit, Full, HeadOnly, LoRA, Prefix, Tuning
from plait.tune.methods import Prompt as Prompts
from plait.tune.parts import Bottleneck, Directed, LowRank, Scaled
from plait.tune.prefixes import Made, Network

LAYERS = (Linear, QuantisedLinear)


def matches(patterns: Iterable[str], names: Iterable[str], what: str, faults: list[str]) -> list[str]:
    """The names, in their order, that one of the patterns matches; a pattern without any is a fault, with those that are near."""
    known, patterns = list(names), list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            tails = sorted({name.rpartition(".")[2] for name in known})
            near = get_close_matches(pattern, known, 3) or get_close_matches(pattern.rpartition(".")[2], tails, 3, 0.5) or tails[:6]
            faults.append(f"{pattern!r} matches no {what}; {'there is ' + ', '.join(near) if near else 'there is none'}")
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]


def layers(net: Model) -> dict[str, nn.Module]:
    return {name: part for name, part in net.named_modules() if isinstance(part, LAYERS)}


def parts_of(net: Model, tuning: Tuning, faults: list[str]) -> dict[str, nn.Module]:
    """A new part for each place, by the name of what it stands on: a layer, an attention's `memory`, a tower's `prompt`."""
    match tuning:
        case LoRA():
            return dict(_low_rank(net, tuning, faults))
        case IA3():
            return dict(_scaled(net, tuning, faults))
        case Adapter():
            return dict(_bottlenecks(net, tuning, faults))
        case Prefix():
            return dict(_prefixes(net, tuning, faults))
        case Prompts():
            return dict(_prompts(net, tuning, faults))
    return {}


def own_of(net: Model, tuning: Tuning, also: Iterable[str], faults: list[str]) -> list[str]:
    """Names of the model's own parameters that are trained: the tuning's, and what `also` matches (parameters, or modules with any)."""
    named = {name: p for name, p in net.named_parameters() if p.is_floating_point()}
    found: set[str] = set()
    if isinstance(tuning, Full):
        found |= named.keys()
        if any(isinstance(part, Quantised) for part in net.modules()):
            faults.append("full tuning trains every matrix, and some are quantised: open the model without bits, or take lora")
    if isinstance(tuning, HeadOnly):
        found |= set(matches(tuning.heads, (name for name in named if name.startswith("heads.")), "parameter of a head", faults))
    if isinstance(tuning, BitFit):
        owners = [name.removesuffix(".bias") for name in named if name.endswith(".bias")]
        found |= {f"{name}.bias" for name in matches(tuning.targets, owners, "module with a bias", faults)}
    for pattern in also:
        inside = [name for name in named if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
        found |= set(inside or matches([pattern], named, "parameter", faults))
    return [name for name in named if name in found]


def _low_rank(net: Model, t: LoRA, faults: list[str]) -> Iterator[tuple[str, nn.Module]]:
    found, scale = layers(net), t.alpha / (t.rank if t.scaling == "rank" else t.rank**0.5)
    for name in matches(t.targets, found, "matrix", faults):
        weight: Any = found[name].weight
        d_out, d_in = weight.shape
        if t.rank > min(d_in, d_out):
            faults.append(f"{name} is [{d_out}, {d_in}]: rank={t.rank} is beyond its width; take at most {min(d_in, d_out)}")
        elif t.magnitude:
            yield name, Directed(weight, t.rank, scale, t.dropout)
        else:
            yield name, LowRank(d_in, d_out, t.rank, scale, t.dropout)


def _scaled(net: Model, t: IA3, faults: list[str]) -> Iterator[tuple[str, nn.Module]]:
    found = layers(net)
    outputs, inputs = (matches(patterns, found, "matrix", faults) for patterns in (t.outputs, t.inputs))
    faults += [f"{name} is among outputs and inputs: say which" for name in set(outputs) & set(inputs)]
    for side, names in ((0, outputs), (1, inputs)):
        for name in names:
            yield name, Scaled(found[name].weight.shape[side], inputs=bool(side))  # type: ignore[union-attr]


def _bottlenecks(net: Model, t: Adapter, faults: list[str]) -> Iterator[tuple[str, nn.Module]]:
    """What a step gives is what its last matrix gives."""
    if t.activation not in ACTIVATIONS:
        faults.append(f"activation={t.activation!r}: there is {', '.join(ACTIVATIONS)}")
        return
    kinds, found = ("ffn",) if t.placement == "pfeiffer" else ("ffn", "attn"), layers(net)
    blocks = [name for name, part in net.named_modules() if isinstance(part, Block)]
    ends = [name for name in found if name.rpartition(".")[2] in ("o_proj", "down_proj")]
    for name in ends:
        step = next((name[len(block) + 1 :].split(".")[0] for block in blocks if name.startswith(f"{block}.")), "")
        if step.endswith(kinds):
            yield name, Bottleneck(found[name].weight.shape[0], t.width, ACTIVATIONS[t.activation])  # type: ignore[union-attr]


def _prefixes(net: Model, t: Prefix, faults: list[str]) -> Iterator[tuple[str, nn.Module]]:
    found = {name: part for name, part in net.named_modules() if isinstance(part, Attention)}
    network = None
    for name in matches(t.attentions, found, "attention", faults):
        part = found[name]
        weight: Tensor = part.k_proj.weight
        if part.memory is not None:
            faults.append(f"{name} has learned keys and values already")
            continue
        heads = weight.shape[0] // part.d_head
        if t.hidden is None:
            yield f"{name}.memory", Memory(t.length, heads, part.d_head)
            continue
        if network is None:
            network = Network(t.length, weight.shape[1], t.hidden)
            yield "prefix", network
        yield f"{name}.memory", Made(network, heads, part.d_head)


def _prompts(net: Model, t: Prompts, faults: list[str]) -> Iterator[tuple[str, nn.Module]]:
    for name in matches(t.towers or net.towers[:1], net.towers, "tower", faults):
        attentions = {path: part for path, part in net.get_submodule(f"{name}.blocks").named_modules() if isinstance(part, Attention)}
        if odd := [path for path, part in attentions.items() if type(part).forward is not Attention.forward]:
            faults.append(f"{name}.blocks.{odd[0]} cuts its entries into rows of its own, where a prompt has no place: take a prefix")
            continue
        first: Any = next(iter(attentions.values()))
        yield f"{name}.prompt", Prompt(t.length, first.q_proj.weight.shape[1])


def fitting(part: nn.Module, like: nn.Module) -> nn.Module:
    """On the device of what it stands on; numbers of 16 bits are too coarse to learn in."""
    known = next((p for p in like.parameters() if p.is_floating_point()), torch.empty(0))
    wide = known.dtype if known.dtype == torch.float64 else torch.float32
    device = next((t.device for t in (*like.parameters(), *like.buffers())), known.device)
    return part.to(device=device, dtype=wide)
