"""What can be wrong with a model, seen on a copy of it or on one that has learned a few rows by heart."""

import copy
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from plait.core.model import Model, parameters
from plait.core.stream import Stream
from plait.train.overfitting import Trial, mean_loss
from plait.train.patient import Finding, Patient, inputs_of, marginal_entropy, with_inputs
from plait.train.precision import Precision

HALF = 65504.0  # the largest number of float16


def first_loss(p: Patient) -> Iterator[Finding]:
    """A model whose weights were drawn knows nothing: its loss is that of a guess among all outputs (log of their number)."""
    name, n = "first loss", p.outputs
    net = copy.deepcopy(p.net).eval()
    with torch.no_grad():
        loss = float(mean_loss(net, p, p.small))
    if not math.isfinite(loss):
        yield Finding("fault", name, f"{loss} before any step", "the weights or the data hold numbers that are none")
    elif n is None or marginal_entropy(p.small_pieces) is None:
        yield Finding("ok", name, f"{loss:.3f} nats")
    else:
        guess = math.log(max(n, 2))
        seen = f"{loss:.3f} nats; a guess among {n:,} outputs has {guess:.3f}"
        if loss > 3 * guess + 1:
            yield Finding("fault", name, seen, "the weights are drawn too large, or those of --model do not belong to this vocabulary")
        elif loss > 1.5 * guess + 0.5:
            yield Finding("warning", name, seen, "the weights are rather large: the first steps will go into making them smaller")
        elif p.fresh and loss < 0.5 * guess:
            yield Finding("fault", name, seen, "a model that has learned nothing cannot know this: the answers stand in its input")
        else:
            yield Finding("ok", name, seen)


def frozen(p: Patient) -> Iterator[Finding]:
    """What is to be trained wants a gradient."""
    name, still = "frozen", {n: q.numel() for n, q in p.net.named_parameters() if not q.requires_grad}
    if not still:
        return
    part = sum(still.values()) / parameters(p.net)
    if p.tuned and part < 1.0:
        yield Finding("ok", name, f"{part:.1%} of the weights, as tuning a small part wants")
        return
    scored = any(n.startswith("heads.") for n in still)
    level = "fault" if scored or part == 1.0 else "warning"
    advice = "set requires_grad again" + (": a new head that is frozen never learns" if scored else "; or is that meant?")
    yield Finding(level, name, f"{part:.0%} of the weights are not trained: {patterns(still)}", advice)


def no_gradient(p: Patient, trial: Trial) -> Iterator[Finding]:
    """What wants a gradient gets one, in some step at least."""
    name, wanted = "gradients", {n for n, q in p.net.named_parameters() if q.requires_grad}
    idle = {n for n in wanted if not trial.largest[n] > 0}
    # A matrix whose bias gets one is connected, and reads zeros: that is how DETR's first layer sees its queries.
    zeros = {n for n in idle if not n.startswith("heads.") and trial.largest.get(n.removesuffix("weight") + "bias", 0) > 0}
    if idle == zeros:
        but = f" (but {patterns(zeros)}, whose input is 0)" if zeros else ""
        most = max(trial.largest.values(), default=0)
        yield Finding("ok", name, f"all {len(wanted)} parameters get one{but}, the largest entry {most:.2g}")
    elif idle == wanted:
        yield Finding(
            "fault", name, "no parameter gets one", "the loss does not depend on the model: is something detached, or all frozen?"
        )
    else:
        dead = [n for n in idle if n.startswith("heads.") or "_proj." in n]
        seen = f"{len(idle)} of {len(wanted)} parameters never get one: {patterns(idle)}"
        advice = "they stay as they are: is something detached or multiplied by 0, or are they not used by this task?"
        yield Finding("fault" if dead else "warning", name, seen, advice)


def patterns(names: Iterable[str]) -> str:
    """Names with * for the numbers in them, each once."""
    found = list(dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in sorted(names)))
    return ", ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")


def input_matters(p: Patient, trial: Trial) -> Iterator[Finding]:
    """With the texts of other rows, the answers of a model that has learned these are wrong."""
    net, batch, name = trial.net, p.small, "input matters"
    if not trial.finite or not (marginal_entropy(p.small_pieces) or p.boxes):
        return
    with torch.no_grad():
        right = float(mean_loss(net, p, batch))
        for field_name, ids in inputs_of(batch).items():
            others = ids.roll(1, 0 if len(ids) > 1 else 1)
            if bool((others == ids).all()):
                continue
            wrong = float(mean_loss(net, p, with_inputs(batch, **{field_name: others})))
            change = abs(wrong - right) / max(right, 1e-3)
            seen = f"with the {field_name.replace('_', ' ')} of other rows the loss goes from {right:.3f} to {wrong:.3f}"
            advice = "every row gets the same answer, or one that its text does not decide: does the input reach the head?"
            if change < 1e-3:
                yield Finding("fault" if change < 1e-5 else "warning", name, seen, advice)
            else:
                yield Finding("ok", name, seen)


