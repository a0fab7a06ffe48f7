"""Writing safetensors: tensors in the order given, in shards with an index where one file would be too large."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from plait.weights.safetensors_file import DTYPES

SHARD = 5_000_000_000  # bytes of tensors in one file
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_model(folder: Path, tensors: Mapping[str, Tensor], shard: int = SHARD) -> None:
    """model.safetensors, or several shards with their index. OSError comes through: the caller knows what to say of a full disk."""
    parts: list[dict[str, Tensor]] = [{}]
    taken = 0
    for name, tensor in tensors.items():
        if parts[-1] and taken + tensor.nbytes > shard:
            parts.append({})
            taken = 0
        parts[-1][name] = tensor
        taken += tensor.nbytes
    if len(parts) == 1:
        write_safetensors(folder / "model.safetensors", parts[0])
        return
    where = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        write_safetensors(folder / file, part)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One file, the bytes of which are those of the format's own implementation where that would choose the same order.

    Wide types come first, so that every tensor lies at a multiple of its own size.
    """
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in order:
        t = tensors[name]
        header[name] = {"dtype": NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [at, at := at + t.nbytes]}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in order:
            file.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
