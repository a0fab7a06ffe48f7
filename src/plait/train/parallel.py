"""Several processes that train one model, as torchrun starts them: who takes which rows, and what all of them must agree on."""

import hashlib
import os
import signal
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plait.core.model import Model
from plait.errors import InputError, choices
from plait.tasks.objective import Objective
from plait.train.placement import local, spread, whole
from plait.train.plan import Learner, cut, fully_sharded, replicated

KINDS = ("ddp", "fsdp", "tp", "fsdp+tp")
WAIT = timedelta(minutes=10)  # for a rank that does not answer; preparing data, saving and compiling must fit
GONE = ("gloo/transport", "Application timeout")  # in what Gloo says, which has no type of error of its own


@dataclass(frozen=True)
class Layout:
    """`data` groups of ranks that take rows of their own; within each, `tensor` ranks that share the matrices.

    Without `shard` each of the groups holds all parameters (DDP); with it, each holds a part of them (FSDP2).
    """

    data: int = 1
    shard: bool = False
    tensor: int = 1


def layout(parallel: str | None, tensor: int | None, size: int) -> Layout:
    """For `size` ranks; `parallel` is one of KINDS (default: ddp), `tensor` how many ranks share a matrix. InputError names all faults."""
    kind = parallel or "ddp"
    faults = []
    if kind not in KINDS:
        faults.append(f"parallel {kind!r}: expected {choices(KINDS)}")
    cuts = kind.endswith("tp")
    if tensor is not None and tensor < 1:
        faults.append(f"tensor={tensor}: expected a number of ranks")
    elif tensor is not None and not cuts and tensor > 1:
        faults.append(f"tensor={tensor} goes with tp or fsdp+tp, not with {kind}")
    elif kind == "fsdp+tp" and tensor is None:
        faults.append("fsdp+tp: say how many ranks share a matrix (tensor=2, usually the devices of one machine)")
    elif kind == "tp" and tensor not in (None, size):
        faults.append(
            f"tp with tensor={tensor} is for {tensor} ranks, there are {size}: start {tensor} (torchrun --nproc-per-node), or fsdp+tp"
        )
    elif kind == "fsdp+tp" and tensor and size % tensor:
        faults.append(f"tensor={tensor} does not divide {size} ranks")
    if faults:
        raise InputError(f"{size} ranks cannot be laid out so", faults)
    share = (tensor or size) if cuts else 1
    return Layout(size // share, kind.startswith("fsdp"), share)


class Ended(BaseException):
    """The launcher told this rank to end (SIGTERM), as it does when another rank has ended."""


class Team:
    """The ranks of a run, seen from one of them. A single process is a team of one, without a process group.

    Used as a context: at its end the group is taken down, and a failure of another rank becomes one sentence. What several ranks
    would say at their end, one of them says.
    """

    def __init__(self, how: Layout | None = None, device: torch.device | None = None, mesh: Any = None, store: dist.Store | None = None):
        """`mesh` has the dimensions "data" and "tensor"; `store` is what the ranks met at, where the process group ends with the team."""
        self.layout, self.device = how or Layout(), device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.mesh, self.store = mesh, store
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if mesh is not None else (0, 1)
        self.data_rank = 0 if mesh is None else mesh["data"].get_local_rank()

    @property
    def first(self) -> bool:
        """Whether this rank is the one that writes and speaks."""
        return self.rank == 0

    def __enter__(self) -> "Team":
        if self.store is not None and threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, _told_to_end)
        return self

    def __exit__(self, _type: Any, fault: BaseException | None, _trace: Any) -> None:
        if hasattr(self, "before"):  # the launcher ends the others as soon as one is gone: what there is to say is said first
            signal.signal(signal.SIGTERM, self.before if fault is None else signal.SIG_IGN)
        if fault is None:
            if self.store is not None:  # after a fault the group ends with the process; taking it down could wait for the others
                dist.destroy_process_group()
            return
        said = InputError(
            f"one of {self.size} ranks has ended or did not answer in time, or all were told to end; the message of that rank, or the"
            " launcher, says why. Start the same command again with --resume, on as many ranks as there are"
        )
        said = said if self.size > 1 and _gone(fault) else fault
        if isinstance(said, InputError | KeyboardInterrupt) and not self.speaks(str(said)):
            raise SystemExit(2 if isinstance(said, InputError) else 128 + signal.SIGINT) from None
        if said is not fault:
            raise said from None

    def speaks(self, text: str) -> bool:
        """Whether this rank is the one to say what others may have to say as well: the first to ask."""
        try:
            return self.store is None or self.store.add(f"said {zlib.crc32(text.encode()):08x}", 1) == 1
        except RuntimeError:  # it ended with the rank that kept it
            return True

    # --- the model

    def wrap(self, net: Model, objective: Objective) -> nn.Module:
        """The learner of a model that is on this rank's device, the same on every rank: call it as learner(part, weight).

        Parameters of the model are replaced where they are spread, so optimizers are made after this.
        """
        learner = Learner(net, objective)
        if self.layout.tensor > 1:
            cut(net, self.mesh["tensor"])
        if self.layout.shard:
            return fully_sharded(learner, self.mesh["data"])
        return replicated(learner) if self.layout.data > 1 else learner

    def parts(self, objective: Objective, batch: Any, n: int = 1) -> list[tuple[Any, float]]:
        """This rank's n parts of a global batch, and their weight: 0 for one that another rank has, given where rows are too few."""
        if self.layout.data == 1:
            return [(part, 1.0) for part in objective.parts(batch, n)]
        cut = objective.parts(batch, self.layout.data * n)
        mine = range(self.data_rank * n, (self.data_rank + 1) * n)
        return [(cut[i], 1.0) if i < len(cut) else (cut[0], 0.0) for i in mine]

    def passes(self, learner: nn.Module, objective: Objective, batch: Any, n: int = 1) -> Iterator[tuple[Any, float]]:
        """`parts` to go forward and backward with, one after the other. Gradients are summed over ranks with the last of them.

        When the loop over them ends, each gradient lies as its parameter does.
        """
        parts = self.parts(objective, batch, n)
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            if self.layout.shard:
                learner.set_requires_gradient_sync(last)  # type: ignore[operator]
            with learner.no_sync() if not last and hasattr(learner, "no_sync") else nullcontext():  # type: ignore[operator]
                yield part
        if self.layout.tensor > 1:
            for p in learner.parameters():
                if spread(p) and p.grad is not None and p.grad.placements != p.placements:  # type: ignore[attr-defined]
                    p.grad = p.grad.redistribute(placements=p.placements)  # type: ignore[attr-defined]

    def seed(self, *numbers: int) -> None:
        """torch's generators from these numbers and the place among the data: ranks that share matrices drop the same."""
        if self.size > 1:
            words = repr((*numbers, self.data_rank)).encode()
            torch.manual_seed(int.from_bytes(hashlib.sha256(words).digest()[:8], "little"))

    # --- sums

    def sum(self, t: Tensor) -> Tensor:
        """Over the groups that took different rows."""
        if self.layout.data > 1:
            t = t.clone()
            dist.all_reduce(t, group=self.mesh["data"].get_group())
        return t

    @torch.no_grad()
    def norm(self, params: Iterable[nn.Parameter]) -> Tensor:
        """The norm of all gradients together, the same on every rank."""
        grads = [p.grad for p in params if p.grad is not None]
        if not any(map(spread, grads)):
            return nn.utils.get_total_norm(grads)
        kinds: dict[tuple[str, ...], list[Tensor]] = {}
        for g in grads:
            kinds.setdefault(_shared_by(g), []).append(local(g))
        total = torch.zeros((), dtype=grads[0].dtype, device=self.device)
        for axes, pieces in kinds.items():  # in the same order on every rank
            square = nn.utils.get_total_norm(pieces).square()
            for axis in axes:
                dist.all_reduce(square, group=self.mesh[axis].get_group())
            total += square
        return total.sqrt()

    def first_says(self, value: float) -> float:
        """The first rank's number, on all: whatever hangs on a clock must be one rank's decision."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(told, 0)
        return float(told)

    def barrier(self) -> None:
        if self.size > 1:
            self.first_says(0.0)

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors in one piece, on the CPU of the first rank; nothing on the others. All ranks must ask."""
        found = {name: whole(t.detach()) for name, t in tensors.items()} if self.size == 1 else {}
        if self.size > 1:
            for name, t in tensors.items():  # one at a time: all of them together need not fit
                full = whole(t.detach())
                if self.first:
                    found[name] = full.cpu()
        return found

    # --- agreement

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value (small, of plain Python), in the order of ranks."""
        found: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found

    def agree(self, fingerprints: Mapping[str, Any]) -> None:
        """InputError on every rank where the ranks have not the same values: of data, versions, settings. Values are printable."""
        found = self.gathered({name: str(value) for name, value in fingerprints.items()})
        names = dict.fromkeys(name for one in found for name in one)
        faults = [fault for name in names if (fault := _difference(name, [one.get(name, "nothing") for one in found]))]
        if faults:
            raise InputError("the ranks do not train the same: give every one of them the same files, versions and options", faults)


def _gone(fault: BaseException | None) -> bool:
    """Whether this is what a rank sees of the end of another."""
    return isinstance(fault, Ended | dist.DistError) or (isinstance(fault, RuntimeError) and any(sign in str(fault) for sign in GONE))


def _told_to_end(*_: Any) -> None:
    raise Ended


def _difference(name: str, values: list[str]) -> str | None:
    """Which ranks have which value, where they differ."""
    if len(set(values)) == 1:
        return None
    having = {value: [str(rank) for rank, one in enumerate(values) if one == value] for value in dict.fromkeys(values)}
    return f"{name}: " + "; ".join(f"{value} on rank{'s' * (len(ranks) > 1)} {', '.join(ranks)}" for value, ranks in having.items())


def _shared_by(g: Any) -> tuple[str, ...]:
    """The dimensions of the mesh over which a gradient is cut."""
    if not spread(g):
        return ()
    return tuple(name for name, placement in zip(g.device_mesh.mesh_dim_names, g.placements, strict=True) if not placement.is_replicate())


def start(parallel: str | None = None, tensor: int | None = None, wait: timedelta = WAIT) -> Team:
    """The team this process belongs to, from what torchrun (or Slurm, or Ray Train) put into the environment; alone without it.

    A process group that is there already (Ray Train's) is used and left standing.
    """
    there = dist.is_available() and dist.is_initialized()
    size = dist.get_world_size() if there else int(os.environ.get("WORLD_SIZE", "1"))
    how = layout(parallel, tensor, size)
    if size == 1:
        return Team()
    if not there:
        if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise InputError(
                f"WORLD_SIZE={size}, but {choices(missing)} is not set: start with torchrun --nproc-per-node {size} -m plait.cli ..."
            )
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            store, rank, _ = next(dist.rendezvous("env://", timeout=wait))
            dist.init_process_group(backend, timeout=wait, store=dist.PrefixStore("group", store), rank=rank, world_size=size)
        except dist.DistError:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise InputError(
                f"rank {os.environ['RANK']} of {size}: not all ranks met at {where} within {wait.total_seconds():g} s; start the job again,"
                " every machine with the same address, on a port that is free and open"
            ) from None
        return placed(how, store)
    return placed(how)


def together(value: float) -> float:
    """The sum of what all ranks of the process group measure; the value itself without one. All ranks must ask."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    dist.all_gather_object(found := [value] * dist.get_world_size(), value)
    return sum(found)


def placed(how: Layout, store: dist.Store | None = None) -> Team:
    """The team of the process group that is there, laid out so. All ranks must call this."""
    from torch.distributed.device_mesh import init_device_mesh

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    mesh = init_device_mesh(device.type, (how.data, how.tensor), mesh_dim_names=("data", "tensor"))
    return Team(how, device, mesh, store)
