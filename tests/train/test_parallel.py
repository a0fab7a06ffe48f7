"""Several ranks are one rank: DDP, FSDP2, tensor parallelism and FSDP2 with it, on real gloo processes, against a single process."""

import errno
import importlib.util
import os
import socket
import subprocess
import sys
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from plait.errors import InputError
from plait.models import build
from plait.train.checkpoints import grouped, read_tensors, write_tensors
from plait.train.keeping import Keeper
from plait.train.parallel import Layout, Team, layout, start
from plait.train.plan import cut_faults
from plait.train.shards import Shards, joined

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("ranks", HERE / "ranks.py")
ranks = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
spec.loader.exec_module(ranks)  # type: ignore[union-attr]

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HERE.parents[1] / "src")}
T5 = dict(vocab_size=9, d_model=16, n_heads=4, d_head=4, n_layers=1, d_ff=16)
BOUND = {"float64": 1e-10, "float32": 1e-5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What 2 and 4 ranks have left behind: they are started once."""
    folder = tmp_path_factory.mktemp("ranks")
    for n in ranks.CASES:
        command = [sys.executable, HERE.parent / "forked.py", str(n), HERE / "ranks.py", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENV)
        assert done.returncode == 0, done.stderr[-6000:]
    return folder


@cache
def alone(model: str, optimizer: str, dtype: str) -> dict[str, torch.Tensor]:
    """The same steps in this process, each batch in one part."""
    team = Team(device=torch.device("cpu"))
    made = ranks.trained(team, model, getattr(ranks, optimizer), accumulate=1, dtype=getattr(torch, dtype))
    return ranks.outcome(team, *made)


@pytest.mark.parametrize(("n", "case"), [(n, case) for n, cases in ranks.CASES.items() for case in cases], ids=str)
def test_several_ranks_are_one(folder, n, case):
    _, _, model, optimizer, dtype = case
    found, _ = read_tensors(folder / str(n) / f"{ranks.name_of(case)}.safetensors")
    expected = alone(model, optimizer, dtype)
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        if dtype == "float32" and name.endswith("k_proj.bias"):
            continue  # its gradient is zero but for rounding, of which Adam makes whole steps
        assert_close(found[name], tensor, rtol=BOUND[dtype], atol=BOUND[dtype], msg=lambda text, name=name: f"{name}: {text}")
    assert (found["seen"][:, 2] > 0.2).any(), "no step was clipped, so that the norm played no part"


def state_of(model: str, steps) -> dict[str, torch.Tensor]:
    net, optimizer, _ = ranks.trained(Team(device=torch.device("cpu")), model, steps=steps, accumulate=1)
    return grouped(model=net.state_dict(), optimizer=optimizer.state())


@pytest.mark.parametrize("kind", ["fsdp", "tp"])
def test_a_checkpoint_of_four_ranks_is_read_by_two_bit_for_bit(folder, kind):
    written, note = joined(folder / "fsdp+tp" / "step-00000001")
    read, _ = read_tensors(folder / "2" / f"read-{kind}.safetensors")
    assert note == {"step": 1}
    assert sorted(read) == sorted(written)
    for name, tensor in written.items():
        assert torch.equal(read[name].view(tensor.shape), tensor), name


@pytest.mark.parametrize("kind", ["fsdp", "fsdp+tp"])
def test_a_checkpoint_of_four_ranks_is_what_one_would_have_written(folder, kind, tmp_path):
    expected = state_of("gpt2", ranks.STEPS[:1])
    found, _ = joined(folder / kind / "step-00000001")
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert_close(found[name].view(tensor.shape), tensor.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["fsdp", "tp"])
def test_two_ranks_go_on_with_the_run_of_four(folder, kind):
    expected = alone("gpt2", "muon", "float64")
    found, _ = read_tensors(folder / "2" / f"after-{kind}.safetensors")
    for name, tensor in expected.items():
        assert_close(found[name], tensor[1:] if name == "seen" else tensor, rtol=1e-10, atol=1e-10)


def test_ranks_that_differ_are_told_apart(folder):
    for n in ranks.CASES:
        said = (folder / str(n) / "agreement.txt").read_text()
        others = ", ".join(str(rank) for rank in range(n) if rank != 1)
        assert "the ranks do not train the same" in said
        assert f"data: abc on rank{'s' * (n > 2)} {others}; abd on rank 1" in said
        assert "seed: 3 on rank 0; nothing on rank" in said
        assert "version" not in said.split("\n", 1)[1]


def free_port() -> str:
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return str(it.getsockname()[1])


def test_a_rank_that_dies_or_hangs_ends_the_other_with_one_sentence():
    jobs = {}
    for how in ("dies", "hangs"):
        env = {**ENV, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        jobs[how] = subprocess.Popen([sys.executable, HERE / "ranks.py", how], env=env, stderr=subprocess.PIPE, text=True)
    try:
        for job in jobs.values():
            said = job.communicate(timeout=100)[1]
            assert job.returncode == 2, said
            assert "one of 2 ranks has ended or did not answer" in said and "--resume" in said
            assert "Traceback" not in said
    finally:
        for job in jobs.values():
            job.kill()
            job.communicate()


def test_ranks_that_do_not_come_are_missed_within_the_time_given(monkeypatch):
    for name, value in dict(WORLD_SIZE="2", RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port()).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="rank 0 of 2: not all ranks met at"):
        start("ddp", wait=timedelta(seconds=1))
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(InputError, match="MASTER_PORT is not set"):
        start("ddp")


@pytest.mark.parametrize(
    ("size", "parallel", "tensor", "expected"),
    [
        (1, None, None, Layout()),
        (4, None, None, Layout(4)),
        (4, "fsdp", None, Layout(4, shard=True)),
        (2, "tp", None, Layout(1, tensor=2)),
        (8, "fsdp+tp", 2, Layout(4, shard=True, tensor=2)),
        (2, "ddp", 1, Layout(2)),
    ],
)
def test_layouts(size, parallel, tensor, expected):
    assert layout(parallel, tensor, size) == expected


@pytest.mark.parametrize(
    ("size", "parallel", "tensor", "says"),
    [
        (4, "zero", 2, ["expected ddp, fsdp, tp or fsdp+tp", "not with zero"]),
        (4, "fsdp", 2, ["goes with tp or fsdp+tp"]),
        (4, "tp", 2, ["is for 2 ranks, there are 4", "fsdp+tp"]),
        (1, "tp", 2, ["is for 2 ranks, there are 1", "torchrun --nproc-per-node"]),
        (4, "fsdp+tp", None, ["say how many ranks share a matrix"]),
        (6, "fsdp+tp", 4, ["tensor=4 does not divide 6 ranks"]),
        (2, "ddp", 0, ["tensor=0"]),
    ],
)
def test_a_layout_that_cannot_be_is_refused_by_name(size, parallel, tensor, says):
    with pytest.raises(InputError) as caught:
        layout(parallel, tensor, size)
    assert all(words in str(caught.value) for words in says), str(caught.value)


def test_what_cannot_be_cut_is_named_once_with_its_reason():
    assert cut_faults(build("t5", T5), 2) == [
        "encoder.blocks.*.self_attn has a score_bias, which is not built for cut heads",
        "decoder.blocks.*.self_attn has a score_bias, which is not built for cut heads",
    ]
    llama = build("llama", dict(vocab_size=9, d_model=24, n_heads=6, n_kv_heads=2, n_layers=2, d_ff=30))
    assert cut_faults(llama, 2) == []
    assert cut_faults(llama, 4) == [
        "decoder.blocks.*.self_attn has 6 heads, which 4 ranks cannot share evenly",
        "decoder.blocks.*.self_attn has 2 key heads, which 4 ranks cannot share evenly",
        "decoder.blocks.*.ffn is 30 wide, which 4 ranks cannot share evenly",
    ]


class Ids:
    """An objective whose parts are rows of numbers."""

    def parts(self, batch, n):
        return list(batch.tensor_split(min(n, len(batch))))


@pytest.mark.parametrize(("rows", "n", "k"), [(1, 4, 1), (3, 2, 4), (8, 4, 2), (13, 4, 2)])
def test_ranks_share_the_rows_of_a_batch_without_repeating_or_dropping_one(rows, n, k):
    teams = []
    for rank in range(n):
        team = Team(device=torch.device("cpu"))
        team.layout, team.data_rank = Layout(n), rank
        teams.append(team.parts(Ids(), torch.arange(rows), k))  # type: ignore[arg-type]
    assert all(len(parts) == k for parts in teams)  # everybody comes to every sum
    taken = [int(row) for parts in teams for part, weight in parts for row in part if weight]
    assert sorted(taken) == list(range(rows))


def test_a_damaged_or_foreign_checkpoint_is_refused_by_name(tmp_path):
    shards = Shards(tmp_path, Team(device=torch.device("cpu")))
    place = shards.write(3, {"a": torch.arange(6.0), "b": torch.ones(())}, {"step": 3})
    assert shards.last == place
    with pytest.raises(InputError) as caught:
        shards.read(place, {"a": torch.zeros(5), "c": torch.zeros(1)})
    assert all(words in str(caught.value) for words in ("c: is not in the checkpoint", "b: is not in this run", "a: [6] there, [5] here"))
    (tmp_path / ".step-00000004.part").mkdir()  # of a write that was killed: nothing has that name yet
    (tmp_path / "step-00000005").mkdir()
    assert shards.last == place
    (file,) = place.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    for read in (lambda: shards.read(place, {"a": torch.zeros(6), "b": torch.zeros(())}), lambda: joined(place)):
        with pytest.raises(InputError, match="its checksum differs"):
            read()
    file.unlink()
    with pytest.raises(InputError, match="No such file"):
        joined(place)


def test_of_a_file_and_a_folder_the_later_step_counts(tmp_path):
    """A run that went on with other ranks was killed before it removed what it had before; copying a run changes the files' times."""
    team = Team(device=torch.device("cpu"))
    keeper, shards = Keeper(tmp_path, team), Shards(tmp_path, team)
    for step in (3, 7):
        write_tensors(keeper.last, {"a": torch.full((2,), float(step))}, {"format": 1, "state": {"step": step}})
        place = shards.write(5, {"a": torch.full((2,), 5.0)}, {"format": 1, "state": {"step": 5}})
        for time in (1, 2):
            os.utime(keeper.last, (time, time))
            os.utime(place / "note.json", (3 - time, 3 - time))
            read = torch.zeros(2)
            assert keeper.read({"a": read}, lambda _: None)["state"]["step"] == max(step, 5)
            assert float(read[0]) == max(step, 5)
    keeper.save(8, {"a": torch.ones(2)}, {}, {"state": {"step": 8}})
    keeper.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["last.safetensors"]


def test_a_write_that_fails_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    shards = Shards(tmp_path, Team(device=torch.device("cpu")))
    place = shards.write(1, {"a": torch.arange(6.0)}, None)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("plait.train.shards.checksum", full)
    with pytest.raises(InputError, match="the checkpoint before is kept"):
        shards.write(2, {"a": torch.zeros(6)}, None)
    monkeypatch.undo()
    read = torch.zeros(6)
    shards.read(place, {"a": read})
    assert shards.last == place and torch.equal(read, torch.arange(6.0))
    assert shards.write(2, {"a": torch.zeros(6)}, None) == shards.last
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
