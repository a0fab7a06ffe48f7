"""What each rank of tests/train/test_parallel.py runs: a few steps of a few models, and what is left of them in files.

python tests/forked.py 4 ranks.py FOLDER
"""

import atexit
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.core.attention import Attention
from plait.core.model import Model
from plait.core.norms import RMSNorm
from plait.data.batches import collate
from plait.data.examples import IGNORED, Examples
from plait.errors import InputError
from plait.models import build
from plait.tasks.language import NextToken
from plait.tasks.masked import MaskedTokens
from plait.tasks.translation import TeacherForcing
from plait.train import parallel
from plait.train.checkpoints import grouped, write_tensors
from plait.train.optimizers import Adam, Muon, Together, inner_matrices, others
from plait.train.placement import fill
from plait.train.shards import Shards

STEPS = (5, 11)  # rows of each batch; the first is too few for 4 ranks in two parts each
VOCAB = 37  # not divided evenly by any number of ranks
PAIRS = dict(source_vocab=VOCAB, target_vocab=VOCAB, d_model=16, n_heads=4, n_layers=2, d_ff=32, dropout=0.0)


MODELS = {
    "gpt2": ("gpt2", dict(vocab_size=VOCAB, max_length=32, d_model=16, n_heads=4, n_layers=2, dropout=0.0), NextToken),
    "llama": ("llama", dict(vocab_size=VOCAB, d_model=16, n_heads=4, n_kv_heads=2, n_layers=2, d_ff=24), NextToken),
    "bert": ("bert", dict(vocab_size=VOCAB, d_model=16, n_heads=4, n_layers=2, d_ff=32, max_length=32, dropout=0.0), MaskedTokens),
    "modern": ("modern", dict(**PAIRS, n_decoder_layers=1), TeacherForcing),
    "vaswani": ("vaswani", PAIRS, TeacherForcing),
}


def rows(n: int, seed: int, pairs: bool):
    draw = np.random.default_rng(seed)
    sides = [[draw.integers(4, VOCAB, draw.choice([5, 8])).tolist() for _ in range(n)] for _ in range(2)]
    if pairs:
        return collate(list(zip(*sides, strict=True)))
    width = max(map(len, sides[0]))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in sides[0]])
    real = torch.tensor([[i < len(row) for i in range(width)] for row in sides[0]])
    answers = torch.where(real & (torch.arange(width) % 3 != 1), ids, IGNORED)
    return Examples(ids, real, answers)


def adam(net: Model) -> Together:
    return Together(adam=Adam(dict(net.named_parameters()), 0.01, decay=0.1))


def muon(net: Model) -> Together:
    inner = inner_matrices(net)
    return Together(muon=Muon(inner, 0.02, decay=0.1), adam=Adam(others(net, inner), 0.005))


def made(model: str, dtype: torch.dtype = torch.float64):
    arch, config, objective = MODELS[model]
    torch.manual_seed(0)
    net: Any = build(arch, config)
    if model == "llama":  # learned norms that each head shares, as later models of its kind have them
        for part in [part for part in net.modules() if isinstance(part, Attention)]:
            part.q_norm, part.k_norm = RMSNorm(part.d_head), RMSNorm(part.d_head)
    net.to(dtype)
    for p in net.parameters():  # zeros and ones would hide what goes wrong
        p.data.add_(torch.randn_like(p), alpha=0.1)
    return net, objective()


def trained(team: parallel.Team, model: str, optimizer=muon, steps=STEPS, accumulate: int = 2, dtype=torch.float64):
    """(net, optimizer, losses and norms [steps, 3]) after one step on each of the batches of so many rows."""
    net, objective = made(model, dtype)
    learner = team.wrap(net, objective)
    made_optimizer = optimizer(net)
    return net, made_optimizer, more(team, net, learner, objective, made_optimizer, steps, accumulate)


def more(team, net, learner, objective, optimizer, steps, accumulate: int = 2, skip: int = 0) -> Tensor:
    params, seen = list(net.parameters()), []
    for seed, n in list(enumerate(steps))[skip:]:
        batch = rows(n, 100 * n + seed, isinstance(objective, TeacherForcing))
        for p in params:
            p.grad = None
        sums = torch.zeros(2, dtype=torch.float64)
        for part, weight in team.passes(learner, objective, batch, accumulate):
            loss = learner(part, weight)
            loss.total.backward()
            sums += torch.stack([loss.total.detach().double(), torch.tensor(loss.count)])
        total, count = team.sum(sums)
        norm = team.norm(params) / count
        optimizer.step(1.0 / (seed + 1), count * torch.clamp((norm + 1e-6) / 0.2, min=1.0))
        seen.append([float(total), float(count), float(norm)])
    return torch.tensor(seen, dtype=torch.float64)


def outcome(team: parallel.Team, net: Model, optimizer: Together, seen: Tensor) -> dict[str, Tensor]:
    state = team.whole(optimizer.state())
    return {**team.whole(net.state_dict()), **{f"optimizer.{name}": t for name, t in state.items()}, "seen": seen}


