"""PEFT's folders (adapter_config.json, adapter_model.safetensors), read onto a model: LoRA, (IA)3, prefixes, prompts.

Names go through the table of the model's page. A matrix that is fused there and several here has one A and the rows of one B: each part
gets its rows and the same A.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from plait import models
from plait.core.attention import Attention, CrossAttention
from plait.core.model import Model
from plait.core.quantised import Quantised
from plait.core.stream import Call, Lent, Stream
from plait.errors import InputError, choices
from plait.text.special import read_object
from plait.tune import IA3, LoRA, Prefix, Prompt, Tuning, load_small, using
from plait.weights.entries import Prefix as Common
from plait.weights.rules import Fill, resolved, stored

CONFIG, WEIGHTS, ROOT = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
OTHER = """trainable_token_indices target_parameters layer_replication lora_bias use_qalora alora_invocation_tokens use_bdlora kasa_config
monteclora_config velora_config arrow_config""".split()  # what would change what LoRA computes
CHANGED = ("pissa", "olora", "corda", "loftq", "lora_ga")  # beginnings that change the model's own weights


class Names:
    """Which of ours is which of theirs, by the table of a model's page."""

    def __init__(self, net: Model, settings: Any):
        page = next((page for page in models.PAGES.values() if type(settings) is page.Config), None)
        if page is None or not (hasattr(page, "rules") or hasattr(page, "RULES")):
            raise InputError("PEFT's files are for released models; a model that was designed here has no names there")
        rules = list(page.rules(settings) if hasattr(page, "rules") else page.RULES)
        with using(net, None):
            self.slots = {name: t for name, t in stored(net).items() if not name.startswith("tunings.")}
            for name, part in net.named_modules():
                if isinstance(part, Quantised):  # of which the table knows the shape
                    self.slots[f"{name.removesuffix('.matrix')}.weight"] = torch.empty(part.d_out, part.d_in, device="meta")
        self.fills = {fill.theirs: fill for fill in resolved(self.slots, rules)[0]}
        self.by_ours = {name: fill for fill in self.fills.values() for name in fill.ours}
        self.common = next((entry.text for entry in rules if isinstance(entry, Common)), "")

    def of(self, theirs: str) -> Fill | None:
        return self.fills.get(theirs) or self.fills.get(self.common + theirs)

    def parts(self, fill: Fill, rows: Tensor) -> list[Tensor]:
        """What belongs to the rows [d_out, any] of their matrix, for each of ours."""
        shapes = [tuple((*self.slots[name].shape[:1], rows.shape[1]) for name in fill.ours)] * len(fill.rule.steps)
        parts: Sequence[Tensor] = [rows.T if transposed(fill) else rows]
        for step, shape in zip(fill.rule.steps, shapes, strict=True):
            parts = step.apply(parts, shape)
        return [part.contiguous() for part in parts]

    def whole(self, fill: Fill, parts: Sequence[Tensor]) -> Tensor:
        for step in reversed(fill.rule.steps):
            parts = step.undo(parts)
        return (parts[0].T if transposed(fill) else parts[0]).contiguous()


def transposed(fill: Fill) -> bool:
    """Whether their matrix is [d_in, d_out] (GPT-2's Conv1D)."""
    return any(type(step).__name__ == "Transpose" for step in fill.rule.steps)


# ---- reading ----


