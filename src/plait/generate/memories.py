"""The finished encoder streams that a batch of decoder rows reads: some of the rows, or those of several batches together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plait.core.joining import padded_rows
from plait.core.stream import Stream

BY_ROW = ("x", "real", "segment", "positions", "pos", "prompt")


def kept(memory: Stream, rows: Tensor) -> Stream:
    """These rows (which may be repeated) of a stream."""
    parts: dict[str, Any] = {name: getattr(memory, name) for name in BY_ROW}
    return memory.having(**{name: part[rows] for name, part in parts.items() if part is not None and part.ndim > 1})


def together(memories: Sequence[Stream]) -> Stream:
    """The rows of all streams, the shorter ones padded on the right."""
    if len(memories) == 1:
        return memories[0]
    shapes = [memory.x.shape[:2] for memory in memories]
    real = None
    if len({length for _, length in shapes}) > 1 or any(memory.real is not None for memory in memories):
        known = [memory.real if memory.real is not None else memory.x.new_ones(memory.x.shape[:2]).bool() for memory in memories]
        real = padded_rows(known, 1)
    pos = None if memories[0].pos is None else padded_rows([memory.pos for memory in memories if memory.pos is not None], 1)
    positions = None
    if memories[0].positions is not None or real is not None:
        positions = padded_rows([memory.at_positions().expand(*memory.x.shape[:2]) for memory in memories], 1)
    prompts = [memory.prompt for memory in memories if memory.prompt is not None]
    prompt = torch.cat(prompts) if prompts else None
    return Stream(padded_rows([memory.x for memory in memories], 1), real=real, positions=positions, pos=pos, prompt=prompt)
