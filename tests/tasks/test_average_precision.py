"""Average precision: cases worked by hand, and the numbers of another evaluator."""

import numpy as np
import pytest

from plait.errors import InputError
from plait.tasks.average_precision import average_precision

pytest.importorskip("pycocotools", reason="pycocotools is not installed (pip install 'plait[vision]')")


def boxes(*rows):
    return np.array(rows, np.float32).reshape(-1, 4)


def test_a_case_worked_by_hand():
    """One class, two boxes, three answers: one exact, then one beside everything, then one that covers 0.62 of its box.

    Precision is read at the 101 recalls 0, 0.01 ... 1. Up to IoU 0.60 (three of the ten thresholds) all boxes are found: precision is
    1 at the 51 recalls to 0.5, and 2/3 at the 50 beyond. At the other seven, half of the boxes are found: 51 recalls of 1, then 0.
    """
    found = [
        (boxes([0, 0, 100, 100], [300, 300, 400, 400]), np.array([0.9, 0.8]), np.array([0, 0])),
        (boxes([50, 50, 150, 112]), np.array([0.7]), np.array([0])),
    ]
    right = [(boxes([0, 0, 100, 100]), np.array([0])), (boxes([50, 50, 150, 150]), np.array([0]))]
    loose, tight = (51 + 50 * 2 / 3) / 101, 51 / 101
    result = average_precision(found, right, ["cell"])
    wanted = {"ap": (3 * loose + 7 * tight) / 10, "ap50": loose, "ap75": tight, "ap_large": (3 * loose + 7 * tight) / 10, "ar": 0.65}
    assert result.figures == pytest.approx({name: 100 * value for name, value in wanted.items()}, abs=1e-9)
    assert result.by_class == {"cell": pytest.approx({"boxes": 2, "ap": 100 * wanted["ap"], "ap50": 100 * loose}, abs=1e-9)}


def test_the_first_box_counts_as_any_other():
    """The evaluator takes a box with the number 0 for none."""
    one = boxes([0, 0, 10, 10])
    result = average_precision([(one, np.ones(1), np.zeros(1, int))], [(one, np.zeros(1, int))], ["a", "b"])
    assert result.figures == pytest.approx({"ap": 100, "ap50": 100, "ap75": 100, "ap_small": 100, "ar": 100})
    assert result.by_class == {"a": pytest.approx({"boxes": 1, "ap": 100, "ap50": 100}), "b": {"boxes": 0}}


def test_nothing_found_is_zero_and_no_box_undefined(capsys):
    none = (np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
    one = boxes([0, 0, 10, 10])
    assert average_precision([none], [(one, np.zeros(1, int))], ["a"]).figures["ap"] == 0
    assert average_precision([none], [(none[0], none[2])], ["a"]).figures == {}
    assert average_precision([(one, np.ones(1), np.zeros(1, int))], [(none[0], none[2])], ["a"]).figures == {}
    assert average_precision([], [], ["a"]).figures == {}
    assert capsys.readouterr().out == ""


def test_labels_of_no_class_are_named():
    one = boxes([0, 0, 10, 10])
    with pytest.raises(InputError) as caught:
        average_precision([(one, np.ones(1), np.array([2]))], [(one, np.array([3]))], ["a", "b"])
    assert caught.value.faults == ["picture 0: label 2 of a found box", "picture 0: label 3 of a right box"]


def drawn(pictures=40, classes=4, seed=0):
    """Boxes of all sizes, and answers that are near to them, doubled, missing, made up, or of another class."""
    draw = np.random.default_rng(seed)
    found, right = [], []
    for _ in range(pictures):
        n = int(draw.integers(0, 9))
        low, side = draw.uniform(0, 400, (n, 2)), np.exp(draw.uniform(1.5, 5.5, (n, 2)))
        truth, labels = np.concatenate([low, low + side], 1), draw.integers(0, classes - 1, n)  # the last class has no box
        which = draw.integers(0, n, draw.integers(0, 2 * n)) if n else np.empty(0, int)
        near = truth[which] + draw.normal(0, 0.08, (len(which), 4)) * np.tile(side[which], 2)
        made_up = np.concatenate([a := draw.uniform(0, 400, (3, 2)), a + 40], 1)
        guess = np.where(draw.random(len(which)) < 0.85, labels[which], draw.integers(0, classes, len(which)))
        answers = np.concatenate([near, made_up]).astype(np.float32)
        found.append((answers, draw.random(len(answers)).astype(np.float32), np.concatenate([guess, draw.integers(0, classes, 3)])))
        right.append((truth.astype(np.float32), labels))
    return found, right


@pytest.mark.parametrize("crowded", [False, True])
def test_the_figures_are_another_evaluators(crowded):
    other = pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    found, right = drawn()
    # Over most of every fourth picture a crowd of a class that it may have.
    none, over = (np.zeros((0, 4), np.float32), np.zeros(0, int)), np.array([[50, 50, 400, 400]], np.float32)
    crowds = [none if i % 4 else (over, np.array([i % 3])) for i in range(40)] if crowded else []
    as_coco = [
        {"image_id": i, "category_id": int(c) + 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": crowd}
        for crowd, marked in enumerate((right, crowds))
        for i, (some, labels) in enumerate(marked)
        for (x0, y0, x1, y1), c in zip(some.astype(np.float64).tolist(), labels)
    ]
    truth = {
        "images": [{"id": i, "width": 999, "height": 999} for i in range(len(right))],
        "categories": [{"id": k + 1, "name": str(k)} for k in range(4)],
        "annotations": [one | {"id": i + 1} for i, one in enumerate(as_coco)],
    }
    results = [
        {"image_id": i, "category_id": int(c) + 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(score)}
        for i, (some, scores, labels) in enumerate(found)
        for (x0, y0, x1, y1), score, c in zip(some.astype(np.float64).tolist(), scores, labels)
    ]
    reference = other.COCO(truth)
    evaluation = other.COCOeval_faster(reference, reference.loadRes(results), "bbox")
    evaluation.run()
    theirs = evaluation.stats_as_dict
    names = {"ap": "AP_all", "ap50": "AP_50", "ap75": "AP_75", "ap_small": "AP_small", "ap_medium": "AP_medium", "ap_large": "AP_large"}
    mine = average_precision(found, right, list("0123"), crowds)
    assert (mine == average_precision(found, right, list("0123"))) == (not crowded)  # they make a difference
    assert mine.figures == pytest.approx({name: 100 * theirs[key] for name, key in (names | {"ar": "AR_third"}).items()}, rel=1e-9)
    assert 5 < mine.figures["ap"] < 60 and mine.by_class["3"] == {"boxes": 0}
    assert np.mean([mine.by_class[k]["ap"] for k in "012"]) == pytest.approx(mine.figures["ap"])