def read_peft(folder: Path, net: Model, settings: Any, name: str = "default") -> Tuning:
    """Attaches what a folder of PEFT's holds under a name; `settings` are the `Config` of the model's page. Nothing is unpickled.

    Raises `InputError` with all that does not fit, and leaves the model as it was.
    """
    config = read_object(folder / CONFIG, "the object of an adapter_config.json")
    if not (folder / WEIGHTS).is_file():
        bin = (
            " adapter_model.bin is a pickle, which may run code: save it anew with safe_serialization."
            if list(folder.glob("*.bin"))
            else ""
        )
        raise InputError(f"{folder}: has no {WEIGHTS}.{bin}")
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder / WEIGHTS}: is not a whole safetensors file ({error}); copy it anew") from None
    kind, faults = config.get("peft_type"), list[str]()
    if kind not in READERS:
        raise InputError(f"{folder}: peft_type={kind!r} is not read; there is {choices(READERS)}")
    try:
        tuning, state = READERS[kind](config, tensors, net, Names(net, settings), faults)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder}: its {CONFIG} or its tensors are not what PEFT writes: {error}") from None
    if faults:
        raise InputError(f"{folder}: does not fit this model", faults)
    load_small(net, tuning, state, name)
    return tuning


def by_module(tensors: Mapping[str, Tensor], kinds: Mapping[str, str], names: Names, faults: list[str]) -> tuple[dict, dict[str, Tensor]]:
    """({their matrix: {kind: tensor}}, what was trained besides, by our names)"""
    found: dict[str, tuple[Fill, dict[str, Tensor]]] = {}
    besides: dict[str, Tensor] = {}
    for key, t in tensors.items():
        path = key.removeprefix(ROOT)
        end = next((end for end in kinds if path.endswith(f".{end}")), None)
        fill = names.of(path if end is None else f"{path.removesuffix(f'.{end}')}.weight")
        if fill is None:
            faults.append(f"{key} has no place in this model")
        elif end is not None:
            found.setdefault(fill.theirs, (fill, {}))[1][kinds[end]] = t
        else:
            parts: Sequence[Tensor] = [t]
            for step, shape in zip(fill.rule.steps, fill.shapes[1:], strict=True):
                parts = step.apply(parts, shape)
            besides |= dict(zip(fill.ours, parts, strict=True))
    return found, besides


def read_lora(config: Mapping[str, Any], tensors: Mapping[str, Tensor], net: Model, names: Names, faults: list[str]) -> Any:
    faults += [f"{key}={config[key]!r} is not read" for key in OTHER if config.get(key)]
    begun = config.get("init_lora_weights", True)
    if isinstance(begun, str) and begun.startswith(CHANGED):
        faults.append(f"init_lora_weights={begun!r} changes the model's own weights: save it as a plain LoRA first")
    if config.get("bias", "none") != "none":
        faults.append(f"bias={config['bias']!r} is not read: only bias='none' is")
    kinds = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "m", "lora_magnitude_vector.weight": "m"}
    found, state = by_module(tensors, kinds, names, faults)
    if faults:
        return None, state
    rank, targets = max((len(t["a"]) for _, t in found.values()), default=0), []
    root = bool(config.get("use_rslora"))
    tuning = LoRA(rank, config["lora_alpha"], scaling="sqrt" if root else "rank", magnitude=bool(config.get("use_dora")))
    for theirs, (fill, t) in found.items():
        module = theirs.removesuffix(".weight")
        own = pattern(config.get("rank_pattern"), module, config["r"])
        alpha = pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        ratio = (alpha / (own**0.5 if root else own)) / (tuning.alpha / (rank**0.5 if root else rank))
        room = rank - len(t["a"])  # zeros: the same product
        a, b = torch.nn.functional.pad(t["a"], (0, 0, 0, room)), torch.nn.functional.pad(t["b"] * ratio, (0, room))
        rows = {"b": names.parts(fill, b)} | ({"m": [m[:, 0] for m in names.parts(fill, t["m"][:, None])]} if "m" in t else {})
        for i, ours in enumerate(fill.ours):
            place = ours.removesuffix(".weight")
            targets.append(place)
            state[f"{place}.a"] = a
            state |= {f"{place}.{kind}": parts[i] for kind, parts in rows.items()}
    return LoRA(rank, tuning.alpha, tuple(targets), config.get("lora_dropout", 0.0), tuning.scaling, tuning.magnitude), state


