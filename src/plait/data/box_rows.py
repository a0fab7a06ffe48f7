"""Pictures with boxes, of COCO's JSON, Pascal VOC's XML, JSON lines, folders and zip archives of them; nothing is decoded here."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.folders import Source, Tree, part_of, suffix_of
from plait.data.lines import read_all
from plait.data.picture_rows import BoxRow, Ledger, Part, size_of
from plait.data.picture_tables import ALIASES, PICTURE_KINDS, cell, merge
from plait.data.report import Report
from plait.data.tables import JSON, read_rows
from plait.errors import InputError

BORDER = 1.0  # pixels by which a box may reach over the border: rounding, and counting from 0 or 1
BOX_ALIASES = {"picture": ALIASES["picture"], "boxes": ("bboxes", "box", "bbox"), "labels": ("label", "classes", "class", "categories")}

Marked = tuple[str, Any, Any]  # the place of a box, its four numbers, the name of its class


class Boxes:
    """What is read, while it is read: pictures and boxes each with their faults. A faulty box is left out, its picture stays."""

    def __init__(self) -> None:
        self.report = Report("read")
        self.pictures, self.boxes = Ledger(), Ledger("box: ")
        self.rows: list[BoxRow] = []
        self.report.unit = "pictures"

    def add(
        self,
        source: Source,
        found: Sequence[Marked],
        where: str,
        stated: tuple[Any, Any] | None = None,
        crowds: Sequence[Marked] = (),
    ) -> None:
        """A picture with what is marked on it; `stated` is the (height, width) its list gives."""
        self.pictures.n += 1
        try:
            size = size_of(source, where)
        except InputError as error:
            return self.pictures.bad(where, "cannot be used", error.message.removeprefix(f"{where}: "))
        if stated is not None and all(stated) and stated != size:
            wrong = f"{stated[1]} x {stated[0]} where it is listed, {size[1]} x {size[0]} in the file"
            return self.pictures.bad(
                where, "another size", f"{wrong}; is it another picture, or one that was turned after it was labelled?"
            )
        kept = self.inside(found, size)
        boxes = np.stack([box for _, box in kept]) if kept else np.zeros((0, 4), np.float32)
        if not kept:
            self.report.note("picture without boxes", where)
        self.rows.append(BoxRow(source, boxes, tuple(name for name, _ in kept), where, size, tuple(self.inside(crowds, size))))

    def inside(self, found: Sequence[Marked], size: tuple[int, int]) -> list[tuple[str, np.ndarray]]:
        """Names and boxes of those that can be used."""
        self.boxes.n += len(found)
        checked = [(str(label), self.checked(place, numbers, size)) for place, numbers, label in found]
        return [(label, box) for label, box in checked if box is not None]

    def checked(self, place: str, numbers: Any, size: tuple[int, int]) -> np.ndarray | None:
        """[4] float32 within the picture, or None where that cannot be."""
        try:
            box = np.asarray(numbers, np.float64)
        except (ValueError, TypeError, OverflowError):
            box = np.empty(0)
        if box.shape != (4,) or not np.isfinite(box).all():
            return self.boxes.bad(place, "is not four numbers", repr(numbers)[:60])
        said = f"{', '.join(f'{number:g}' for number in box)} (x0, y0, x1, y1)"
        if box[2] <= box[0] or box[3] <= box[1]:
            return self.boxes.bad(place, "has no area", said)
        inside = np.clip(box, 0, [size[1], size[0]] * 2)
        if np.abs(inside - box).max() > BORDER or inside[2] <= inside[0] or inside[3] <= inside[1]:
            return self.boxes.bad(place, "reaches out of the picture", f"{said} of {size[1]} x {size[0]} pixels")
        if (inside != box).any():
            self.report.note("box cut at the border", place)
        return inside.astype(np.float32)


def read_boxes(
    paths: Sequence[str | Path], part: Part | None = None, columns: Mapping[str, str] | None = None
) -> tuple[list[BoxRow], Report]:
    """Pictures with boxes of COCO's JSON, Pascal VOC's XML, JSON lines {"picture", "boxes", "labels"}, folders and zip archives of those.

    In a folder or archive `part` takes what lies in train/, valid/ or test/, is listed in VOC's ImageSets, or in a list of such a name
    (instances_val.json); what is in no part belongs to all. A faulty picture or box (missing, no area, out of the picture by more than a
    pixel, unknown class ...) is dropped and counted while they are fewer than 1 %, else InputError lists all. COCO's crowds are no
    objects: they are kept apart, for scoring.
    """
    if not paths:
        raise InputError("no pictures were given: give COCO's JSON, a folder of Pascal VOC's XML, JSON lines, or a zip archive of these")
    into, faults = Boxes(), list[str]()
    for path in map(Path, paths):
        try:
            _read(path, part, columns, into)
        except InputError as error:
            faults += [error.message, *error.faults]
    report = into.report
    if faults := faults + into.pictures.settle(report) + into.boxes.settle(report):
        raise InputError("the pictures cannot be used", faults)
    if not into.rows:
        raise InputError(f"no pictures in {', '.join(map(str, paths))}{f', part {part}' if part else ''}", str(report).splitlines()[1:])
    if not any(row.labels for row in into.rows):
        raise InputError(f"no boxes in {', '.join(map(str, paths))}: {len(into.rows):,} pictures, and nothing is marked on any of them")
    report.kept = len(into.rows)
    return into.rows, report


def _read(path: Path, part: Part | None, columns: Mapping[str, str] | None, into: Boxes) -> None:
    from plait.data.voc import read_voc

    if not path.is_dir() and suffix_of(path) != ".zip":
        tree, names = Tree(path.parent), [path.name]
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        part = None
    else:
        tree = Tree(path)
        names = tree.names
    lists = [name for name in names if suffix_of(name) in JSON]
    notes = [name for name in names if suffix_of(name) == ".xml"]
    if not lists and not notes:
        raise InputError(f"{path}: no boxes in it; expected COCO's .json, Pascal VOC's .xml files or .jsonl beside the pictures")
    for name in lists:
        if part is None or part_of(name) in (None, part):
            read_list(tree, name, columns, into)
    if notes:
        read_voc(tree, notes, part, into)


def read_list(tree: Tree, name: str, columns: Mapping[str, str] | None, into: Boxes) -> None:
    """A JSON file: COCO's object, else records of a picture each."""
    from plait.data.coco import read_coco

    where = tree.where(name)
    with tree.on_disk(name) as path:
        if name.lower().endswith(".json"):
            try:
                whole = json.loads(read_all(path).decode("utf-8-sig"))
            except (ValueError, RecursionError):
                whole = None  # perhaps lines; the reader of those says what is wrong
            if isinstance(whole, dict) and "images" in whole:
                return read_coco(tree, name, whole, into)
        kinds = {"picture": PICTURE_KINDS, "boxes": (list,), "labels": (list,)}
        rows, dropped = read_rows([path], columns, ("picture", "boxes", "labels"), (), BOX_ALIASES, kinds)
        there = str(path)
    merge(dropped, into.report)
    for row in rows:
        place, source = row.where.replace(there, where, 1), cell(tree, name, row.values["picture"])
        boxes, labels = row.values["boxes"], row.values["labels"]
        if isinstance(source, str) or len(boxes) != len(labels):
            into.pictures.n += 1
            uneven = f"{len(boxes)} boxes with {len(labels)} labels: each box needs one"
            into.pictures.bad(place, *(source.split(": ", 1) if isinstance(source, str) else (uneven,)))
        else:
            into.add(source, list(_numbered(place, boxes, labels)), place)


def _numbered(place: str, boxes: Sequence[Any], labels: Sequence[Any]) -> Iterator[tuple[str, Any, Any]]:
    for number, (box, label) in enumerate(zip(boxes, labels, strict=True), 1):
        yield f"{place} box {number}", box, label
