"""The bench of training language models on a toy shape: all contestants take the same steps; who cannot take part is told of."""

import json

import pytest

from plait.bench import train_language
from plait.bench.train_language import SHAPES, Shape

TOY = Shape(16, 2, 1, 12, 30, 2)


def test_contestants_take_the_same_steps(peers, tmp_path):
    found = train_language.run(TOY, 1, ["plait", "nanogpt", "trainer"], tmp_path, 1, steps=2)
    json.dumps(found)
    assert list(found["contestants"]) == ["plait", "trainer"] and "--nanogpt" in found["failed"]["nanogpt"]
    ours, theirs = (found["contestants"][name]["losses"] for name in ("plait", "trainer"))
    assert len(ours) == 4 and ours[0] - ours[-1] > 1e-3
    assert ours == pytest.approx(theirs, abs=2e-5)
    assert found["ours"] == "plait" and found["ratios"]["trainer"]["median"] > 0
    table = train_language.shown(found)
    assert "GPT-2 of 1 x 16" in table and "nanogpt takes no part" in table


def test_a_folder_without_nanogpt_is_told_of(tmp_path):
    found = train_language.run(TOY, 1, ["plait", "nanogpt"], tmp_path, 1, nanogpt=str(tmp_path), steps=1)
    assert "model.py: is not there" in found["failed"]["nanogpt"] and list(found["contestants"]) == ["plait"]


def test_operations_are_six_a_weight_and_token():
    shape = SHAPES["characters"]
    net = train_language.network(shape)
    weights = sum(p.numel() for name, p in net.named_parameters() if p.ndim == 2 and "positions" not in name)
    assert shape.operations() == 6 * 8 * 256 * weights
