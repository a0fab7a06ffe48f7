"""Tables that name pictures, or hold them: which column that is, and the files or bytes that its cells mean."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from plait.data.columns import Wanted, shown
from plait.data.folders import LISTS, Source, Tree, suffix_of
from plait.data.picture_rows import CLIPS, PICTURES, Ledger, PictureRow
from plait.data.report import Report
from plait.data.tables import columns_there, layout, read_rows, stream_rows
from plait.errors import InputError

ALIASES = {
    "picture": ("image", "img", "video", "clip", "path", "file_name", "filename", "file", "image_path", "image_file", "filepath"),
    "label": ("labels", "class", "category", "target", "score"),
}
PICTURE_KINDS = (str, dict, bytes)
KINDS: dict[str, tuple[type, ...]] = {"picture": PICTURE_KINDS, "label": (str, int, float, bool, list)}


def table_names(tree: Tree) -> list[str]:
    """The tables in a folder or archive that have a column of pictures."""
    found = list[str]()
    for name in tree.names:
        if suffix_of(name) in LISTS and layout(Path(name)) != "text":
            with tree.on_disk(name) as path, suppress(InputError):
                if Wanted(("picture",), (), ALIASES).found(columns_there(path)):
                    found.append(name)
    return found


def names_pictures(path: Path) -> Literal["pictures", "clips"] | None:
    """What the first row of a table names or holds."""
    if "picture" not in Wanted(("picture",), (), ALIASES).found(columns_there(path)):
        return None
    value = next(stream_rows([path], Wanted(("picture",), (), ALIASES, kinds=KINDS), Report("read"))).values["picture"]
    if not isinstance(value, str):
        return "pictures"
    suffix = suffix_of(value)
    return "pictures" if suffix in PICTURES else "clips" if suffix in CLIPS else None


def read_table(tree: Tree, name: str, columns: Mapping[str, str] | None, ledger: Ledger, report: Report) -> list[PictureRow]:
    """Rows of the table `name` in `tree`, whose paths begin at its own folder."""
    with tree.on_disk(name) as path:
        read, dropped = read_rows([path], columns, ("picture", "label"), (), ALIASES, KINDS)
        classes = class_names(path, Wanted(("label",), (), ALIASES, {k: v for k, v in (columns or {}).items() if k == "label"}))
        there = str(path)
    merge(dropped, report)
    rows = list[PictureRow]()
    for row in read:
        where = row.where.replace(there, tree.where(name), 1)
        source, label = cell(tree, name, row.values["picture"]), row.values["label"]
        if isinstance(source, str):
            ledger.n += 1
            ledger.bad(where, *source.split(": ", 1))
            continue
        if classes and isinstance(label, int) and 0 <= label < len(classes):
            label = classes[label]
        rows.append(PictureRow(source, label, where))
    return rows


def cell(tree: Tree, table: str, value: Any) -> Source | str:
    """The picture that a cell means, or a fault: a path, bytes, or both as Hugging Face datasets write them."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        return "no picture: expected a path, bytes, or an object with bytes or path"
    folder = PurePosixPath(table).parent.as_posix()
    return tree.find(value if folder == "." else f"{folder}/{value}") or f"no such file: {shown(value)}, sought from {tree.where(folder)}"


def class_names(path: Path, wanted: Wanted) -> list[str] | None:
    """The names of numbered labels, where a parquet file says them in the way of Hugging Face datasets."""
    if layout(path) != "parquet":
        return None
    from pyarrow import parquet

    found = wanted.found(columns_there(path))
    with suppress(ValueError, KeyError, TypeError, AttributeError, OSError):
        said = json.loads((parquet.read_schema(path).metadata or {})[b"huggingface"])
        names = said["info"]["features"][found["label"]]["names"]
        return [str(name) for name in names] if isinstance(names, list) else None
    return None


def merge(other: Report, report: Report) -> None:
    for mine, theirs in ((report.dropped, other.dropped), (report.noted, other.noted)):
        for reason, finding in theirs.items():
            if reason in mine:
                mine[reason].merge(finding)
            else:
                mine[reason] = finding
