"""Named places in a forward pass: what flows there can be seen, and another value put in its place.

    decoder.embed                            [B, L, D]     what the embedding puts out
    decoder.blocks.3                         [B, L, D]     the residual stream that leaves a block
    decoder.blocks.3.ffn                     [B, L, D]     what a step gives, before norms behind it and before it is added
    decoder.blocks.3.ffn.hidden              [B, L, F]     a feed-forward step's units, which `down_proj` reads
    decoder.blocks.3.self_attn.q (.k, .v)    [B, H, L, K]  as the kernel gets them: normed, turned, learned memory included
    decoder.blocks.3.self_attn.pattern       [B, H, L, S]  the attention weights
    decoder.blocks.3.self_attn.out           [B, H, L, K]  what each head gives, which `o_proj` reads
    decoder.norm                             [B, L, D]     the finished stream

Blocks are counted in the order in which they run, so layers that share one set of weights have a name each. A step that cuts its stream
into other rows (a clip's frames) has these rows for B. Recorder, ablation, patching and gradients are all made of `tapped`.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from plait.core import kernels
from plait.core.attention import Attention
from plait.core.feedforward import FFN
from plait.core.model import Model
from plait.core.stream import Call, Stream
from plait.errors import InputError

Touch = Callable[[Tensor], Tensor | None]  # looks at what flows, and gives what is to flow instead, or None
INSIDE = ("q", "k", "v", "pattern")  # what a kernel is given or makes


def part_of(step: nn.Module, kind: type) -> Any:
    """The attention or the feed-forward that a step is, or that it holds; None where there is none."""
    return next((part for part in step.modules() if isinstance(part, kind)), None)


def steps(net: Model) -> Iterator[tuple[str, nn.Module]]:
    """(name, step) of all layers in running order, such as `decoder.blocks.3.self_attn`."""
    for tower in net.towers:
        blocks: Any = net.get_submodule(tower).blocks
        for depth, i in enumerate(blocks.order):
            yield from ((f"{tower}.blocks.{depth}.{name}", blocks[i].get_submodule(name)) for name in blocks[i].names)


def attentions(net: Model) -> dict[str, Attention]:
    """The attention of each step that has one, by the step's name."""
    return {name: part for name, step in steps(net) if (part := part_of(step, Attention)) is not None}


def names(net: Model) -> list[str]:
    """Every name of this file's table that a net has."""
    found: list[str] = []
    for tower in net.towers:
        part: Any = net.get_submodule(tower)
        found += [f"{tower}.embed", *(f"{tower}.blocks.{depth}" for depth in range(len(part.blocks.order)))]
        found += [f"{tower}.norm"] if part.norm is not None else []
    for name, step in steps(net):
        inside = (*INSIDE, "out") if part_of(step, Attention) is not None else ("hidden",) if part_of(step, FFN) is not None else ()
        found += [name, *(f"{name}.{what}" for what in inside)]
    return found


def matches(name: str, pattern: str) -> bool:
    """Part by part between the dots, as file names match: `decoder.blocks.*.ffn`; `**.` is any beginning, `**` any name."""
    wanted, parts = pattern.split("."), name.split(".")
    if wanted[0] == "**":
        wanted = wanted[1:]
        parts = parts[len(parts) - len(wanted) :] if wanted else []
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def chosen(net: Model, patterns: Iterable[str]) -> list[str]:
    """The names that match any pattern. InputError has every pattern that none matches, and the nearest names."""
    known, faults = names(net), list[str]()
    for pattern in patterns:
        if not any(matches(name, pattern) for name in known):
            near = difflib.get_close_matches(pattern.replace("*", "0"), known, 3, 0.0)
            faults.append(f"{pattern}: nothing is called so; near are {', '.join(near)}")
    if faults:
        raise InputError("this model has no such place", faults)
    return [name for name in known if any(matches(name, pattern) for pattern in patterns)]


@dataclass(eq=False)
class Taps:
    """What is done at which name, and the step that runs just now."""

    touch: Mapping[str, Touch]
    at: str = ""

    def __call__(self, name: str, x: Tensor) -> Tensor:
        found = self.touch[name](x) if name in self.touch else None
        if found is None:
            return x
        if found.shape != x.shape:
            raise InputError(f"{name}: {list(found.shape)} was to be put in the place of {list(x.shape)}")
        return found.to(x)

    def entering(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.at = named(kwargs["path"])

    def leaving(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], out: Tensor) -> Tensor:
        return self(named(kwargs.get("path") or args[2]), out)

    def head_outputs(self, attention: Attention) -> Callable[..., Any]:
        def before(module: nn.Module, args: tuple) -> tuple[Tensor]:
            heads = attention.heads(args[0])
            found = self(f"{self.at}.out", heads)
            return args if found is heads else (found.transpose(1, 2).flatten(2),)

        return before

    def hidden(self, module: nn.Module, args: tuple) -> tuple[Tensor]:
        return (self(f"{self.at}.hidden", args[0]),)


