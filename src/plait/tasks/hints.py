"""What a student learns from inside a teacher: the vectors that leave its blocks, and where its attention looks."""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn, xlogy

from plait.core.attention import Attention
from plait.core.linear import Linear
from plait.core.model import Model
from plait.core.stream import Stream, Watcher
from plait.data.batches import Batch
from plait.data.examples import IGNORED
from plait.errors import InputError

KINDS = ("hidden", "attention")
FITTED = "fitted."  # how the names of a student's projections begin

Path = tuple[Any, ...]


class Kept(Watcher):
    """Keeps what flows at some paths."""

    def __init__(self, paths: Collection[Path]):
        self.paths, self.found = frozenset(paths), dict[Path, Tensor]()

    def wants(self, path: Path) -> bool:
        return path in self.paths

    def see(self, path: Path, found: Tensor) -> None:
        self.found.setdefault(path, found)  # a block whose inside is computed again on the way back shows it a second time


class Seen:
    """A model as an objective takes it, of whose forward pass the finished streams and what flows at some paths are kept."""

    def __init__(self, net: Model, paths: Collection[Path]):
        self.net, self.kept, self.streams = net, Kept(paths), dict[str, Stream]()

    def __call__(self, *inputs: Any, **named: Any) -> dict[str, Stream]:
        self.streams = self.net(*inputs, watch=self.kept, **named)
        return self.streams

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)


class Hints:
    """Layers of a student that learn from layers of a teacher (hints: Romero et al. 2015), `kinds` of KINDS.

    hidden      ‖W h - t‖² / ‖t‖² of the vectors that leave a block (Jiao et al. 2020, "TinyBERT", equation 9). Divided by the teacher's,
                since what leaves the blocks of models with norms before each step grows with depth. W stands where widths differ: one a
                tower, learned with the student, of which it is the part `fitted` until the run is kept.
    attention   KL(teacher ‖ student) of a query's attention weights (Wang et al. 2020, "MiniLM", equation 3), head by head; where the
                numbers of heads differ, of their mean over heads.

    Layers are mapped evenly, the last to the last. Each kind counts by its mean over layers and over a row's real entries, as many times
    as the row has predictions: so parts of a batch add up to the whole, and no kind counts more in a deeper model or a longer text.
    InputError names all that the teacher has not.
    """

    def __init__(self, student: Model, teacher: Model, kinds: Iterable[str] = KINDS):
        self.pairs: dict[str, dict[Path, Path]] = {kind: {} for kind in KINDS if kind in set(kinds)}
        self.widths: dict[str, tuple[int, int]] = {}  # of student and teacher, by tower
        faults = []
        for tower in student.towers:
            ours, theirs = blocks(student, tower), blocks(teacher, tower)
            if (widths := (width(ours), width(theirs))) and widths[0] != widths[1] and "hidden" in self.pairs:
                self.widths[tower] = widths
            for depth, i in enumerate(ours.order):
                at = ((depth + 1) * len(theirs.order) - 1) // len(ours.order)
                if "hidden" in self.pairs:
                    self.pairs["hidden"][tower, depth] = tower, at
                if "attention" in self.pairs:
                    names, known = attending(ours[i]), attending(theirs[theirs.order[at]])
                    self.pairs["attention"] |= {(tower, depth, name): (tower, at, name) for name in names if name in known}
                    faults += [f"attention: the blocks of its {tower} have no {name}" for name in names if name not in known]
        if faults:
            raise InputError("this model has no such layers to learn from", list(dict.fromkeys(faults)))

    def fit(self, student: Model) -> None:
        """Gives the student the projections that it lacks."""
        student.fitted = nn.ModuleDict({tower: Linear(ours, theirs, bias=False) for tower, (ours, theirs) in self.widths.items()})

    def student(self, net: Model) -> Seen:
        return Seen(net, [path for pairs in self.pairs.values() for path in pairs])

    def teacher(self, net: Model) -> Seen:
        return Seen(net, [path for pairs in self.pairs.values() for path in pairs.values()])

    def loss(self, ours: Seen, theirs: Seen, batch: Any) -> Tensor:
        """The sum over the rows of a batch that both have read."""
        total = torch.zeros(())
        for kind, pairs in self.pairs.items():
            terms = []
            for path, source in pairs.items():
                mine, its = ours.kept.found[path], theirs.kept.found[source]
                if kind == "hidden":
                    mine = mine[:, -ours.streams[path[0]].length :]  # entries that a prompt adds are the student's alone
                    check(path, mine.shape[:2], its.shape[:2])
                    apart = vectors_apart(ours.fitted[path[0]](mine) if path[0] in self.widths else mine, its)
                else:
                    check(path, mine.shape[2:], its.shape[2:])
                    apart = weights_apart(mine, its)
                terms.append((row_means(apart, ours.streams[path[0]]) * asked(batch).to(apart.device)).sum())
            total = total.to(terms[0].device) + torch.stack(terms).mean()
        return total


def blocks(net: Model, tower: str) -> Any:
    return net.get_submodule(tower).blocks


def width(stack: nn.Module) -> int:
    return next(part for part in stack.modules() if isinstance(part, Attention)).o_proj.weight.shape[0]


def attending(block: Any) -> list[str]:
    """The names of a block's steps that attend."""
    return [name for name in block.names if any(isinstance(part, Attention) for part in block.get_submodule(name).modules())]


def check(path: Path, ours: Iterable[int], theirs: Iterable[int]) -> None:
    if (mine := list(ours)) != (its := list(theirs)):
        where = ".".join(map(str, path))
        raise InputError(
            f"{where}: the teacher has {its} where the model has {mine} entries: one that cuts its input otherwise teaches scores alone"
        )


def vectors_apart(ours: Tensor, theirs: Tensor) -> Tensor:
    """[B, L]"""
    ours, theirs = exact(ours), exact(theirs)
    return (ours - theirs).square().mean(-1) / theirs.square().mean(-1).clamp_min(torch.finfo(theirs.dtype).eps)


def weights_apart(ours: Tensor, theirs: Tensor) -> Tensor:
    """[B, L] of weights [B, H, L, S]; 0 of a query that may see nothing."""
    q, p = exact(ours), exact(theirs)
    if q.shape[1] != p.shape[1]:
        q, p = q.mean(1, keepdim=True), p.mean(1, keepdim=True)
    # What is hidden has weight 0 for both; the bound keeps 0 · log 0, and its gradient, from being no number.
    return (xlogy(p, p) - p * q.clamp_min(torch.finfo(q.dtype).tiny).log()).sum(-1).mean(1)


def exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def row_means(values: Tensor, s: Stream) -> Tensor:
    """[B] of values [B, L] of a stream's entries, the real ones; of rows that a step has cut out of them, all."""
    if s.real is None or values.shape != s.real.shape:
        return values.reshape(len(s.x), -1).mean(1)
    return values.masked_fill(~s.real, 0.0).sum(1) / s.real.sum(1).clamp_min(1)


def asked(batch: Any) -> Tensor:
    """[B] how many predictions the rows of a batch are asked for."""
    if isinstance(batch, Batch):
        return batch.target_real.sum(1)
    if getattr(batch, "per_entry", False):
        return (batch.answers != IGNORED).sum(1)
    return torch.ones(len(batch))
