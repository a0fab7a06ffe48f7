"""Pascal VOC's XML (Everingham et al. 2010): a file a picture, corners counted from 1, and lists of the parts in ImageSets."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any
from xml.etree import ElementTree

from plait.data.box_rows import Boxes
from plait.data.folders import Member, Tree, part_of, suffix_of
from plait.data.picture_rows import PICTURES, Part
from plait.errors import InputError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
FOLDERS = ("", "../JPEGImages/", "../images/", "../", "images/", "JPEGImages/")  # from the XML file's


def read_voc(tree: Tree, names: Sequence[str], part: Part | None, into: Boxes) -> None:
    """The pictures of the XML files `names`. Corners are pixels from 1, both inside, so one is taken from xmin and ymin.

    Objects marked difficult are kept and noted. Files that are no annotation are noted and passed over.
    """
    listed = parts_listed(tree)
    for name in names:
        where = tree.where(name)
        stem = PurePosixPath(name).stem
        own = listed.get(stem, set[str]()) if listed else {word} if (word := part_of(name)) else None
        if part is not None and own is not None and part not in own:
            continue
        try:
            source = tree.source(name)
            root = ElementTree.fromstring(source.read() if isinstance(source, Member) else source.read_bytes())
        except (ElementTree.ParseError, OSError, InputError, LookupError, ValueError) as error:
            into.pictures.n += 1
            into.pictures.bad(where, "is not XML", str(error))
            continue
        if root.tag != "annotation":
            into.report.note(f"XML file that is no annotation ({root.tag})", where)
            continue
        found, difficult = list[tuple[str, Any, Any]](), 0
        for number, one in enumerate(root.iter("object"), 1):
            place, label = f"{where} object {number}", (one.findtext("name") or "").strip()
            corners = [_number(one.findtext(f"bndbox/{corner}")) for corner in CORNERS]
            difficult += (one.findtext("difficult") or "0").strip() == "1"
            if not label:
                into.boxes.n += 1
                into.boxes.bad(place, "has no name")
            elif None in corners:
                found.append((place, "no bndbox of xmin, ymin, xmax, ymax", label))
            else:
                x0, y0, x1, y1 = corners
                # One pixel would be a box by the letter; of labelling programs it is a click beside every object.
                empty = x1 <= x0 or y1 <= y0  # type: ignore[operator]
                found.append((place, corners if empty else [x0 - 1, y0 - 1, x1, y1], label))  # type: ignore[operator]
        if difficult:
            into.report.note("object marked difficult, kept", where)
        picture = _picture(tree, name, (root.findtext("filename") or "").strip())
        if picture is None:
            into.pictures.n += 1
            into.pictures.bad(where, "no picture of this name", f"{root.findtext('filename')!r}, sought beside it and in ../JPEGImages")
        else:
            size = _number(root.findtext("size/height")), _number(root.findtext("size/width"))
            into.add(picture, found, where, size)


def parts_listed(tree: Tree) -> dict[str, set[str]]:
    """Stem of a picture -> the parts that name it, of VOC's ImageSets/Main/train.txt and the like; empty where there are no such lists."""
    listed = dict[str, set[str]]()
    for name in tree.names:
        if "ImageSets/Main/" in name and (part := part_of(name.rpartition("/")[2])):
            source = tree.source(name)
            text = (source.read() if isinstance(source, Member) else source.read_bytes()).decode("utf-8", "replace")
            for line in text.splitlines():
                if words := line.split():
                    listed.setdefault(words[0], set()).add(part)
    return listed


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return int(number) if number.is_integer() else number


def _picture(tree: Tree, name: str, said: str) -> Any:
    """The file that the XML names, else one named like the XML file, in the folders where pictures lie."""
    here, stem = name.rpartition("/")[0], PurePosixPath(name).stem
    here = here + "/" if here else ""
    for called in [said, *(stem + suffix for suffix in (".jpg", ".png", ".jpeg", ".JPG"))]:
        for folder in FOLDERS:
            found = tree.find(here + folder + called)
            if found is not None and suffix_of(called) in PICTURES:
                return found
    return None
