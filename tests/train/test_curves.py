"""The curves of a run: the numbers behind them, and pictures of none, one, many and broken rows."""

import math
import sys

import numpy as np
import pytest

from plait.train.curves import draw_curves, merged, smoothed

NAN = float("nan")


def rows(n: int) -> list[dict]:
    train = [
        {"step": i, "seconds": 2.0 * i, "train_loss": 5 * math.exp(-i / 50) + 1, "learning_rate": 1e-3, "tokens_per_second": 9000}
        for i in range(n)
    ]
    return train + [{"step": i, "seconds": 2.0 * i, "valid_loss": 5 * math.exp(-i / 50) + 1.2} for i in range(0, n, 10)]


def test_rows_of_one_step_are_one_row():
    found = merged([{"step": 2, "seconds": 60, "train_loss": 3.0}, {"step": 1, "train_loss": 4.0}, {"step": 2, "valid_loss": 3.5}])
    assert [row["step"] for row in found] == [1, 2]
    assert found[1] == {"step": 2, "seconds": 60, "minutes": 1, "train_loss": 3, "valid_loss": 3.5}


def test_a_resumed_run_counts_on_and_its_later_rows_win():
    run = [{"step": s, "seconds": 60.0 * s, "train_loss": 9.0} for s in (1, 2, 3)]
    resumed = [{"step": s, "seconds": 60.0 * (s - 2), "train_loss": 1.0} for s in (3, 4)]  # from the checkpoint of step 2, with a new clock
    assert [(r["step"], r["minutes"], r["train_loss"]) for r in merged(run + resumed)] == [(1, 1, 9), (2, 2, 9), (3, 4, 1), (4, 5, 1)]


def test_rows_without_a_step_and_values_that_are_no_numbers_are_left_out():
    assert merged([{"seconds": 1}, {"step": NAN}, {"step": 1, "note": "x", "done": True, "valid_loss": None}]) == [{"step": 1}]


def test_smoothing_keeps_a_constant_and_leaves_gaps():
    assert smoothed([2.0] * 9, 4) == pytest.approx([2.0] * 9)
    assert smoothed([3.0, 5.0, 7.0], 1) == [3.0, 5.0, 7.0]
    out = smoothed([1.0, NAN, float("inf"), 3.0], 2)
    assert out[0] == 1 and math.isnan(out[1]) and math.isnan(out[2]) and out[3] == pytest.approx((1 * 0.25 + 3 * 0.5) / 0.75)
    noise = np.random.default_rng(0).normal(size=4000)
    assert np.std(smoothed(list(noise), 50)[500:]) < 0.2


@pytest.mark.parametrize(
    "metrics",
    [
        [], rows(1), rows(2), rows(400), [{"step": 1}], [{"step": 1, "train_loss": NAN, "seconds": 1}], [{"step": 1, "train_loss": 2.0}],
        [*rows(30), {"step": 31, "seconds": 70, "train_loss": NAN, "valid_loss": float("inf"), "learning_rate": NAN}],
        [{"step": i, "seconds": float(i), "valid_loss": 1.0} for i in range(3)],
        [{"step": i, "seconds": float(i), "train_loss": -1.0 * i, "learning_rate": 0, "tokens_per_second": 0} for i in range(3)],
    ],
)  # fmt: skip
def test_any_rows_give_a_picture(tmp_path, metrics):
    pytest.importorskip("matplotlib")
    assert draw_curves(metrics, tmp_path / "curves.png") is True
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_training_and_validation_are_drawn_in_their_colours(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    def share(metrics: list[dict], colour: str) -> int:
        draw_curves(metrics, tmp_path / "curves.png")
        image = np.round(255 * imread(tmp_path / "curves.png")[..., :3])
        return int((image == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(-1).sum())

    assert share(rows(400), "#2f7fc8") > 500 and share(rows(400), "#b8520a") > 500
    assert share([r for r in rows(400) if "valid_loss" not in r], "#b8520a") == 0


def test_without_matplotlib_there_is_no_picture_and_no_failure(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw_curves(rows(3), tmp_path / "curves.png") is False
    assert not list(tmp_path.iterdir())