def stopped(team: parallel.Team, folder: Path, model: str, n: int) -> None:
    """The first step of `trained`, and a checkpoint in `folder`."""
    net, optimizer, _ = trained(team, model, steps=STEPS[:n])
    Shards(folder, team).write(n, grouped(model=net.state_dict(), optimizer=optimizer.state()), {"step": n})


def resumed(team: parallel.Team, folder: Path, model: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(what was read from the checkpoint in `folder`, what is there after the other steps)"""
    net, objective = made(model)
    learner = team.wrap(net, objective)
    optimizer = muon(net)
    for t in net.state_dict().values():
        t.zero_()
    shards = Shards(folder, team)
    assert shards.last is not None
    groups = grouped(model=net.state_dict(), optimizer=optimizer.state())
    n = shards.read(shards.last, groups)["step"]
    read = {name: t.clone() for name, t in team.whole(groups).items()}
    return read, outcome(team, net, optimizer, more(team, net, learner, objective, optimizer, STEPS, skip=n))


def filled(team: parallel.Team, model: str) -> bool:
    """Whether parameters that took the values of whole tensors give them back."""
    net, objective = made(model)
    team.wrap(net, objective)
    wanted = {name: torch.randn(t.shape, dtype=t.dtype) for name, t in net.state_dict().items()}
    for name, t in net.state_dict().items():
        fill(t, wanted[name])
    found = team.whole(net.state_dict())
    return not team.first or all(torch.equal(found[name], t) for name, t in wanted.items())


def agreement(team: parallel.Team) -> str:
    """What is said where the ranks differ, the same on every one of them."""
    team.agree({"data": "abc", "version": 1})
    try:
        team.agree({"data": "abd" if team.rank == 1 else "abc", "version": 1, **({"seed": 3} if team.first else {})})
    except InputError as error:
        said = team.gathered(str(error))
        assert len(set(said)) == 1
        return said[0]
    return "nothing"


def left(how: str) -> None:
    """Rank 1 of 2 dies or hangs after the first step; what rank 0 then says is the answer. Without a launcher, which would end it."""
    other = os.fork()
    os.environ["RANK"] = "0" if other else "1"
    if other:
        atexit.register(os.kill, other, signal.SIGKILL)
    with parallel.start("ddp", wait=timedelta(seconds=4)) as team:
        trained(team, "gpt2", steps=STEPS[:1])
        if team.rank == 1 and how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if team.rank == 1:
            time.sleep(120)
        team.sum(torch.zeros(1))


def main(folder: Path) -> None:
    with parallel.start("ddp") as world:
        here = folder / str(world.size)
        for case in CASES[world.size]:
            kind, tensor, model, optimizer, dtype = case
            team = parallel.placed(parallel.layout(kind, tensor, world.size))
            found = outcome(team, *trained(team, model, globals()[optimizer], dtype=getattr(torch, dtype)))
            if world.first:
                write_tensors(here / f"{name_of(case)}.safetensors", found)
        if world.size == 4:
            for kind, tensor in (("fsdp", None), ("fsdp+tp", 2)):
                team = parallel.placed(parallel.layout(kind, tensor, 4))
                stopped(team, folder / kind, "gpt2", 1)
                assert filled(team, "gpt2"), kind
        else:  # goes on with what the four left
            for kind in ("fsdp", "tp"):
                read, after = resumed(parallel.placed(parallel.layout(kind, None, 2)), folder / "fsdp+tp", "gpt2")
                if world.first:
                    write_tensors(here / f"read-{kind}.safetensors", read)
                    write_tensors(here / f"after-{kind}.safetensors", after)
        world.gathered(None)
        said = agreement(world)
        if world.first:
            (here / "agreement.txt").write_text(said)


def name_of(case) -> str:
    return "-".join(map(str, case))


CASES = {
    4: [
        *(("fsdp+tp", 2, model, "muon", "float64") for model in ("gpt2", "llama", "vaswani")),
        ("fsdp+tp", 2, "bert", "adam", "float64"),
        ("fsdp+tp", 2, "gpt2", "muon", "float32"),
        ("ddp", None, "gpt2", "muon", "float32"),
        ("fsdp", None, "modern", "muon", "float64"),
    ],
    2: [
        *(("ddp", None, model, "muon", "float64") for model in ("gpt2", "bert", "vaswani")),
        *(("fsdp", None, model, "muon", "float64") for model in ("gpt2", "bert", "modern")),
        *(("tp", None, model, "muon", "float64") for model in ("gpt2", "llama", "bert", "modern")),
        *((kind, None, "gpt2", "adam", "float64") for kind in ("ddp", "fsdp")),
    ],
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        left(sys.argv[1]) if sys.argv[1] in ("dies", "hangs") else main(Path(sys.argv[1]))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
