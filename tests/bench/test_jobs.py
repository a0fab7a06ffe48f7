"""Every job once, on toy shapes: that it runs, that contestants see the same, and what it reports."""

import json
import sys

import pytest
import torch

from plait.bench import peers as made
from plait.bench import train_speed, translate_speed
from plait.bench.operations import Shape
from plait.errors import InputError


def test_batches_are_full_and_the_same_each_time(toy):
    job = train_speed.Job(toy, rows=3, length=6)
    first, again = train_speed.random_batches(job, 2), train_speed.random_batches(job, 2)
    assert torch.equal(first[1].target_in, again[1].target_in) and not torch.equal(first[0].source, first[1].source)
    for batch in first:
        assert batch.source.shape == batch.target_in.shape == (3, 6)
        assert bool(batch.source_real.all()) and bool(batch.target_real.all())


@pytest.mark.parametrize("joint", [True, False])
def test_training_in_turn(peers, toy, tmp_path, joint):
    shape = toy if joint else Shape(16, 2, 2, 32, 30, 40, joint=False)
    found = train_speed.run(train_speed.Job(shape, rows=2, length=5), 2, list(train_speed.WHAT), tmp_path, warmup=1, product=32)
    assert list(found["contestants"]) == ["plait", "marian", "trainer", "torch", "plait modern"]
    assert all(len(row["seconds"]) == 2 and row["what"] for row in found["contestants"].values())
    assert set(found["ratios"]) == set(found["contestants"]) - {"plait"}
    assert found["tokens"] == 20 and found["real_share"] == 1
    assert "2+2 x 16" in train_speed.shown(found)
    json.dumps(found)


def test_all_contestants_learn_the_same_task(peers, toy, tmp_path):
    """A loop that trains nothing would be fast: each must fit one batch."""
    job = train_speed.Job(toy, rows=2, length=5)
    (batch,) = train_speed.random_batches(job, 1)
    for make in (train_speed.marian_step, train_speed.torch_step, lambda s, d: train_speed.plait_step(s, "plait", tmp_path, d)):
        torch.manual_seed(0)
        step = make(toy, 0.0)
        net = next(part for part in held(step) if isinstance(part, torch.nn.Module))
        before = [p.detach().clone() for p in net.parameters() if p.requires_grad]
        step(batch)
        moved = [not torch.equal(p, old) for p, old in zip([p for p in net.parameters() if p.requires_grad], before, strict=True)]
        assert sum(moved) > 0.9 * len(moved)


def held(step):
    """The objects a step function works on."""
    if hasattr(step, "__self__"):
        return [step.__self__.net]
    return [cell.cell_contents for cell in step.__closure__]


def test_contestants_have_one_size(peers, toy):
    for shape in (toy, Shape(16, 2, 2, 32, 30, 40, joint=False)):
        count = {
            "plait": sum(p.numel() for p in made.ours(shape).parameters()),
            "marian": sum(p.numel() for p in made.marian(shape, pad=0, start=1, end=2).parameters() if p.requires_grad),
            "torch": sum(p.numel() for p in made.TorchTransformer(shape).parameters()) - 4 * shape.d_model,  # its two final norms
        }
        assert len(set(count.values())) == 1, count


def test_translating_in_turn(peers, toy, tmp_path):
    names = ["plait", *translate_speed.PEERS]
    found = translate_speed.run(toy, 1, names, tmp_path, 1, [2, 1], rows=2, source=4, target=5, rest=0.0, product=32)
    assert set(found["beams"]) == {"2", "1"}
    for one in found["beams"].values():
        assert list(one["contestants"]) == names and one["tokens"] == 10
        assert one["differs"]["generate"]["other_answers"] == 0
        assert one["differs"]["ctranslate2"]["other_answers"] == 0
    assert found["beams"]["2"]["differs"]["generate"]["score_gap"] < 1e-4
    assert "beam 2" in translate_speed.shown(found)
    json.dumps(found)


def test_a_missing_peer_is_named_with_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"transformers is not installed .*pip install"):
        made.need("transformers")
