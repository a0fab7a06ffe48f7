"""A model: named towers, what feeds what, and heads."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plait.core import kernels
from plait.core.blocks import Stack
from plait.core.cache import Cache
from plait.core.dropout import dropout
from plait.core.program import lowered
from plait.core.stream import Call, Stream, Watcher, stream


class Tower(nn.Module):
    """An embedding, a stack of blocks, a final norm, dropout after it (T5). `owns` are parts that its layers share (T5's bias table).

    A `prompt` puts entries before its own, which only other towers read.
    """

    prompt: Callable[[Stream], Stream] | None = None

    def __init__(self, embed: nn.Module, blocks: Stack, norm: nn.Module | None = None, dropout: float = 0.0, **owns: nn.Module):
        super().__init__()
        self.embed, self.blocks, self.norm, self.dropout = embed, blocks, norm, dropout
        for name, part in owns.items():
            self.add_module(name, part)

    def forward(self, s: Stream, call: Callable[[Stream], Call], name: str) -> Stream:
        s = self.embed(s)
        longer = s if self.prompt is None else self.prompt(s)
        c = call(longer)
        if (program := lowered(self, name, c)) is not None:
            return s.having(x=program(s.x, c))
        x = self.blocks(longer.x, c, (name,))
        x = x if self.norm is None else self.norm(x)
        x, n = dropout(x, self.dropout, self.training), longer.length - s.length
        return s.having(x=x[:, n:], prompt=x[:, :n]) if n else s.having(x=x)


class Model(nn.Module):
    """Towers in running order; each cross-attention names the tower it reads. Heads turn hidden vectors into scores.

    net(encoder=source, decoder=target) -> {"encoder": Stream, "decoder": Stream}; net.heads["lm"](streams["decoder"].x) -> logits.
    `kernel` is used by every attention; assign `kernels.reference` to follow the textbook formula. `init` sets the initial values
    that a paper wants other than each part's own. With `exact`, what is computed without gradients is a native program's
    (`core/program.py`) whatever the number of rows, so that a row's numbers are the same bits in any batch.
    `shape` lists what was taken out of it since its page built it (`core/shape.py`).
    """

    exact = False
    shape: Sequence[Mapping[str, Any]] = ()

    def __init__(self, heads: dict[str, nn.Module] | None = None, init: Callable[["Model"], None] | None = None, **towers: nn.Module):
        super().__init__()
        self.towers = tuple(towers)
        for name, tower in towers.items():
            self.add_module(name, tower)
        self.heads = nn.ModuleDict(heads or {})
        self.kernel: kernels.Kernel = kernels.sdpa
        self.init = init
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.init is not None:
            self.init(self)

    @property
    def tuning(self) -> nn.Module | None:
        """The small part that is chosen now (`plait.tune`), if any: what was computed with another is of another model."""
        tunings: Any = getattr(self, "tunings", None)
        return None if tunings is None or tunings.chosen is None else tunings.get_submodule(tunings.chosen)

    def takes(self, tower: str) -> str:
        """What a tower is given: "ids", "pixels" or "clips" (as `Embed.takes`)."""
        return getattr(self.get_submodule(tower).embed, "takes", "ids")

    def run(
        self,
        name: str,
        x: Tensor | Stream,
        memories: dict[str, Stream] | None = None,
        cache: Cache | None = None,
        watch: Watcher | None = None,
    ) -> Stream:
        """One tower on one stream; `memories` are finished streams of other towers. With a cache, only the new entries are given."""
        if cache is not None and isinstance(x, Stream) and (x.segment is not None or (x.real is not None and cache.real is None)):
            raise ValueError("the cache knows neither documents nor padding of this stream: make it by cache.stream(ids, real)")
        s = cache.stream(x) if cache is not None and not isinstance(x, Stream) else stream(x)
        out = self.get_submodule(name)(s, lambda own: Call(own, self.kernel, memories or {}, cache, watch, exact=self.exact), name)
        if cache is not None:
            cache.advance(out.length)
        return out

    def forward(self, *inputs: Tensor | Stream, watch: Watcher | None = None, **named: Tensor | Stream) -> dict[str, Stream]:
        """Streams (or ids [B, L]) for the towers, by name or in running order -> the finished stream of each."""
        if len(inputs) > len(self.towers):
            raise ValueError(f"{len(inputs)} inputs for {len(self.towers)} towers: this model has {list(self.towers)}")
        given = {**dict(zip(self.towers, inputs, strict=False)), **named}
        if unknown := [name for name in given if name not in self.towers]:
            raise ValueError(f"no tower called {unknown}: this model has {list(self.towers)}")
        done: dict[str, Stream] = {}
        for name in self.towers:
            if name in given:
                done[name] = self.run(name, given[name], done, watch=watch)
        return done


def parameters(module: nn.Module) -> int:
    """The number of parameters; shared ones count once."""
    return sum(p.numel() for p in module.parameters())


def learning(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name: frozen ones need no state of an optimizer, and no place in a tuned run."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def reset(module: nn.Module, seed: int | None = None) -> None:
    """Every part draws its initial values anew; with a seed, from a generator state that is put back afterwards."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        for part in reversed(list(module.modules())):  # the model last: its page has the last word
            if callable(own := getattr(part, "reset_parameters", None)):
                own()


def matching(module: nn.Module, *suffixes: str) -> Iterable[tuple[str, nn.Parameter]]:
    """Parameters whose name ends with one of the suffixes; a suffix that matches nothing is an error."""
    named: list[tuple[str, nn.Parameter]] = list(module.named_parameters())
    for suffix in suffixes:
        if not any(name.endswith(suffix) for name, _ in named):
            raise ValueError(
                f"no parameter ends with {suffix!r}; there are {sorted({name.split('.')[-2] for name, _ in named if '.' in name})}"
            )
    return [(name, p) for name, p in named if name.endswith(suffixes)]
