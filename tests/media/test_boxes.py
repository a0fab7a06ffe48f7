"""Boxes as numbers, against pycocotools and formulas, and boxes drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.errors import InputError
from plait.media.boxes import COLOURS, Move, absolute, area, clipped, drawn, followed, iou, moved, normalised

pytest.importorskip("PIL")
NONE = np.zeros((0, 4), np.float32)


def some(rng: np.random.Generator, n: int, height: int, width: int, dtype: type = np.float32) -> np.ndarray:
    """Boxes [n, 4] with corners anywhere inside."""
    points = np.sort(rng.uniform(0, 1, (n, 2, 2)), axis=1) * [width, height]
    return points.reshape(n, 4).astype(dtype)


def test_overlap_is_that_of_pycocotools():
    mask = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    one, other = some(rng, 30, 50, 80, np.float64), some(rng, 40, 50, 80, np.float64)
    one[:3] = other[:3]
    wide = [np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1) for boxes in (one, other)]  # theirs: x y width height
    theirs = mask.iou(*wide, [0] * len(other))
    assert 0.2 < (theirs > 0).mean() < 0.9
    np.testing.assert_allclose(iou(one, other), theirs, rtol=1e-9, atol=1e-12)
    point = np.array([[3.0, 3, 3, 3]])
    assert iou(NONE, other).shape == (0, 40) and iou(one, NONE).shape == (30, 0) and iou(point, point) == 0


def test_areas_count_crossed_sides_as_nothing():
    assert area(np.array([[1, 2, 4, 7], [4, 7, 1, 2], [4, 2, 1, 7], [3, 3, 3, 9]], np.float32)).tolist() == [15, 0, 0, 0]
    assert area(NONE).shape == (0,)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(1, 5000), width=st.integers(1, 5000), n=st.integers(0, 5))
def test_the_detectors_form_and_back(seed, height, width, n):
    boxes = some(np.random.default_rng(seed), n, height, width)
    form = normalised(boxes, height, width)
    assert form.dtype == np.float32 and form.shape == (n, 4) and (form >= 0).all() and (form <= 1).all()
    centre = (boxes[:, :2].astype(np.float64) + boxes[:, 2:]) / 2
    np.testing.assert_allclose(form[:, :2], centre / [width, height], rtol=1e-6)
    np.testing.assert_allclose(form[:, 2] * width * form[:, 3] * height, area(boxes.astype(np.float64)), rtol=1e-4, atol=1e-4)
    back = absolute(form, height, width)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, boxes, atol=3e-7 * max(height, width))


def test_a_rotated_box_is_the_box_around_its_corners():
    quarter = np.array([[0, -1, 10], [1, 0, 0.0]])  # (x, y) -> (10 - y, x)
    assert moved(np.array([[1, 2, 4, 7.0]]), quarter).tolist() == [[3, 1, 8, 4]]
    turn = np.deg2rad(45)
    matrix = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0]])
    np.testing.assert_allclose(moved(np.array([[-1, -1, 1, 1.0]]), matrix), np.array([[-1, -1, 1, 1]]) * 2**0.5)
    assert moved(NONE, matrix).shape == (0, 4)


def test_what_left_the_picture_does_not_come_back():
    """A crop and then a shift back: each box is cut at the first border, and lost area adds up over both."""
    crop, back = Move(np.array([[1.0, 0, -10], [0, 1, 0]]), 20, 20), Move(np.array([[1.0, 0, 10], [0, 1, 0]]), 20, 20)
    boxes = np.array([[0, 0, 20, 10], [0, 0, 11, 10], [0, 0, 10, 10], [12, 3, 15, 9], [5, 5, 5, 9], [29, 0, 40, 10]], np.float32)
    found, kept = followed(boxes, [crop, back])
    assert kept.tolist() == [0, 3] and found.dtype == np.float32  # of the second 1 of 11 was left, of the last one all left with the shift
    assert found.tolist() == [[10, 0, 20, 10], [12, 3, 15, 9]]
    assert followed(boxes, [crop, back], least=0.05)[1].tolist() == [0, 1, 3]
    assert followed(boxes, [crop, back], least=0)[1].tolist() == [0, 1, 3]  # those of no area are never kept
    # 0.3 of what stood there is left by the first, and 0.3 of that by the second: 0.09 in all.
    thrice = [Move(np.array([[1.0, 0, -7], [0, 1, 0]]), 10, 10), Move(np.array([[1.0, 0, -2.1], [0, 1, 0]]), 10, 10)]
    assert (
        followed(np.array([[0, 0, 10, 10.0]]), thrice[:1])[1].tolist() == [0]
        and followed(np.array([[0, 0, 10, 10.0]]), thrice)[1].size == 0
    )
    found, kept = followed(NONE, [crop])
    assert found.shape == (0, 4) and kept.shape == (0,)


def test_clipping_keeps_the_kind_of_number():
    boxes = np.array([[-3, -4, 30, 5], [40, 50, 60, 70]], np.float32)
    assert clipped(boxes, 10, 20).tolist() == [[0, 0, 20, 5], [20, 10, 20, 10]] and clipped(boxes, 10, 20).dtype == np.float32


# ---- drawing ----


def test_a_box_is_drawn_where_it_is_and_nowhere_else():
    picture = np.full((400, 600, 3), 90, np.uint8)
    before = picture.copy()
    done = drawn(picture, np.array([[100, 50, 300, 250.0]]))
    assert done.shape == picture.shape and done.flags.writeable and (picture == before).all()
    rows, columns = np.nonzero((done == COLOURS[0]).all(axis=2))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (100, 50, 299, 249)
    changed = (done != picture).any(axis=2)
    assert not changed[60:240, 110:290].any() and not changed[:49].any() and not changed[251:].any()  # a dark rim of a pixel, no more


def test_names_and_scores_are_written_and_classes_keep_their_colours():
    picture, boxes = np.full((400, 600, 3), 200, np.uint8), np.array([[50, 100, 200, 300], [300, 100, 500, 300.0]])
    bare, named = drawn(picture, boxes), drawn(picture, boxes, ["cat", "dog"])
    scored = drawn(picture, boxes, ["cat", "dog"], [0.5, 0.75])
    assert (bare != named).any() and (named != scored).any() and (drawn(picture, boxes, scores=[0.5, 0.75]) != bare).any()

    def colours(*args, **how) -> set[int]:
        done = drawn(*args, **how)
        return {i for i, colour in enumerate(COLOURS) if (done == colour).all(axis=2).sum() > 200}

    assert colours(picture, boxes, ["cat", "dog"]) == {0, 1} and colours(picture, boxes, ["dog", "dog"]) == {0}
    assert colours(picture, boxes, ["dog", "dog"], classes=["bird", "cat", "dog"]) == {2}


def test_names_do_not_cover_each_other():
    """Of boxes that begin at one place, each name still has ground of its own colour."""
    picture, boxes = np.full((400, 600, 3), 200, np.uint8), np.array([[100, 100, 300, 300], [100, 100, 250, 280], [100, 100, 280, 250.0]])
    classes = ["one", "two", "three"]
    alone = [(drawn(picture, boxes[i : i + 1], [name], classes=classes) == COLOURS[i]).all(axis=2).sum() for i, name in enumerate(classes)]
    done = drawn(picture, boxes, classes, classes=classes)
    for i in range(3):
        bare = (drawn(picture, boxes[i : i + 1], [""], classes=classes) == COLOURS[0]).all(axis=2).sum()
        assert (done == COLOURS[i]).all(axis=2).sum() > (alone[i] - bare) / 2  # more than its lines alone could be


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (28, 28), (640, 480)])
def test_any_picture_and_any_box_can_be_drawn(size):
    height, width = size
    boxes = np.array([[0, 0, width, height], [-5, -5, 9999, 9999], [width, height, width, height], [3, 3, 1, 1], [np.nan, 0, np.inf, 1]])
    names = ["a", "b" * 500, "two\nlines", "", "Würfel ε 猫"]
    done = drawn(np.zeros((height, width, 3), np.uint8), boxes, names, np.linspace(0, 1, 5))
    scale = max(1, -(-320 // max(size)))
    assert done.shape == (height * scale, width * scale, 3) and done.dtype == np.uint8 and done.any()
    plain = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    assert np.array_equal(drawn(plain, NONE, [], [])[::scale, ::scale], plain)


def test_names_that_do_not_fit_the_boxes_are_refused():
    with pytest.raises(InputError, match="2 boxes, but 1 names and 3 scores"):
        drawn(np.zeros((9, 9, 3), np.uint8), np.zeros((2, 4)), ["a"], [0.1, 0.2, 0.3])