def padding_leak(p: Patient, trial: Trial) -> Iterator[Finding]:
    """The loss of rows together is that of each alone: neither padding nor another row makes a difference."""
    net, batch, name = trial.net, p.small, "rows apart"
    if len(batch) < 2 or not trial.finite:
        return
    with torch.no_grad():
        together = p.objective.loss(net, batch)
        alone = [p.objective.loss(net, part) for part in p.objective.parts(batch, len(batch))]
    sums, count = float(sum(float(part.plain) for part in alone)), sum(part.count for part in alone)
    off = abs(float(together.plain) - sums) / max(abs(sums), 0.01 * count, 1e-6)
    seen = f"{float(together.plain):.4f} nats of {len(batch)} rows together, {sums:.4f} of each alone"
    if count != together.count:
        yield Finding("fault", name, f"{together.count} answers counted together, {count} alone", "padding is counted as answers")
    elif off > 1e-2:
        yield Finding("fault", name, seen, "padding or other rows leak into a row: is the mask of padding given to the model?")
    else:
        yield Finding("ok", name, seen)


def future_leak(p: Patient, trial: Trial) -> Iterator[Finding]:
    """What a causal model makes of the beginning of a text does not change with what follows."""
    if p.shift != 1 or not trial.finite:
        return
    batch, name = p.small, "no look ahead"
    field_name, ids = list(inputs_of(batch).items())[-1]
    half = ids.shape[1] // 2
    if not half:
        return
    changed = ids.clone()
    changed[:, half:] = changed[:, half:].roll(1, 1) if ids.shape[1] - half > 1 else ids[:, :1]
    changed[:, half:][changed[:, half:] == ids[:, half:]] = int(ids[0, 0])
    with torch.no_grad():
        before, after = (hidden_of(p, trial.net, b)[:, :half] for b in (batch, with_inputs(batch, **{field_name: changed})))
    off = float((before - after).abs().max() / before.abs().max().clamp(min=1e-6))
    seen = f"with other tokens from place {half} on, what stands before changes by {off:.2g}"
    if off > 1e-3:
        yield Finding("fault", name, seen, "the answer can be read from what follows: is the mask causal?")
    else:
        yield Finding("ok", name, seen)


def hidden_of(p: Patient, net: Model, batch: Any) -> Tensor:
    """[B, L, D] that the scored tower gives for a batch."""
    caught: list[Tensor] = []
    hook = net.get_submodule(p.tower).register_forward_hook(lambda module, given, out: caught.append(out.x))
    try:
        p.objective.loss(net, batch)
    finally:
        hook.remove()
    return caught[-1]


def half_range(p: Patient) -> Iterator[Finding]:
    """Numbers fit into 16 bits: what is larger than 65,504 becomes infinite in float16."""
    net, name = copy.deepcopy(p.net).eval(), "half precision"
    precision = Precision(p.precision, next(net.parameters()).device)
    with largest_outputs(net) as seen_at, precision.context():
        mean_loss(net, p, p.small)
    if not seen_at:
        return
    where, most = max(seen_at.items(), key=lambda item: item[1] if math.isfinite(item[1]) else math.inf)
    over = [n for n, value in seen_at.items() if not value <= HALF]
    told = f"largest activation {most:.3g}, of {where}"
    if p.precision == "float16" and over:
        yield Finding(
            "fault",
            name,
            f"{told}: float16 holds {HALF:,.0f}, it overflows first in {over[0]}",
            "take --precision bfloat16, whose range is that of float32",
        )
    elif p.precision == "float16" and most > HALF / 8:
        yield Finding("warning", name, f"{told}: near what float16 holds, {HALF:,.0f}", "take --precision bfloat16")
    else:
        yield Finding("ok", name, told + (f"; float16 would overflow in {over[0]}" if over else ""))


@contextmanager
def largest_outputs(net: Model) -> Iterator[dict[str, float]]:
    """Of each module the largest absolute value it gave, in the order in which modules end."""
    most: dict[str, float] = {}
    hooks = [module.register_forward_hook(watcher(name, most)) for name, module in net.named_modules() if name]
    try:
        yield most
    finally:
        for hook in hooks:
            hook.remove()


def watcher(name: str, most: dict[str, float]) -> Callable[[nn.Module, Any, Any], None]:
    def watch(module: nn.Module, given: Any, out: Any) -> None:
        x = out.x if isinstance(out, Stream) else out
        if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
            value = float(x.detach().abs().max())
            most[name] = max(most.get(name, 0.0), value) if value == value else math.inf

    return watch
