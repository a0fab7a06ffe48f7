"""Rows with named columns, out of the files people have: CSV, TSV, JSON lines and arrays, parquet, lines of text, each also .gz."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from plait.data.columns import LONGEST, Row, Wanted, shown
from plait.data.lines import LineFile, open_bytes, read_all
from plait.data.report import Report
from plait.errors import InputError, choices

JSON, TABS, PARQUET = {".json", ".jsonl", ".ndjson"}, {".tsv", ".tab"}, {".parquet", ".pq"}


def read_rows(
    paths: Sequence[str | Path],
    columns: Mapping[str, str] | None,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    aliases: Mapping[str, Sequence[str]] | None = None,
    kinds: Mapping[str, tuple[type, ...]] | None = None,
    longest: int | None = LONGEST,
) -> tuple[list[Row], Report]:
    """All rows of the files in their order, and what was left out; see `Wanted` for how columns are found.

    `columns` is the user's choice, name -> column. A CSV or TSV file whose first line names none of the columns is taken by position
    if it has as many columns as are needed (or optional ones besides); columns given as numbers mean that there is no header line.
    Blank rows, and rows in which a needed text is blank, are dropped and counted. A file of which fewer than 1 % of the lines are
    unusable loses them, and the report says so; otherwise InputError lists them, all faults of all files at once.
    """
    report = Report("read", unit="rows")
    wanted = Wanted(needed, optional, aliases or {}, columns or {}, kinds or {}, longest)
    return list(stream_rows(paths, wanted, report)), report


def stream_rows(paths: Sequence[str | Path], wanted: Wanted, report: Report) -> Iterator[Row]:
    """As `read_rows`, row by row: for files that no memory holds. Faults come as one InputError after the last row."""
    if not paths:
        raise InputError("no data file was given")
    faults: list[str] = []
    for path in map(Path, paths):
        try:
            for row in _rows(path, wanted, report, faults):
                report.kept += 1
                yield row
        except InputError as error:
            faults += [error.message, *error.faults]
    if faults:
        raise InputError("the data cannot be used", faults)
    if not report.kept:
        raise InputError(f"no rows in {', '.join(map(str, paths))}", str(report).splitlines()[1:])


def layout(path: Path) -> str:
    """What the name of a file says it holds: "json", "tabs", "commas", "parquet" or "text"."""
    suffix = Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()
    for kind, suffixes in (("json", JSON), ("tabs", TABS), ("parquet", PARQUET), ("commas", {".csv"})):
        if suffix in suffixes:
            return kind
    return "text"


def columns_there(path: Path) -> list[str]:
    """The names that a table's header or first record gives; of lines of text none."""
    kind, file = layout(path), LineFile(path)
    if kind == "parquet":
        return _opened(path).schema_arrow.names
    first: Any = next(_json(path, file) if kind == "json" else _split(file, kind == "tabs"), (0, []))[1] if kind != "text" else []
    return [str(name) for name in first] if isinstance(first, dict | list) else []


def _rows(path: Path, wanted: Wanted, report: Report, faults: list[str]) -> Iterator[Row]:
    kind, file, n = layout(path), LineFile(path), 0
    if kind == "text" and len(wanted.needed) > 1:
        kind = "tabs"  # lines of text have one column
    if kind == "text":
        reader = ((number, {wanted.needed[0]: text}) for number, text in file if text is not None)
        wanted = Wanted(wanted.needed, kinds=wanted.kinds, longest=wanted.longest)
    elif kind == "json":
        reader = _json(path, file)
    elif kind == "parquet":
        reader = _parquet(path, file, wanted)
    else:
        reader = _table(file, wanted, report, tabs=kind == "tabs")
    for number, record in reader:
        n += 1
        if not isinstance(record, dict):
            file.bad(number, "not an object", f"{shown(record)}; expected names with values, such as {{{wanted.needed[0]!r}: ...}}")
            continue
        values = wanted.values(record)
        if isinstance(values, tuple):
            file.bad(number, *values)
        elif blank := [name for name in wanted.needed if isinstance(values[name], str) and not values[name].strip()]:
            report.drop("blank line" if kind == "text" else f"no {blank[0]}", file.where(number))
        else:
            yield Row(values, file.where(number))
    if not n and not file.n_bad:
        nothing = "is empty" if not file.n_lines else "has no rows" if kind == "parquet" else "has no row, only a header or blank lines"
        faults.append(f"{path}: {nothing}")
    found = file.settle(report)
    alike = n > 1 and file.n_bad == n and list(file.reasons) == ["missing column"]
    faults += [f"{found[0]} (so in all {n:,} rows)"] if alike else found


# ---- the formats: each gives (number of the line, its values by column; None where the line itself is unusable) ----


