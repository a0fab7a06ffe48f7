"""How good found boxes are: COCO's average precision, computed by COCO's own evaluator.

Its figures are the ones that papers give, and it does not change. `faster-coco-eval` gives the same numbers (tests/tasks).
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.errors import InputError

AREAS = ("all", "small", "medium", "large")  # small: below 32 x 32 pixels, large: above 96 x 96
AT_50, AT_75 = 0, 5  # in the evaluator's thresholds, 0.50 to 0.95 in steps of 0.05


@dataclass(frozen=True)
class Precision:
    """In percent. What is undefined, since there is no such box, is left out.

    `figures`: ap (the mean over IoU thresholds 0.50 to 0.95, and over classes), ap50, ap75, ap_small, ap_medium, ap_large, and `ar`, the
    share of boxes found among 100 a picture. `by_class`: of each class by name {"boxes", "ap", "ap50"}.
    """

    figures: dict[str, float]
    by_class: dict[str, dict[str, float]]


def average_precision(
    found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    right: Sequence[tuple[np.ndarray, np.ndarray]],
    names: Sequence[str],
    crowds: Sequence[tuple[np.ndarray, np.ndarray]] = (),
) -> Precision:
    """Of each picture the found boxes ([n, 4], scores [n], labels [n]) and the right ones ([n, 4], labels [n]), in the same order.

    `crowds`, if given, are boxes ([n, 4], labels [n]) of each picture in which what is found beside the right ones does not count.
    Boxes are x0 y0 x1 y1 in pixels; labels are places in `names`. A box's size is that of the box, where COCO's own is its outline's.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise InputError("to score boxes the package pycocotools is needed: pip install 'plait[vision]'") from None
    if len(found) != len(right) or (crowds and len(crowds) != len(right)):
        given = f"{len(found)} answers{f' and {len(crowds)} lists of crowds' if crowds else ''}"
        raise ValueError(f"{given} for {len(right)} pictures: there must be one for each")
    faults = [
        f"picture {i}: label {label} of a {kind} box"
        for kind, column in (("found", [labels for _, _, labels in found]), ("right", [labels for _, labels in right]))
        for i, labels in enumerate(column)
        for label in np.unique(labels)
        if not 0 <= label < len(names)
    ]
    if faults:
        raise InputError(f"labels beyond the {len(names)} classes, 0 to {len(names) - 1}", faults)

    def coco(annotations: list[dict[str, Any]]) -> Any:
        made: Any = COCO()
        made.dataset = {
            "images": [{"id": i} for i in range(len(right))],
            "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
            "annotations": annotations,
        }
        made.createIndex()
        return made

    with redirect_stdout(io.StringIO()):  # it prints as it goes
        scored = coco(annotated([(boxes, labels, scores) for boxes, scores, labels in found]))
        truth = annotated([(boxes, labels, None) for boxes, labels in right])
        truth += annotated([(boxes, labels, None) for boxes, labels in crowds], len(truth), crowd=1)
        evaluation = COCOeval(coco(truth), scored, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # [thresholds, recalls, classes, areas], -1 where undefined
    recall = evaluation.eval["recall"][..., 0, -1]  # [thresholds, classes]
    kinds = {"ap": precision[..., 0], "ap50": precision[AT_50, ..., 0], "ap75": precision[AT_75, ..., 0]}
    kinds |= {f"ap_{area}": precision[..., a] for a, area in enumerate(AREAS) if a}
    counts = np.bincount(np.concatenate([labels for _, labels in right] or [[]]).astype(np.int64), minlength=len(names))
    by_class = {
        name: {"boxes": int(counts[k])} | defined({"ap": precision[:, :, k, 0], "ap50": precision[AT_50, :, k, 0]})
        for k, name in enumerate(names)
    }
    return Precision(defined(kinds | {"ar": recall}), by_class)


def annotated(pictures: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray | None]], after: int = 0, crowd: int = 0) -> list[dict[str, Any]]:
    """(boxes, labels, scores) of each picture as COCO writes them, numbered behind `after`, which is at least 0: the evaluator takes a
    number of 0 for "no match"."""
    made = []
    for image, (boxes, labels, scores) in enumerate(pictures):
        for i, (x0, y0, x1, y1) in enumerate(np.asarray(boxes, np.float64).reshape(-1, 4).tolist()):
            one = {"id": after + len(made) + 1, "image_id": image, "category_id": int(labels[i]), "iscrowd": crowd}
            one |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            made.append(one if scores is None else one | {"score": float(scores[i])})
    return made


def defined(kinds: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: 100 * float(values[values > -1].mean()) for name, values in kinds.items() if (values > -1).any()}