def pattern(said: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    return next((value for key, value in (said or {}).items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)


def read_ia3(config: Mapping[str, Any], tensors: Mapping[str, Tensor], net: Model, names: Names, faults: list[str]) -> Any:
    found, state = by_module(tensors, {"ia3_l": "l"}, names, faults)
    outputs, inputs = list[str](), list[str]()
    for fill, t in found.values():
        parts = [t["l"][0]] * len(fill.ours) if len(t["l"]) == 1 else [part[:, 0] for part in names.parts(fill, t["l"])]
        for ours, part in zip(fill.ours, parts, strict=True):
            (inputs if len(t["l"]) == 1 else outputs).append(ours.removesuffix(".weight"))
            state[f"{ours.removesuffix('.weight')}.factor"] = part
    return IA3(tuple(outputs), tuple(inputs)), state


def read_prefix(config: Mapping[str, Any], tensors: Mapping[str, Tensor], net: Model, names: Names, faults: list[str]) -> Any:
    attentions, n = prefixed(net, faults), config["num_virtual_tokens"]
    values = tensors["prompt_embeddings"].view(n, 2 * config["num_layers"], config["num_attention_heads"], -1).permute(1, 2, 0, 3)
    if len(values) != 2 * len(attentions):
        faults.append(f"keys and values for {len(values) // 2} layers; this model has {len(attentions)}")
        return None, {}
    state = {}
    for (name, part), at in zip(attentions.items(), entries(net, len(attentions)), strict=True):
        state |= {f"{name}.memory.k": turned(part, values[at], -1), f"{name}.memory.v": values[at + 1]}
    return Prefix(n, None, tuple(attentions)), state


def read_prompt(config: Mapping[str, Any], tensors: Mapping[str, Tensor], net: Model, names: Names, faults: list[str]) -> Any:
    n = config["num_virtual_tokens"]
    unplaced(net, net.towers[0], faults)
    return Prompt(n), {f"{net.towers[0]}.prompt.weight": tensors["prompt_embeddings"][:n]}  # a decoder's, which follow, are not used


READERS = {"LORA": read_lora, "IA3": read_ia3, "PREFIX_TUNING": read_prefix, "PROMPT_TUNING": read_prompt}


def prefixed(net: Model, faults: list[str]) -> dict[str, Any]:
    """The attentions that PEFT's prefixes stand in: each layer's self-attention of the last tower."""
    tower: Any = net.get_submodule(net.towers[-1])
    unplaced(net, net.towers[-1], faults)
    named = {id(part): name for name, part in net.named_modules()}
    found = [part for i in tower.blocks.order for part in tower.blocks[i].modules() if isinstance(part, Attention)]
    return {named[id(part)]: part for part in found if not isinstance(part, CrossAttention)}


def entries(net: Model, layers: int) -> list[int]:
    """Which of their keys each layer has; its values come next. Beside an encoder every other pair would be the cross-attention's, and

    is not used; their table, which has no such pairs, then begins anew half-way.
    """
    return [2 * len(net.towers) * layer % (2 * layers) for layer in range(layers)]


def unplaced(net: Model, tower: str, faults: list[str]) -> None:
    if odd := set(getattr(net.get_submodule(tower).embed, "parts", ())) - {"tokens", "dropout"}:
        faults.append(f"{tower}: positions in its embedding ({', '.join(sorted(odd))}) count what was learned there, and do not here")


def turned(part: Any, k: Tensor, sign: int) -> Tensor:
    """Keys [G, n, K], which PEFT takes as turned already, for positions that count the prefix; here they do not."""
    rotary = part.rotary.part if isinstance(part.rotary, Lent) else part.rotary
    if rotary is None:
        return k
    positions = torch.full((k.shape[1],), float(sign * k.shape[1]), dtype=torch.float64)
    stream = Stream(k[None], positions=positions)
    return rotary(k[None], stream, Call(stream, None))[0] / rotary.magnitude  # type: ignore[arg-type]
