"""Pictures and clips with their labels, of a folder per class, a table, or a zip archive of either; nothing is decoded here."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from plait.data.folders import Member, Source, Tree, natural, part_of, root_of, suffix_of
from plait.data.lines import REMEMBERED, TOLERATED
from plait.data.report import Finding, Report
from plait.data.tables import layout
from plait.errors import InputError
from plait.media.pictures import picture_size

PICTURES = frozenset(".jpg .jpeg .jpe .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .jp2 .avif .dcm .dicom".split())
CLIPS = frozenset(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .ogv .npy".split())
ANIMATED = frozenset(".gif .webp .png .avif".split())  # may hold a clip each
Part = Literal["train", "valid", "test"]


@dataclass(frozen=True, slots=True)
class PictureRow:
    """A picture or a clip, its label as the file has it, and where it was named."""

    source: Source
    label: Any
    where: str

    @property
    def key(self) -> str:
        return key_of(self.source)

    @property
    def stratum(self) -> str:
        return str(self.label)


@dataclass(frozen=True, slots=True, eq=False)
class BoxRow:
    """A picture with what is on it: `boxes` [N, 4] float32, x0 y0 x1 y1 in its pixels, and the N names of their classes.

    `size` is its (height, width) as the file has it, the way up that it is shown; boxes are pixels of that. `crowds` are COCO's: names of
    classes and boxes of many objects that nobody marked one by one. They are not learned; what is found in them is neither right nor wrong.
    """

    source: Source
    boxes: np.ndarray
    labels: tuple[str, ...]
    where: str
    size: tuple[int, int]
    crowds: tuple[tuple[str, np.ndarray], ...] = ()

    @property
    def key(self) -> str:
        return key_of(self.source)


def key_of(source: Source) -> str:
    """The same for the same picture: its place, or of bytes their sha256."""
    return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else str(source)


class Ledger:
    """Things of one kind that were read, and what is wrong with some of them; `settle` says whether the others can be used."""

    def __init__(self, kind: str = ""):
        """`kind` stands before each reason: which things these are, where a report holds several kinds."""
        self.kind, self.n, self.n_bad = kind, 0, 0
        self.reasons: dict[str, Finding] = {}
        self.faults: list[str] = []

    def bad(self, where: str, reason: str, detail: str = "") -> None:
        self.n_bad += 1
        self.reasons.setdefault(self.kind + reason, Finding()).add(where)
        if len(self.faults) < REMEMBERED:
            self.faults.append(f"{where}: {reason}{': ' if detail else ''}{detail}")

    def settle(self, report: Report) -> list[str]:
        """As `LineFile.settle`: few bad things go into the report as dropped, many are faults."""
        if self.n_bad < TOLERATED * self.n:
            for reason, finding in self.reasons.items():
                report.dropped.setdefault(reason, Finding()).merge(finding)
            return []
        return self.faults + [f"{self.n_bad:,} such {self.kind.strip(' :') or 'faults'} in all"] * (self.n_bad > len(self.faults))


def size_of(source: Source, where: str) -> tuple[int, int]:
    """(height, width) as the header says, the way up that it is shown; InputError where it is no picture."""
    return picture_size(source.read() if isinstance(source, Member) else source, where)


def fault_of(row: PictureRow) -> str | None:
    """What is wrong with a picture as far as its header tells; clips are looked at when they are read."""
    source = row.source
    if suffix_of(source) in CLIPS or str(getattr(source, "name", "")).endswith("/") or (isinstance(source, Path) and source.is_dir()):
        return None
    try:
        size_of(source, row.where)
    except InputError as error:
        return error.message
    return None


def kind_of(path: str | Path) -> Literal["pictures", "clips"] | None:
    """What data are by their looks: a folder or archive with pictures or videos in it, or a table with a column of them; else None."""
    from plait.data.picture_tables import names_pictures

    path = Path(path)
    try:
        if path.is_dir() or suffix_of(path) == ".zip":
            suffixes = [suffix_of(name) for name in Tree(path).names]
            pictures, clips = (sum(suffix in known for suffix in suffixes) for known in (PICTURES, CLIPS))
            if pictures or clips:
                return "pictures" if pictures >= clips else "clips"
            return "pictures" if any(layout(Path(name)) == "parquet" for name in Tree(path).names) else None
        return names_pictures(path) if layout(path) != "text" else None
    except InputError:
        return None


def parts_in(path: str | Path) -> list[Part]:
    """The parts that a folder or archive is divided in, in the order train, valid, test; none where there is no training part."""
    if not (Path(path).is_dir() or Path(path).suffix.lower() == ".zip"):
        return []
    tree = Tree(path)
    root = root_of(tree.names)
    there = {part for name in tree.names if (part := part_of(name[len(root) :]))}
    return [part for part in ("train", "valid", "test") if part in there] if "train" in there and len(there) > 1 else []  # type: ignore[misc]


def read_pictures(
    paths: Sequence[str | Path], part: Part | None = None, columns: Mapping[str, str] | None = None, clips: bool = False
) -> tuple[list[PictureRow], Report]:
    """Labelled pictures (or `clips`: videos, .npy arrays, folders of frames) of folders, tables and zip archives of them.

    A folder or an archive holds a folder per class, below folders train/, valid/, test/ where there are such, of which `part` takes one
    (what is not divided belongs to every part); or a table (CSV, TSV, JSON lines, parquet) that names pictures beside it. A table's
    column of pictures holds paths relative to its file, or bytes (parquet, as Hugging Face datasets write them; they are all kept in
    memory). Headers are looked at, nothing is decoded. While fewer than 1 % of the pictures are missing or no pictures, they are dropped
    and counted; else InputError lists them.
    """
    from plait.data.picture_tables import read_table, table_names

    report, ledger = Report("read", unit="clips" if clips else "pictures"), Ledger()
    rows, faults = list[PictureRow](), list[str]()
    if not paths:
        raise InputError("no pictures were given: give a folder with a folder per class, a table or a zip archive")
    for path in map(Path, paths):
        try:
            if not path.is_dir() and (suffix_of(path) in PICTURES | CLIPS):
                raise InputError(f"{path}: is a single file; expected a folder with a folder per class, a table or a zip archive")
            if not path.is_dir() and suffix_of(path) != ".zip":
                rows += read_table(Tree(path.parent), path.name, columns, ledger, report)
                continue
            tree = Tree(path)
            if tables := table_names(tree):
                for name in tables:
                    if part is None or part_of(name) in (None, part):
                        rows += read_table(tree, name, columns, ledger, report)
            else:
                rows += _folders(tree, part, clips, ledger, report)
        except InputError as error:
            faults += [error.message, *error.faults]
    sound = list[PictureRow]()
    for row in rows:
        ledger.n += 1
        if (fault := fault_of(row)) is None:
            sound.append(row)
        else:
            ledger.bad(row.where, "cannot be used", fault.removeprefix(f"{row.where}: "))
    if faults := faults + ledger.settle(report):
        raise InputError("the pictures cannot be used", faults)
    if not sound:
        raise InputError(
            f"no {report.unit} in {', '.join(map(str, paths))}{f', part {part}' if part else ''}", str(report).splitlines()[1:]
        )
    report.kept = len(sound)
    return sound, report


def _folders(tree: Tree, part: Part | None, clips: bool, ledger: Ledger, report: Report) -> list[PictureRow]:
    """A folder per class: the first below the set's own folder, and below that of a part."""
    known = CLIPS | PICTURES if clips else PICTURES
    names = [name for name in tree.names if suffix_of(name) in known]
    for name in set(tree.names) - set(names):
        report.note(f"file that is no {report.unit.removesuffix('s')}", tree.where(name))
    if not names:
        raise InputError(f"{tree.place}: no {report.unit} in it; expected a folder per class with files such as .jpg or .png in it")
    root, rows = root_of(names), list[PictureRow]()
    parts = {part_of(name[len(root) :].split("/")[0] + "/") for name in names}
    divided, frames = None not in parts and "train" in parts and len(parts) > 1, set[str]()
    for name in names:
        inside = name[len(root) :]
        if divided:
            own, _, inside = inside.partition("/")
            if part is not None and part_of(own + "/") != part:
                continue
        label, below, rest = inside.partition("/")
        if not below:
            ledger.n += 1
            ledger.bad(tree.where(name), "in no class's folder", f"expected {tree.place}/CLASS/{PurePosixPath(name).name}")
        elif clips and "/" not in rest and suffix_of(name) in PICTURES - ANIMATED:
            ledger.n += 1
            ledger.bad(tree.where(name), "a single picture", "expected a video, or a folder of frames")
        elif clips and "/" in rest and suffix_of(name) in PICTURES:
            folder = name.rpartition("/")[0] + "/"  # a clip as a folder of its frames
            if folder not in frames:
                frames.add(folder)
                rows.append(PictureRow(tree.source(folder), label, tree.where(folder)))
        else:
            rows.append(PictureRow(tree.source(name), label, tree.where(name)))
    return rows


def classes_of(rows: Sequence[BoxRow]) -> list[str]:
    """The names of all classes, sorted; a number in a name counts as one."""
    return sorted({label for row in rows for label in row.labels}, key=natural)
