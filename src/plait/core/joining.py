"""Rows that were read apart, put together: the caches of several batches as one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from plait.core.cache import Cache
from plait.errors import InputError


def joined(caches: Sequence[Cache], max_length: int) -> Cache:
    """One cache with the rows of all of these, in their order, in new buffers for up to `max_length` slots.

    Their entries end at the same slot: what a shorter one lacks on the left is padding, and so is on the right what its sources lack.
    Slots that are padding in all rows are dropped, so the longest row begins at slot 0. All caches are of one model and one kind, with
    a forward done.
    """
    paddings, counts = [cache.padding() for cache in caches], [cache.rows for cache in caches]
    out = type(caches[0])(max_length)
    out.length = max(cache.length - padding for cache, padding in zip(caches, paddings, strict=True))
    out.programs = caches[0].programs
    for path, parts in {path: parts for cache in caches for path, parts in cache.buffers.items()}.items():
        begins = [max(padding, cache.begins.get(path, cache.length)) for cache, padding in zip(caches, paddings, strict=True)]
        held = [cache.length - begin for cache, begin in zip(caches, begins, strict=True)]
        out.reaches[path] = next(cache.reaches[path] for cache in caches if path in cache.reaches)
        front = max(0, *(-cache.begins.get(path, 0) for cache in caches))  # entries of a prompt, before slot 0
        width = out.length if front else max(held)
        out.begins[path] = out.length - width - front
        out.buffers[path] = tuple(out.empty(part, sum(counts), path) for part in parts)
        if front + width > out.buffers[path][0].shape[2]:
            raise InputError("texts of so different lengths, with a prompt and a window, do not fit together: continue them one by one")
        for i, buffer in enumerate(out.buffers[path]):
            for cache, size, rows in zip(caches, held, buffer.split(counts), strict=True):
                rows[:, :, : front + width - size] = 0  # masked, but a weight of 0 times what lay in memory may be NaN
                if size:
                    stop = cache.length - cache.begins[path]
                    rows[:, :, front + width - size : front + width] = cache.buffers[path][i][:, :, stop - size : stop]
                if front and cache.begins.get(path) == -front:
                    rows[:, :, :front] = cache.buffers[path][i][:, :, :front]
    real = torch.ones(sum(counts), max_length, dtype=torch.bool, device=caches[0].device)
    for cache, padding, rows in zip(caches, paddings, real.split(counts), strict=True):
        begin = out.length - (cache.length - padding)
        rows[:, :begin] = False
        if cache.real is not None:
            rows[:, begin : out.length] = cache.real[:, padding : cache.length]
    if not bool(real[:, : out.length].all()):
        out.real = real
    known = [cache.ids for cache in caches if cache.ids is not None]
    if len(known) == len(caches):
        out.ids = known[0].new_full((sum(counts), max_length), -1)
        for cache, ids, padding, rows in zip(caches, known, paddings, out.ids.split(counts), strict=True):
            rows[:, out.length - (cache.length - padding) : out.length] = ids[:, padding : cache.length]
    if any(cache.chains for cache in caches):
        for cache, count in zip(caches, counts, strict=True):
            out.chains += cache.chains or [()] * count
            out.own += [own + out.length - cache.length for own in cache.own] or [min(0, *out.begins.values())] * count
    for path in caches[0].kept:
        out.kept[path] = tuple(padded_rows(parts, 2) for parts in zip(*(cache.kept[path] for cache in caches), strict=True))
    return out


def padded_rows(parts: Sequence[Tensor], dim: int) -> Tensor:
    """The rows of all tensors, behind each other; along `dim` the shorter ones end in zeros."""
    longest = max(part.shape[dim] for part in parts)
    if all(part.shape[dim] == longest for part in parts):
        return torch.cat(list(parts))
    out = parts[0].new_zeros(sum(map(len, parts)), *(longest if d == dim else size for d, size in enumerate(parts[0].shape) if d))
    for part, rows in zip(parts, out.split([len(part) for part in parts]), strict=True):
        rows.narrow(dim, 0, part.shape[dim]).copy_(part)
    return out