@dataclass(eq=False)
class Seen(kernels.Kernel):
    """A kernel whose queries, keys, values and weights are shown to all `taps`, in turn; the output is the kernel's own."""

    kernel: kernels.Kernel
    taps: tuple[Taps, ...] = field(default=())

    def lower(self, *given: Any, **named: Any) -> kernels.Lowered:
        return self.kernel.lower(*given, **named)

    def attend(self, q, k, v, mask, bias=None, scale=1.0, dropout=0.0):
        for taps in self.taps:
            q, k, v = (taps(f"{taps.at}.{name}", x) for name, x in (("q", q), ("k", k), ("v", v)))
        found = weights = None
        for taps in self.taps:
            if f"{taps.at}.pattern" in taps.touch:
                weights = kernels.weights(q, k, mask, bias, scale) if weights is None else weights
                seen = taps(f"{taps.at}.pattern", weights)
                found, weights = (found if seen is weights else seen), seen
        if found is None:
            return self.kernel.attend(q, k, v, mask, bias, scale, dropout)
        return found.to(v.dtype) @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


def named(path: Iterable[Any]) -> str:
    """(tower, depth, step) as it is called here."""
    tower, *inner = path
    return ".".join((tower, "blocks", *map(str, inner)))


@contextmanager
def tapped(net: Model, touch: Mapping[str, Touch], whole: bool = True) -> Iterator[None]:
    """Inside, each forward pass of the net shows what flows at the names to their functions, which may put something else there.

    Of several contexts the inner one sees what the outer one put in place. With `whole`, a pass that continues a cached text is refused:
    there is only a part of the text to see. Outside nothing is left behind. A native program gives way to the modules meanwhile.
    """
    chosen(net, touch)
    taps, hooks = Taps(touch), []
    inside = any(name.rpartition(".")[2] in INSIDE for name in touch)

    def pre_tower(module: nn.Module, args: tuple) -> tuple:
        s, call, name = args

        def watched(embedded: Stream) -> Call:
            made = call(embedded)
            if made.cache is not None and (whole or inside):
                raise InputError("what is generated token by token is not recorded: give the model the whole text (`logits`, its net)")
            if inside:
                before = made.kernel
                made.kernel = Seen(before.kernel, (*before.taps, taps)) if isinstance(before, Seen) else Seen(before, (taps,))
            return made

        return s, watched, name

    def stream_of(name: str) -> Callable[..., Stream]:
        return lambda module, args, s: s.having(x=taps(name, s.x))

    def tensor_of(name: str) -> Callable[..., Tensor]:
        return lambda module, args, x: taps(name, x)

    try:
        for tower in net.towers:
            part: Any = net.get_submodule(tower)
            hooks.append(part.register_forward_pre_hook(pre_tower))
            if f"{tower}.embed" in touch:
                hooks.append(part.embed.register_forward_hook(stream_of(f"{tower}.embed")))
            if f"{tower}.norm" in touch:
                hooks.append(part.norm.register_forward_hook(tensor_of(f"{tower}.norm")))
            if any(matches(name, f"{tower}.blocks.*") for name in touch):
                hooks += [block.register_forward_hook(taps.leaving, with_kwargs=True) for block in part.blocks]
        kinds = {name.rpartition(".")[2] for name in touch}
        within = any(name.count(".") > 2 for name in touch)  # in a step, or one itself
        for step in {step: None for _, step in steps(net)} if within else ():  # layers may share one
            hooks.append(step.register_forward_pre_hook(taps.entering, with_kwargs=True))
            hooks.append(step.register_forward_hook(taps.leaving, with_kwargs=True))
            if "out" in kinds and (attention := part_of(step, Attention)) is not None:
                hooks.append(attention.o_proj.register_forward_pre_hook(taps.head_outputs(attention)))
            if "hidden" in kinds and (ffn := part_of(step, FFN)) is not None:
                hooks.append(ffn.down_proj.register_forward_pre_hook(taps.hidden))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def ready(model: Any) -> Model:
    """The net of what `plait.load` gives, or the net itself."""
    return model if isinstance(model, Model) else model.net


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Without dropout; the mode is put back afterwards."""
    was = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was)
