"""Forward passes with something else put in: heads switched off, activations of another input (Vig et al. 2020; Meng et al. 2022)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from plait.core.model import Model
from plait.core.stream import Stream
from plait.errors import InputError
from plait.inspect.record import recorded
from plait.inspect.taps import chosen, evaluating, ready, tapped


@contextmanager
def patched(
    model: Any, values: Mapping[str, Tensor], positions: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> Iterator[None]:
    """Inside, each value, as `record` gives it, flows where its name says instead of what is computed there.

    `positions` (of the entries, or of the queries) and `heads` say where alone. Values need not have as many rows as the pass, one is
    enough for all. InputError for unknown names, and while the pass runs for a value that does not fit.
    """
    net = ready(model)

    def put(name: str, value: Tensor) -> Callable[[Tensor], Tensor]:
        def touch(found: Tensor) -> Tensor:
            faults = [f"{len(value)} rows for {len(found)}"] if len(value) not in (1, len(found)) else []
            faults += [f"{list(value.shape)} is not as wide as {list(found.shape)}"] if value.shape[1:] != found.shape[1:] else []
            faults += ["has no heads to choose among"] if heads is not None and found.ndim != 4 else []
            if heads is not None and found.ndim == 4:
                faults += [f"there is no head {head}: 0 to {found.shape[1] - 1}" for head in heads if not 0 <= head < found.shape[1]]
            longest = found.shape[-2]
            faults += [f"there is no position {at}: 0 to {longest - 1}" for at in positions or () if not 0 <= at < longest]
            if faults:
                raise InputError(f"{name}: cannot be put there", faults)
            given = value.to(found).expand_as(found)
            if positions is None and heads is None:
                return given
            here = torch.zeros(found.shape, dtype=torch.bool, device=found.device)
            some = torch.arange(longest) if positions is None else torch.tensor(positions)
            if heads is None:
                here[..., some, :] = True
            else:
                here[:, torch.tensor(heads)[:, None], some] = True
            return torch.where(here, given, found)

        return touch

    with tapped(net, {name: put(name, value) for name, value in values.items()}, whole=False):
        yield


@contextmanager
def ablated(model: Any, heads: Mapping[str, Sequence[int]], means: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Inside, these heads of these attentions (`decoder.blocks.3.self_attn`) give nothing, or what `means` [H, K] says they give.

    Zero: Michel et al. 2019, section 3; the mean over a data set (`head_means`) takes away only what differs from input to input.
    InputError has every name and head that is not there.
    """
    net = ready(model)
    chosen(net, [f"{name}.out" for name in heads])  # says which are unknown, and what is near
    if means is not None and (missing := [name for name in heads if name not in means]):
        raise InputError("`means` has nothing for some of these", missing)

    def off(name: str, some: Sequence[int]) -> Callable[[Tensor], Tensor]:
        def touch(found: Tensor) -> Tensor:
            if faults := [f"there is no head {head}: 0 to {found.shape[1] - 1}" for head in some if not 0 <= head < found.shape[1]]:
                raise InputError(f"{name}: these heads cannot be switched off", faults)
            found = found.clone()
            found[:, list(some)] = 0.0 if means is None else means[name][list(some), None].to(found)
            return found

        return touch

    with tapped(net, {f"{name}.out": off(name, some) for name, some in heads.items()}, whole=False):
        yield


def head_means(model: Any, batches: Sequence[Mapping[str, Any]], pattern: str = "**.out") -> dict[str, Tensor]:
    """What each head gives on average [H, K] over the entries of batches of streams, for `ablated`."""
    net, sums, counts = ready(model), dict[str, Tensor](), dict[str, int]()
    for streams in batches:
        for name, found in recorded(net, pattern, **streams)[0].items():
            step = name.removesuffix(".out")
            sums[step] = sums.get(step, 0) + found.double().sum((0, 2))
            counts[step] = counts.get(step, 0) + found.shape[0] * found.shape[2]
    return {name: total / counts[name] for name, total in sums.items()}


@torch.no_grad()
def patch_grid(
    model: Any,
    score: Callable[[dict[str, Stream]], Tensor],
    streams: Mapping[str, Tensor | Stream],
    other: Mapping[str, Tensor | Stream],
    pattern: str,
) -> tuple[list[str], Tensor]:
    """(names, effects [names, positions]): the score of `streams` when one position of one place is what it is for `other`.

    An effect is a share of the way: 0 is the score of `streams` itself, 1 that of `other` (Wang et al. 2023, "Interpretability in the
    Wild", section 3). `score` makes one number of the finished streams. Both inputs have the same length.
    """
    net: Model = ready(model)
    with evaluating(net):
        there, finished = recorded(net, pattern, **other)
        start, end = float(score(net(**streams)).sum()), float(score(finished).sum())
        if abs(end - start) <= 1e-12 * max(abs(start), abs(end)):
            raise InputError(f"both inputs have the score {start:.6g}, so no patch can move it: choose others, or another score")
        found = []
        for name, value in there.items():
            for at in range(value.shape[-2]):
                with patched(net, {name: value}, [at]):
                    found.append((float(score(net(**streams)).sum()) - start) / (end - start))
    return list(there), torch.tensor(found).unflatten(0, (len(there), -1))
