"""Pairs of source and target from the files people have: columns, JSON lines, parallel files, catalogues."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.data.columns import shown
from plait.data.lines import LineFile
from plait.data.report import Report
from plait.data.tables import json_records
from plait.errors import InputError


@dataclass(frozen=True, slots=True)
class Pair:
    """A source, one right answer to it, and the place it was read from (`file:line`)."""

    source: str
    target: str
    where: str = ""


HEADERS = (("source", "target"), ("src", "tgt"))  # first line of a table, and keys of JSON objects
JSON = {".json", ".jsonl", ".ndjson"}
CATALOGUES = {".po", ".pot", ".mo"}
LAYOUTS = (
    "Expected: tab-separated lines (source TAB target), JSON lines with the keys source and target,"
    " two parallel text files, or .po/.mo catalogues; each may be .gz."
)


def read_pairs(paths: Sequence[str | Path]) -> tuple[list[Pair], Report]:
    """All pairs of the files, in their order, as they stand (nothing is stripped: see `clean`), and what was left out.

    A lone third column, a broken JSON line or bytes that are no UTF-8 make a line unusable. A file with fewer than 1 % of
    such lines loses them, and the report says so; one with more is an InputError. All faults of all files come at once.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    if not paths:
        raise InputError(f"no data file was given. {LAYOUTS}")
    report, faults, pairs = Report("read"), [], []
    plain = [path for path in map(Path, paths) if _kind(path) == "text"]
    if len(plain) == 2 and not any(_has_tab(path) for path in plain):
        readers = [_parallel(plain[0], plain[1], report, faults)]
        readers += [_single(path, report, faults) for path in map(Path, paths) if path not in plain]
    else:
        readers = [_single(path, report, faults) for path in map(Path, paths)]
    for reader in readers:
        try:
            pairs.extend(reader)
        except InputError as error:
            faults += [error.message, *error.faults]
    if faults:
        raise InputError(f"the data cannot be used. {LAYOUTS}", faults)
    if not pairs:
        raise InputError(f"no pairs in {', '.join(map(str, paths))}. {LAYOUTS}", str(report).splitlines()[1:])
    report.kept = len(pairs)
    return pairs, report


def _kind(path: Path) -> str:
    suffix = Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()
    if suffix in JSON:
        return "json"
    if suffix in CATALOGUES:
        return "catalogue"
    return "table" if suffix == ".tsv" else "text"


def _single(path: Path, report: Report, faults: list[str]) -> Iterator[Pair]:
    kind = _kind(path)
    if kind == "json":
        yield from _json(path, report, faults)
    elif kind == "catalogue":
        from plait.data.catalogues import read_catalogue  # builds Pairs: imported here so that neither file needs the other first

        yield from read_catalogue(path, report)
    else:
        yield from _table(path, report, faults)


def _has_tab(path: Path) -> bool:
    """Whether the first line with text has a tab: then it is a table, not one side of two parallel files."""
    try:
        return "\t" in next((text for _, text in LineFile(path) if text and text.strip()), "")
    except InputError:
        return False  # the reader itself will say what is wrong


def _table(path: Path, report: Report, faults: list[str]) -> Iterator[Pair]:
    file, columns, empty = LineFile(path), (0, 1), True
    width = 2
    for number, text in file:
        if text is None:
            empty = False
            continue
        if not text.strip():
            report.drop("blank line", file.where(number))
            continue
        cells = text.split("\t")
        if empty:
            empty = False
            named = _header(cells)
            if named:
                columns, width = named, len(cells)
                report.note("header line, used for the columns", file.where(number))
                continue
        if len(cells) != width:
            file.bad(number, *_columns_fault(text, len(cells), width))
            continue
        yield Pair(cells[columns[0]], cells[columns[1]], file.where(number))
    if empty:
        faults.append(f"{path}: is empty" if not file.n_lines else f"{path}: has {file.n_lines} lines, all of them blank")
    faults += file.settle(report)


def _header(cells: list[str]) -> tuple[int, int] | None:
    names = [cell.strip().lower() for cell in cells]
    return next(((names.index(a), names.index(b)) for a, b in HEADERS if a in names and b in names), None)


