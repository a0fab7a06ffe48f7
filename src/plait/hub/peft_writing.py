"""What is tuned, written as a folder of PEFT's (`peft_files.py` reads them), so that PEFT gives the same numbers.

Parts of a matrix that is fused there and have an A of their own here stand side by side in a larger rank, which is exact.
"""

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from plait.core.model import Model
from plait.errors import InputError, choices
from plait.hub.peft_files import CONFIG, READERS, ROOT, WEIGHTS, Names, entries, prefixed, transposed, turned, unplaced
from plait.tune import IA3, LoRA, Prefix, Prompt, small
from plait.tune.attach import attached
from plait.weights.rules import Fill
from plait.weights.safetensors_writer import write_safetensors


def write_peft(net: Model, settings: Any, folder: Path, name: str = "default", base: str = "") -> None:
    """What is attached under a name, so that PEFT gives the same with the model `base`. InputError where PEFT cannot say it."""
    tuning, state, names, faults = attached(net, name).tuning, small(net, name), Names(net, settings), list[str]()
    writer: Any = {LoRA: write_lora, IA3: write_ia3, Prefix: write_prefix, Prompt: write_prompt}.get(type(tuning))
    if writer is None:
        raise InputError(f"{tuning.method}: PEFT has no file for it; there is {choices(READERS)}")
    config, tensors = writer(tuning, state, net, names, faults)
    besides = {path for path in state if path in names.slots}
    saved = []
    for fill in {names.by_ours[path].theirs: names.by_ours[path] for path in besides}.values():
        parts: Sequence[Tensor] = [state.get(path, names.slots[path]) for path in fill.ours]
        for step in reversed(fill.rule.steps):
            parts = step.undo(parts)
        tensors[fill.theirs] = parts[0].contiguous()
        saved.append(fill.theirs.rpartition(".")[0])
    if faults:
        raise InputError(f"{tuning.method}: PEFT cannot say it so", faults)
    tasks = {("decoder",): "CAUSAL_LM", ("encoder", "decoder"): "SEQ_2_SEQ_LM"}
    about = {"base_model_name_or_path": base, "inference_mode": True, "task_type": tasks.get(net.towers)}
    config |= {"modules_to_save": sorted(set(saved))} if saved else {}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(about | config, indent=2) + "\n", encoding="utf-8", newline="\n")
    flat = isinstance(tuning, Prefix | Prompt)
    write_safetensors(folder / WEIGHTS, {key if flat else ROOT + key: t.contiguous() for key, t in tensors.items()})


def fused(state: Mapping[str, Tensor], names: Names, end: str) -> dict[str, Fill]:
    places = [path.removesuffix(f".{end}") for path in state if path.endswith(f".{end}")]
    fills = [names.by_ours[f"{place}.weight"] for place in places]
    return {fill.theirs.removesuffix(".weight"): fill for fill in fills}


def write_lora(tuning: LoRA, state: Mapping[str, Tensor], net: Model, names: Names, faults: list[str]) -> Any:
    ranks, alphas, tensors = {}, {}, {}
    for module, fill in fused(state, names, "a").items():
        places = [ours.removesuffix(".weight") for ours in fill.ours]
        a = [state[f"{place}.a"] for place in places if f"{place}.a" in state]
        shared = len(a) == len(places) and all(torch.equal(a[0], other) for other in a)
        whole = a[0] if shared else torch.cat(a)
        rows, at = [], 0
        for ours, place in zip(fill.ours, places, strict=True):
            b = state.get(f"{place}.b", whole.new_zeros(len(names.slots[ours]), 0))
            after = len(whole) - at - b.shape[1]
            rows.append(pad(b, (at, after)))
            at += 0 if shared else b.shape[1]
        tensors |= {f"{module}.lora_A.weight": whole, f"{module}.lora_B.weight": names.whole(fill, rows)}
        if tuning.magnitude:
            m = [state.get(f"{place}.m", names.slots[ours].norm(dim=1)) for ours, place in zip(fill.ours, places, strict=True)]
            tensors[f"{module}.lora_magnitude_vector"] = names.whole(fill, [part[:, None] for part in m])[:, 0]
        if (rank := len(whole)) != tuning.rank:  # the scale stays
            ranks[module] = rank
            alphas[module] = tuning.alpha * (rank / tuning.rank) ** (0.5 if tuning.scaling == "sqrt" else 1)
    modules = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith("lora_A.weight")]
    config = {"peft_type": "LORA", "r": tuning.rank, "lora_alpha": tuning.alpha, "lora_dropout": tuning.dropout, "bias": "none"}
    config |= {"use_rslora": tuning.scaling == "sqrt", "use_dora": tuning.magnitude, "target_modules": modules}
    turned_over = any(transposed(names.fills[f"{module}.weight"]) for module in modules)
    return config | {"rank_pattern": ranks, "alpha_pattern": alphas, "fan_in_fan_out": turned_over}, tensors


