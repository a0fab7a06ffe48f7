"""How a model is laid over ranks: copies of it (DDP), its parameters in shards (FSDP2), its matrices cut (tensor parallelism)."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plait.core.attention import Attention
from plait.core.blocks import Block
from plait.core.embeddings import Tokens
from plait.core.feedforward import FFN
from plait.core.heads import Tied
from plait.core.linear import Linear
from plait.core.model import Model
from plait.errors import InputError
from plait.tasks.objective import Loss, Objective

# The one plan, by names: what comes first is cut by its outputs, what ends a step by its inputs (Shoeybi et al. 2019, section 3), so
# that a step needs one sum over ranks each way. Embeddings are cut by rows. All else is the same on every rank.
COLUMN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
ROW = ("o_proj", "down_proj")
PER_HEAD = ("q_norm", "k_norm")


class Learner(nn.Module):
    """A model and its objective as one module, so that what shards and synchronises surrounds all that the loss reads.

    The weight of a head is read outside the head's own forward pass (`core/losses.py`); here that is still inside.
    """

    def __init__(self, net: Model, objective: Objective):
        super().__init__()
        self.net, self.objective = net, objective

    def forward(self, part: Any, weight: float = 1.0) -> Loss:
        """The loss of a part of a batch. With `weight` 0 it counts for nothing: a rank without rows takes part in the sums all the same."""
        loss = self.objective.loss(self.net, part)
        return loss if weight else Loss(loss.total * 0.0, loss.plain * 0.0, 0)


# ---- copies ----


def replicated(learner: Learner) -> nn.Module:
    """torch's DistributedDataParallel, with gradients that are sums over ranks: losses are sums, and the optimizer divides."""
    from torch.nn.parallel import DistributedDataParallel

    # A head that the loss does not read gets no gradient, as in one process; looking for it costs a walk over the graph each step.
    unread = [name for name, head in learner.net.heads.items() if name != getattr(learner.objective, "head", None) and [*head.parameters()]]
    copies = DistributedDataParallel(learner, find_unused_parameters=bool(unread))
    copies.register_comm_hook(None, summed)
    return copies


def summed(_state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


# ---- shards ----


class Opaque:
    """Holds what FSDP2 must not look into."""

    def __init__(self, held: Any):
        self.held = held


def fully_sharded(learner: Learner, mesh: Any) -> nn.Module:
    """torch's fully_shard (FSDP2) on every block and, for embeddings, last norms and heads, on the learner as a whole."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for block in [part for part in learner.modules() if isinstance(part, Block)]:
        fully_shard(block, mesh=mesh)
        # It would rebuild the dataclasses among a block's arguments, and each block would get a `Call` of its own: no memo to share.
        block.register_forward_pre_hook(lambda _, args: (args[0], Opaque(args[1]), *args[2:]), prepend=True)
        block.register_forward_pre_hook(lambda _, args: (args[0], args[1].held, *args[2:]))
    fully_shard(learner, mesh=mesh)
    for part in learner.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)  # sums, as above
            part.set_force_sum_reduction_for_comms(True)  # and by adding alone, which every backend can
    return learner


# ---- cut matrices ----


class Gathered:
    """An embedding cut by rows, whole for whoever reads its weight: a tied head, whose loss wants all the vocabulary."""

    def __init__(self, tokens: Any):
        self.tokens = tokens

    @property
    def weight(self) -> Tensor:
        return self.tokens.weight.full_tensor()


def cut_faults(net: Model, n: int) -> list[str]:
    """Why a model cannot be cut for n ranks; each reason once, however many layers have it."""
    faults = []
    for name, part in net.named_modules():
        place = ".".join("*" if word.isdigit() else word for word in name.split("."))
        if isinstance(part, Attention):
            faults += [
                f"{place} has a {slot}, which is not built for cut heads" for slot in ("score_bias", "memory") if getattr(part, slot)
            ]
            for what, proj in (("heads", part.q_proj), ("key heads", part.k_proj)):
                if isinstance(proj, Linear) and (heads := proj.weight.shape[0] // part.d_head) % n:
                    faults.append(f"{place} has {heads} {what}, which {n} ranks cannot share evenly")
        elif isinstance(part, FFN) and isinstance(part.up_proj, Linear) and (width := part.up_proj.weight.shape[0]) % n:
            faults.append(f"{place} is {width} wide, which {n} ranks cannot share evenly")
        elif name.endswith((*COLUMN, *ROW)) and type(part) is not Linear:
            faults.append(f"{place} is a {type(part).__name__}, not a plain matrix")
    return list(dict.fromkeys(faults))


def cut(net: Model, mesh: Any) -> None:
    """Tensor parallelism by the plan above; `mesh` has one dimension. InputError for a model that cannot be cut so."""
    from torch.distributed.tensor import Replicate, Shard

    if faults := cut_faults(net, mesh.size()):
        raise InputError(f"this model cannot be cut over {mesh.size()} ranks: choose another number, or only shard it (fsdp)", faults)
    for name, part in net.named_modules():
        if name.endswith(COLUMN):
            _distribute(part, mesh, dict(weight=Shard(0), bias=Shard(0)), Replicate(), Shard(-1))
        elif name.endswith(ROW):
            _distribute(part, mesh, dict(weight=Shard(1), bias=Replicate()), Shard(-1), Replicate())
        elif name.endswith(PER_HEAD):
            _distribute(part, mesh, dict(weight=Replicate(), bias=Replicate()), Shard(1), Shard(1))  # [B, H, L, K]
        elif isinstance(part, Tokens):
            _distribute(part, mesh, dict(weight=Shard(0)), Replicate(), Replicate())
        elif isinstance(part, Tied):
            part.tokens = Gathered(part.tokens)  # type: ignore[assignment]


def _distribute(part: nn.Module, mesh: Any, placements: dict[str, Any], comes: Any, goes: Any) -> None:
    """The part's parameters are spread; its input is read as placed by `comes`, its output made plain again once it lies as `goes`."""
    from torch.distributed.tensor import DTensor, distribute_module, distribute_tensor

    def spread(_name: str, module: nn.Module, mesh: Any) -> None:
        for name, p in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(distribute_tensor(p.data, mesh, [placements[name]]), p.requires_grad))

    def enter(x: Any) -> Any:
        return DTensor.from_local(x, mesh, [comes], run_check=False)

    def leave(x: Any) -> Any:
        return x.redistribute(placements=[goes]).to_local()

    def on(value: Any, change: Any) -> Any:
        return change(value) if isinstance(value, Tensor) else value.having(x=change(value.x))  # an embedding's part takes a stream

    distribute_module(part, mesh, spread)
    part.register_forward_pre_hook(lambda _, args: (on(args[0], enter), *args[1:]))
    part.register_forward_hook(lambda _, __, out: on(out, leave))
