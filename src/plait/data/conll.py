"""Sentences whose words have tags: CoNLL files, and rows that hold a list of words and a list of tags."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.data.columns import Row, Wanted
from plait.data.lines import LineFile
from plait.data.report import Report
from plait.data.tables import layout, stream_rows
from plait.errors import InputError

DOCUMENT = "-DOCSTART-"
ALIASES = {"tokens": ("words",), "tags": ("ner_tags", "pos_tags", "labels")}
CONTINUES, CONTINUED = frozenset("IEL"), frozenset("BI")


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words with a tag each, and the place of the first one (`file:line`)."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str


def read_tagged(paths: Sequence[str | Path], columns: Mapping[str, str] | None = None) -> tuple[list[Sentence], Report]:
    """All sentences of the files in their order. JSON lines, JSON arrays and parquet hold rows (columns tokens and tags), other files
    are CoNLL: a word a line, its tag in the last column, a blank line between sentences.

    A line without a tag, or a row with more words than tags, is unusable; see `LineFile` for how many of these may be. Tags that
    continue an entity which none began (I-PER after O, in a file that else marks beginnings) are counted.
    """
    if not paths:
        raise InputError("no data file was given")
    report, faults, found = Report("read", unit="sentences"), list[str](), list[Sentence]()
    for path in map(Path, paths):
        try:
            if layout(path) in ("json", "parquet"):
                found += _rows(path, columns or {}, report, faults)
            else:
                found += _conll(path, report, faults)
        except InputError as error:
            faults += error.faults or [error.message]
    if faults:
        raise InputError("the data cannot be used", faults)
    if not found:
        raise InputError(f"no sentences in {', '.join(map(str, paths))}", str(report).splitlines()[1:])
    begun = any(tag.startswith("B-") for one in found for tag in one.tags)
    for one in found if begun else ():
        for n, (tag, before) in enumerate(zip(one.tags, ("", *one.tags)), 1):
            if tag[1:2] == "-" and tag[0] in CONTINUES and not (before[:1] in CONTINUED and before[1:] == tag[1:]):
                report.note("tag that continues an entity which none began", f"{one.where} word {n}")
    report.kept = len(found)
    return found, report


def _conll(path: Path, report: Report, faults: list[str]) -> list[Sentence]:
    file, found = LineFile(path), list[Sentence]()
    words, tags, begun, whole = list[str](), list[str](), 0, True

    def finish() -> None:
        if words and whole:
            found.append(Sentence(tuple(words), tuple(tags), file.where(begun)))
        words.clear()
        tags.clear()

    for number, text in file:
        cells = [] if text is None else text.split("\t") if "\t" in text else text.split()
        cells = [cell.strip() for cell in cells]
        if text is not None and (not text.strip() or cells[0] == DOCUMENT):
            finish()
            whole = True
            continue
        begun = begun if words else number
        if len(cells) < 2 or not cells[0] or not cells[-1]:
            if text is not None:
                file.bad(number, "no tag", f"{text[:40]!r}; expected a word and, in the last column, its tag")
            whole = False  # half a sentence would teach its words in a context that they do not have
            continue
        words.append(cells[0])
        tags.append(cells[-1])
    finish()
    if not file.n_lines:
        faults.append(f"{path}: is empty")
    faults += file.settle(report)
    return found


def _rows(path: Path, columns: Mapping[str, str], report: Report, faults: list[str]) -> list[Sentence]:
    wanted = Wanted(("tokens", "tags"), (), ALIASES, columns, {"tokens": (list,), "tags": (list,)})
    found: list[Sentence] = []
    for row in stream_rows([path], wanted, Report("rows")):
        words, tags = row.values["tokens"], row.values["tags"]
        if fault := _fault(row, words, tags):
            faults.append(f"{row.where}: {fault}")
        elif words:
            found.append(Sentence(tuple(words), tuple(tags), row.where))
        else:
            report.drop("no words", row.where)
    return found


def _fault(row: Row, words: list[Any], tags: list[Any]) -> str | None:
    if len(words) != len(tags):
        return f"{len(words)} tokens with {len(tags)} tags: each token needs one"
    if odd := [word for word in words if not isinstance(word, str) or not word.strip()]:
        return f"{odd[0]!r} is no token"
    if odd := [tag for tag in tags if not isinstance(tag, str) or not tag]:
        return f"{odd[0]!r} is no tag: expected names such as 'B-PER'" + (", not their numbers" if isinstance(odd[0], int) else "")
    return None