def write_ia3(tuning: IA3, state: Mapping[str, Tensor], net: Model, names: Names, faults: list[str]) -> Any:
    tensors, forward = {}, list[str]()
    for module, fill in fused(state, names, "factor").items():
        factors = [state.get(f"{ours.removesuffix('.weight')}.factor") for ours in fill.ours]
        inside = [any(fnmatchcase(ours.removesuffix(".weight"), pattern) for pattern in tuning.inputs) for ours in fill.ours]
        if any(inside):
            if len({None if f is None else tuple(f.tolist()) for f in factors}) > 1 or not all(inside):
                faults.append(f"{module}: holds {', '.join(fill.ours)}, whose inputs are scaled differently")
                continue
            forward.append(module)
            tensors[f"{module}.ia3_l"] = factors[0][None]  # type: ignore[index]
        else:
            like = next(f for f in factors if f is not None)
            rows = [like.new_ones(len(names.slots[ours])) if f is None else f for ours, f in zip(fill.ours, factors, strict=True)]
            tensors[f"{module}.ia3_l"] = names.whole(fill, [row[:, None] for row in rows])
    modules = [key.removesuffix(".ia3_l") for key in tensors]
    turned_over = any(transposed(names.fills[f"{module}.weight"]) for module in modules)
    return {"peft_type": "IA3", "target_modules": modules, "feedforward_modules": forward, "fan_in_fan_out": turned_over}, tensors


def write_prefix(tuning: Prefix, state: Mapping[str, Tensor], net: Model, names: Names, faults: list[str]) -> Any:
    attentions = prefixed(net, faults)
    held = {path.removesuffix(".memory.k") for path in state if path.endswith(".memory.k")}
    if held != set(attentions):
        faults.append(f"its prefixes stand in the self-attentions of the {net.towers[-1]}, in all of them and nowhere else")
        return {}, {}
    k = [turned(part, state[f"{name}.memory.k"], 1) for name, part in attentions.items()]
    v = [state[f"{name}.memory.v"] for name in attentions]
    heads, n, width = v[0].shape
    values = torch.zeros(2 * len(k), heads, n, width, dtype=v[0].dtype)
    for pair, at in zip(zip(k, v, strict=True), entries(net, len(k)), strict=True):
        values[at], values[at + 1] = pair
    if not all(torch.equal(values[at], own) for own, at in zip(k, entries(net, len(k)), strict=True)):
        faults.append("it gives layers of an even number beside an encoder the same keys and values by twos")
    config = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": n, "num_layers": len(k), "num_attention_heads": heads}
    config |= {"token_dim": heads * width, "encoder_hidden_size": heads * width, "prefix_projection": False}
    config["num_transformer_submodules"] = len(net.towers)
    return config, {"prompt_embeddings": values.permute(2, 0, 1, 3).reshape(n, -1)}


def write_prompt(tuning: Prompt, state: Mapping[str, Tensor], net: Model, names: Names, faults: list[str]) -> Any:
    if (towers := [tower for tower in net.towers if f"{tower}.prompt.weight" in state]) != [net.towers[0]]:
        faults.append(f"prompts stand in {', '.join(towers)}; it knows those of the {net.towers[0]} alone")
        return {}, {}
    unplaced(net, net.towers[0], faults)
    table = state[f"{net.towers[0]}.prompt.weight"]
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": tuning.length, "token_dim": table.shape[1]}
    return config | {"num_transformer_submodules": 1}, {"prompt_embeddings": table}