def _json(path: Path, file: LineFile) -> Iterator[tuple[int, Any]]:
    for number, text in json_records(path, file):
        if not isinstance(text, str):
            yield number, text
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            file.bad(number, "invalid JSON", f"{error} in {shown(text)}; expected one object a line")
            continue
        yield number, record


def json_records(path: Path, file: LineFile) -> Iterator[tuple[int, Any]]:
    """Lines that are not blank, as text; a file that is one array gives its items, numbered from 1."""
    first = True
    for number, text in file:
        if text is None or not text.strip():
            continue
        if first and text.lstrip().startswith("["):
            try:
                items = json.loads(read_all(path).decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}: starts like a JSON array, but: {error}; expected one object a line, or one array") from None
            file.n_lines = len(items)
            yield from enumerate(items, 1)
            return
        first = False
        yield number, text


def _table(file: LineFile, wanted: Wanted, report: Report, tabs: bool) -> Iterator[tuple[int, dict[str, str]]]:
    """Cells by the header. Tab-separated cells are taken as they stand, others may be quoted (RFC 4180) and hold line ends."""
    header: list[str] | None = None
    for number, cells in _split(file, tabs):
        if not any(cell.strip() for cell in cells):
            report.drop("blank line", file.where(number))
            continue
        if header is None:
            header, is_row = _header(cells, wanted, file.where(number))
            if not is_row:
                continue
        if len(cells) != len(header):
            file.bad(number, "number of columns", f"{len(cells)}; the first line has {len(header)}: {shown(cells)}")
            continue
        yield number, dict(zip(header, cells, strict=True))


def _header(cells: list[str], wanted: Wanted, where: str) -> tuple[list[str], bool]:
    """(names of the columns, whether the first line is a row and names nothing)"""
    if wanted.by_number:
        if far := [f"{name}={column}" for name, column in wanted.columns.items() if int(column) > len(cells)]:
            raise InputError(f"{where}: has {len(cells)} columns, so there is no --columns {' '.join(far)}")
        return [str(number) for number in range(1, len(cells) + 1)], True
    found = wanted.found(cells)
    if lacking := wanted.lacking(found, cells):
        if found or wanted.columns or not len(wanted.needed) <= len(cells) <= len(wanted.names):
            raise InputError(f"{where}: no column {lacking}")
        return list(wanted.names[: len(cells)]), True
    if twice := [column for column in found.values() if cells.count(column) > 1]:
        raise InputError(f"{where}: the header names {choices(map(repr, twice))} more than once")
    return cells, False


def _split(file: LineFile, tabs: bool) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of each row that can be taken apart; the others are noted."""
    lines = ((number, text) for number, text in file if text is not None)
    first = next(((number, text) for number, text in lines if text.strip()), None)
    if first is None:
        return
    between = next((mark for mark in "\t,;" if mark in first[1]), ",")
    if tabs or between == "\t":
        yield from ((number, text.split("\t")) for number, text in chain([first], lines))
        return
    csv.field_size_limit(2**31 - 1)  # of the process; what is too long is told with its place, above
    fed = _Fed(chain([first], lines))
    reader = csv.reader(fed, delimiter=between, strict=True)
    while True:
        fed.start = 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            file.bad(fed.start, "broken quotes", f"{error}; a quote within a quoted cell is written twice")
            continue
        yield fed.start, cells


class _Fed:
    """Lines for the csv module, which may take several for a row; `start` is the number of the first one it took."""

    def __init__(self, lines: Iterator[tuple[int, str]]):
        self.lines, self.start = lines, 0

    def __iter__(self) -> "_Fed":
        return self

    def __next__(self) -> str:
        number, text = next(self.lines)
        self.start = self.start or number
        return text + "\n"


def _opened(path: Path) -> Any:
    """A parquet file."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(f"{path}: parquet files need pyarrow: pip install 'plait[parquet]'") from None
    open_bytes(path).close()  # says so if there is none
    try:
        return parquet.ParquetFile(io.BytesIO(read_all(path)) if path.suffix == ".gz" else path)
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: is not a whole parquet file: {error}") from None


def _parquet(path: Path, file: LineFile, wanted: Wanted) -> Iterator[tuple[int, dict[str, Any]]]:
    source = _opened(path)
    file.n_lines, there = source.metadata.num_rows, source.schema_arrow.names
    found = wanted.found(there)
    if lacking := wanted.lacking(found, there):
        raise InputError(f"{path}: no column {lacking}")
    number, batches = 0, source.iter_batches(4096, columns=list(dict.fromkeys(found.values())))
    while True:
        try:
            records = next(batches).to_pylist()
        except StopIteration:
            return
        except (ValueError, OSError) as error:  # of which Arrow's own errors are kinds
            raise InputError(f"{path}: is damaged after row {number:,}: {error}") from None
        for record in records:
            number += 1
            yield number, record