def _columns_fault(text: str, n: int, width: int) -> tuple[str, str]:
    if "\r" in text:
        return "bare carriage return in the line", "lines must end with LF or CR LF; convert the line ends"
    if n == 1:
        return "one column only", f"no tab in {shown(text)}; expected source TAB target"
    if width == 2 and n > 2:
        return "more than two columns", f"{n} of them; keep two (cut -f1,2), or name them in a first line with source and target"
    return "number of columns", f"{n}, but the header line names {width}"


def _parallel(source: Path, target: Path, report: Report, faults: list[str]) -> Iterator[Pair]:
    files = LineFile(source), LineFile(target)
    sides: list[list[str | None]] = []
    for file in files:
        try:
            sides.append([text for _, text in file])
            if not any(text is None or text.strip() for text in sides[-1]):
                faults.append(f"{file.path}: is empty" if not sides[-1] else f"{file.path}: has {len(sides[-1])} lines, all of them blank")
        except InputError as error:
            faults += [error.message, *error.faults]
    for file in files:
        faults += file.settle(report)
    if len(sides) < 2:
        return
    if len(sides[0]) != len(sides[1]):
        counts = f"{source} has {len(sides[0]):,} lines, {target} has {len(sides[1]):,}"
        faults.append(f"{counts}; parallel files must have the same number, line n of one answering line n of the other")
        return
    for number, (left, right) in enumerate(zip(*sides, strict=True), 1):
        if left is None or right is None:
            continue  # counted by its file
        if not left.strip() and not right.strip():
            report.drop("blank line", f"{source}:{number}")
        else:
            yield Pair(left, right, f"{source}:{number}")


def _json(path: Path, report: Report, faults: list[str]) -> Iterator[Pair]:
    file, keys, n_records = LineFile(path), None, 0
    for number, text in json_records(path, file):
        n_records += 1
        try:
            record = json.loads(text) if isinstance(text, str) else text
        except (ValueError, RecursionError) as error:
            file.bad(number, "invalid JSON", f"{error} in {shown(text)}; expected one object a line")
            continue
        keys = keys or _keys(record)
        answers = _answers(record, keys)
        if isinstance(answers, str):
            file.bad(number, "unusable JSON record", answers)
            continue
        source, targets = answers
        for target in targets:
            yield Pair(source, target, file.where(number))
    if not n_records and not file.n_bad:
        faults.append(f"{path}: is empty")
    faults += file.settle(report)


def _inner(record: Any) -> Any:
    """Hugging Face's translation sets wrap the pair: {"translation": {"en": ..., "de": ...}}."""
    return record["translation"] if isinstance(record, dict) and isinstance(record.get("translation"), dict) else record


def _keys(record: Any) -> tuple[str, str] | None:
    record = _inner(record)
    if not isinstance(record, dict):
        return None
    named = next((pair for pair in HEADERS if pair[0] in record and pair[1] in record), None)
    if named:
        return named
    strings = [key for key, value in record.items() if isinstance(value, str | list)]
    return (strings[0], strings[1]) if len(strings) == 2 else None


def _answers(record: Any, keys: tuple[str, str] | None) -> tuple[str, list[str]] | str:
    """Source and its right answers, or what is wrong with the record."""
    record = _inner(record)
    if not isinstance(record, dict):
        return f"a {type(record).__name__}; expected an object such as {{'source': ..., 'target': ...}}"
    if keys is None:
        return f"keys {', '.join(map(repr, record)) or 'none'}; expected source and target, src and tgt, or exactly two strings"
    missing = [key for key in keys if key not in record]
    if missing:
        return f"no {' and no '.join(map(repr, missing))}; it has {', '.join(map(repr, record)) or 'no keys'}"
    source, targets = record[keys[0]], record[keys[1]]
    targets = targets if isinstance(targets, list) else [targets]
    if not isinstance(source, str):
        return f"{keys[0]!r} is a {type(source).__name__}; expected a string"
    if not targets or not all(isinstance(target, str) for target in targets):
        return f"{keys[1]!r} is not a string or a list of strings"
    try:
        "".join([source, *targets]).encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair (\\ud800 to \\udfff) stands alone; it is no character"
    return source, targets
