"""Boxes that overlap, and the assignment of answers to boxes: against formulas, every permutation, and the reference implementation."""

from itertools import permutations

import numpy as np
import pytest
import torch

from plait.errors import InputError
from plait.tasks.boxes import area, centred, corners, generalised_iou, iou
from plait.tasks.matching import Targets, Weights, costs, matched

pytest.importorskip("scipy", reason="scipy is not installed (pip install 'plait[vision]')")


def drawn(*shape, seed=0):
    """Boxes cx cy w h in 0..1, float64."""
    draw = torch.Generator().manual_seed(seed)
    low, high = torch.rand(2, *shape, 2, generator=draw, dtype=torch.float64).sort(0).values
    return centred(torch.cat([low, high], -1))


def test_both_ways_to_write_a_box():
    torch.testing.assert_close(corners(torch.tensor([10.0, 20.0, 4.0, 6.0])), torch.tensor([8.0, 17.0, 12.0, 23.0]))
    torch.testing.assert_close(centred(corners(drawn(7))), drawn(7))


def test_overlaps_are_counted_in_pixels():
    """Boxes on whole numbers cover whole pixels, which a picture of bools counts; the box around both is that of all pixels."""
    draw = np.random.default_rng(0)
    low = draw.integers(0, 12, (60, 2))
    boxes = np.concatenate([low, low + draw.integers(1, 9, (60, 2))], 1)
    seen = np.zeros((60, 20, 20), bool)
    for picture, (x0, y0, x1, y1) in zip(seen, boxes):
        picture[y0:y1, x0:x1] = True
    a, b = seen[:, None], seen[None]
    shared, union = (a & b).sum((2, 3)), (a | b).sum((2, 3))
    rows, columns = (np.where((a | b).any(axis), 1, 0) for axis in (3, 2))
    around = np.prod([20 - line.argmax(-1) - line[..., ::-1].argmax(-1) for line in (rows, columns)], 0)
    given = torch.from_numpy(boxes).double()
    torch.testing.assert_close(area(given), torch.from_numpy(seen.sum((1, 2))).double())
    torch.testing.assert_close(iou(given[:, None], given), torch.from_numpy(shared / union))
    torch.testing.assert_close(generalised_iou(given[:, None], given), torch.from_numpy(shared / union - (around - union) / around))


def test_boxes_without_area_overlap_in_nothing_and_have_gradients():
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0], [0.5, 0.2, 0.5, 0.9]])
    assert iou(point, boxes).tolist() == [0, 0, 0]
    generalised_iou(point, boxes).sum().backward()
    assert point.grad is not None and bool(point.grad.isfinite().all())


# ---- matching ----


def test_the_assignment_costs_least_of_all():
    """Against every way to give 3 boxes different answers out of 5, in 40 problems."""
    cost = torch.randn(4, 10, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = [3, 0, 1, 2, 3, 3, 2, 1, 0, 3]
    found = matched(cost, counts)
    assert found.shape == (4, 4 * sum(counts))
    for layer in range(4):
        for row, n in enumerate(counts):
            answers, boxes = found[2:, (found[0] == layer) & (found[1] == row)]
            assert sorted(boxes.tolist()) == list(range(n)) and len(set(answers.tolist())) == n
            square = cost[layer, row]
            least = min(float(square[list(some), range(n)].sum()) for some in permutations(range(5), n))
            assert float(square[answers, boxes].sum()) == pytest.approx(least, abs=1e-12)


def targets_of(counts, n_classes=4, seed=5):
    boxes = [drawn(n, seed=seed + i) for i, n in enumerate(counts)]
    labels = [torch.randint(n_classes, (n,), generator=torch.Generator().manual_seed(i)) for i, n in enumerate(counts)]
    return boxes, labels


@pytest.mark.parametrize("counts", [(3, 0, 7, 1), (0, 0), (10, 10)], ids=str)
def test_the_matching_is_the_references(counts):
    reference = pytest.importorskip("transformers.loss.loss_for_object_detection", reason="transformers is not installed")
    boxes, labels = targets_of(counts)
    scores = torch.randn(len(counts), 10, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    places = drawn(len(counts), 10, seed=99)
    matcher = reference.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    theirs = matcher({"logits": scores, "pred_boxes": places}, [{"class_labels": c, "boxes": b} for b, c in zip(boxes, labels)])
    targets = Targets.of(boxes, labels, 10, 4, like=scores)
    found = matched(costs(scores, places, targets, Weights())[None], targets.counts)
    for row, (answers, wanted) in enumerate(theirs):
        mine = found[2:, found[1] == row]
        assert dict(zip(*mine.tolist())) == dict(zip(answers.tolist(), wanted.tolist()))


def test_numbers_that_are_none_are_an_error_that_names_the_picture():
    cost = torch.zeros(1, 3, 4, 2)
    cost[0, 1, 2, 1] = float("nan")
    cost[0, 2, 2, 1] = float("inf")  # behind the one box that the picture has
    with pytest.raises(InputError, match=r"pictures 1 of the batch"):
        matched(cost, [2, 2, 1])


def test_all_that_cannot_be_learned_is_named_at_once():
    boxes, labels = targets_of((2, 5, 1, 1))
    labels[0][1], labels[3] = 4, labels[3][:0]
    boxes[2][0, 2] = -0.1
    with pytest.raises(InputError) as caught:
        Targets.of(boxes, labels, 4, 4, like=boxes[0])
    assert [fault.split(" of ")[0] for fault in caught.value.faults] == ["picture 0", "picture 1", "picture 2", "picture 3"]
    assert "5 boxes" in str(caught.value) and "4 queries" in str(caught.value) and "0 to 3" in str(caught.value)
