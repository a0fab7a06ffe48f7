"""COCO's JSON (Lin et al. 2014): pictures, categories and boxes with numbers of their own, which may have gaps."""

from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any

from plait.data.box_rows import Boxes, Marked
from plait.data.columns import shown
from plait.data.folders import Tree
from plait.errors import InputError


def read_coco(tree: Tree, name: str, whole: dict[str, Any], into: Boxes) -> None:
    """The pictures of the file `name`, which holds `whole`; boxes there are x, y, width, height. Segmentations are not read."""
    file = tree.where(name)
    lists = {key: whole.get(key, []) for key in ("images", "categories", "annotations")}
    if wrong := [key for key, value in lists.items() if not isinstance(value, list) or not all(isinstance(one, dict) for one in value)]:
        raise InputError(f"{file}: {', '.join(wrong)}: expected a list of objects, as COCO's format has it")
    if not lists["images"]:
        raise InputError(f"{file}: lists no images")
    if not lists["annotations"]:
        raise InputError(f"{file}: lists no annotations, so there is nothing to learn (a test set without answers?)")
    classes = _categories(file, lists["categories"])
    images, used = dict[Any, dict[str, Any]](), set[Any]()
    for image in lists["images"]:
        number = _key(image.get("id"))
        if number is None or number in images:
            into.pictures.n += 1
            reason = "image without an id" if number is None else "two images with the same id"
            into.pictures.bad(f"{file}: image {shown(image.get('file_name'))}", reason, shown(image.get("id")))
        else:
            images[number] = image
    boxes, crowds, seen = defaultdict[Any, list[Marked]](list), defaultdict[Any, list[Marked]](list), set[Any]()
    for at, mark in enumerate(lists["annotations"], 1):
        number, image, category = (_key(mark.get(key)) for key in ("id", "image_id", "category_id"))
        where = f"{file}: annotation {at if number is None else number}"
        fault = None
        if number is not None and number in seen:
            fault = "two annotations with the same id", ""
        elif image not in images:
            fault = "of an unknown image", f"image_id {shown(mark.get('image_id'))}"
        elif category not in classes:
            fault = "of an unknown category", f"category_id {shown(mark.get('category_id'))}; there is {shown(sorted(classes, key=str))}"
        seen.add(number)
        if fault is not None:
            into.boxes.n += 1
            into.boxes.bad(where, *fault)
        else:
            marked = f"{where} ({images[image].get('file_name')})", _corners(mark.get("bbox")), classes[category]
            if mark.get("iscrowd"):
                into.report.note("crowd, not learned", where)
                crowds[image].append(marked)
            else:
                used.add(category)
                boxes[image].append(marked)
    for category in set(classes) - used:
        into.report.note("category without a box", f"{file}: {classes[category]}")
    folder = _folder(tree, name, [image.get("file_name") for image in lists["images"]])
    for number, image in images.items():
        where, called = f"{file}: image {number}", image.get("file_name")
        source = tree.find(folder + called) if isinstance(called, str) else None
        if source is None:
            into.pictures.n += 1
            into.pictures.bad(where, "no such file", f"{shown(called)}, sought in {tree.where(folder) if folder else tree.place}")
        else:
            into.add(source, boxes[number], f"{where} ({called})", (image.get("height"), image.get("width")), crowds[number])


def _key(value: Any) -> int | str | None:
    """An id; in files that other programs wrote they are strings or 3.0 as well."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _corners(bbox: Any) -> Any:
    """x0 y0 x1 y1; what is no box goes on as it stands, to be named as a fault."""
    try:
        x, y, width, height = map(float, bbox)
    except (TypeError, ValueError, OverflowError):
        return bbox
    return [x, y, x + width, y + height]


def _categories(file: str, categories: list[dict[str, Any]]) -> dict[Any, str]:
    names, faults = dict[Any, str](), list[str]()
    for category in categories:
        number, name = _key(category.get("id")), category.get("name")
        if number is None or not isinstance(name, str) or not name.strip():
            faults.append(f"{file}: category {shown(category)}: expected an id and a name")
        elif number in names:
            faults.append(f"{file}: two categories with the id {number}: {names[number]} and {name}")
        elif name in names.values():
            faults.append(f"{file}: two categories with the name {name}")
        else:
            names[number] = name
    if faults or not names:
        raise InputError(f"{file}: its categories cannot be used", faults or ["there are none"])
    return names


def _folder(tree: Tree, name: str, files: list[Any]) -> str:
    """Where the pictures lie, by the first that is found: beside the list, in images/, or in a folder named like the list's last word
    (annotations/instances_val2017.json, val2017/)."""
    path = PurePosixPath(name)
    here = "" if path.parent.as_posix() == "." else path.parent.as_posix() + "/"
    last = path.stem.rpartition("_")[2]
    above = [here, here + "../"]
    below = ["", "images/", f"{last}/", f"images/{last}/"]
    for folder in (a + b for a in above for b in below):
        if any(isinstance(file, str) and tree.find(folder + file) for file in files[:20]):
            return folder
    return here
