"""What can be wrong with batches of pictures: boxes and their classes, and padding that one side has and the other has not."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from plait.train.data_symptoms import numbered, share
from plait.train.patient import Finding, Patient

BEYOND = 0.01  # of the picture's side: boxes that reach out by less are rounded, not wrong


def boxes(p: Patient) -> Iterator[Finding]:
    """Boxes lie on their pictures, have an area, and there are any."""
    for side, looked in (("training", p.train), ("validation", p.held_out)):
        rows = [one.boxes for one in looked.pictures if one.boxes is not None]
        if not rows:
            continue
        all_boxes, name = np.concatenate(rows), "boxes"
        bare = sum(not len(one) for one in rows)
        if not len(all_boxes):
            yield Finding("fault", name, f"none on {len(rows):,} {side} pictures", "look at how boxes are read, and at the augmentation")
            continue
        middle, half = all_boxes[:, :2], all_boxes[:, 2:] / 2
        outside = ((middle - half < -BEYOND) | (middle + half > 1 + BEYOND)).any(1)
        flat = (all_boxes[:, 2:] <= 0).any(1)
        whole = (np.abs(all_boxes - [0.5, 0.5, 1, 1]) < BEYOND).all(1)
        for odd, what, advice in (
            (flat, "have no area", "are corners taken for widths, or x for y?"),
            (outside, "reach out of their picture", "they must be cx cy w h in shares of the picture: are they pixels, or corners?"),
        ):
            if np.any(odd):
                where = ", ".join(f"{x:.3g}" for x in all_boxes[odd][0])
                yield Finding(
                    "fault", name, f"{share(int(np.sum(odd)), len(all_boxes))} {side} boxes {what}, such as {where} (cx cy w h)", advice
                )
        if np.mean(whole) > 0.5:
            seen = f"{share(int(np.sum(whole)), len(all_boxes))} {side} boxes are the whole picture"
            yield Finding("warning", name, seen, "are they read in pixels and cut at 1?")
        if not (flat.any() or outside.any()):
            each = f"{len(all_boxes):,} on {len(rows):,} {side} pictures"
            most = max(map(len, rows))
            yield Finding(
                "ok", name, f"{each}, {most} at most, {bare:,} pictures without; median {np.median(2 * half[:, 0]):.0%} of the width"
            )


def classes_of_boxes(p: Patient) -> Iterator[Finding]:
    """Classes of boxes are numbered from 0 to two less than the head has outputs, the last of which is "no object"."""
    train, valid = (
        Counter(int(label) for one in looked.pictures if one.labels is not None for label in one.labels) for looked in (p.train, p.held_out)
    )
    if p.outputs is not None and train:
        yield from numbered(train, valid, p.outputs - 1)


def padding_of_pictures(p: Patient) -> Iterator[Finding]:
    """What is around pictures is declared to be padding, on both sides, and has the same value."""
    sides = {"training": p.train.pictures, "validation": p.held_out.pictures}
    if not all(sides.values()):
        return
    name, well = "padding of pictures", True
    for side, rows in sides.items():
        other = next(known for known in sides if known != side)
        hidden, declared = sum(one.hidden for one in rows), sum(one.fill is not None for one in rows)
        hidden_there, declared_there = sum(one.hidden for one in sides[other]), sum(one.fill is not None for one in sides[other])
        if hidden > 0.5 * len(rows) and not declared and declared_there:
            well = False
            seen = f"{share(hidden, len(rows))} {side} pictures end in a stripe of one value that is not declared, those of {other} are"
            yield Finding("fault", name, seen, "give the mask of real pixels on both sides, or pad on neither")
        elif hidden > 0.5 * len(rows) and not hidden_there and not declared_there:
            well = False
            seen = f"{share(hidden, len(rows))} {side} pictures end in a stripe of one value, none of {other}"
            yield Finding("warning", name, seen, "are pictures padded on one side alone? Prepare both in the same way")
    fills = {side: {one.fill for one in rows if one.fill is not None} for side, rows in sides.items()}
    if all(fills.values()) and fills["training"] != fills["validation"]:
        well = False
        told = " and ".join(f"{sorted(values)[0]:.3g} in {side}" for side, values in fills.items())
        yield Finding("fault", name, f"is {told}", "pad after values are normalised, with the same number on both sides")
    if well:
        told = " and ".join(f"{np.mean([one.padded for one in rows]):.0%} in {side}" for side, rows in sides.items())
        yield Finding("ok", name, f"{told}, all of it declared")


CHECKS = (boxes, classes_of_boxes, padding_of_pictures)
