"""Pairs from gettext catalogues, .po and .mo: the translations that programs ship."""

# Read here and not by polib: that one stops at the first syntax fault without its line, knows no .gz, and would be a
# dependency for some hundred lines; the standard library's gettext reads .mo only and forgets the plural msgid.

import codecs
import gettext
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from plait.data.lines import read_all
from plait.data.pairs import Pair
from plait.data.report import Report
from plait.errors import InputError

CHARSET = re.compile(rb"charset=([\w.:-]+)", re.IGNORECASE)
PLURALS = re.compile(r"Plural-Forms:.*?plural\s*=\s*([^;\n\\]+)", re.IGNORECASE)
KEYWORD = re.compile(r'(msgctxt|msgid_plural|msgid|msgstr(?:\[(\d+)\])?)\s*(".*)$')
ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{1,2}|[0-7]{1,3}|.)", re.DOTALL)
ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
MAGIC = 0x950412DE


@dataclass(slots=True)
class Entry:
    """One message: its strings by keyword (`msgid`, `msgid_plural`), translations by plural index, and its state."""

    where: str
    ids: dict[str, str] = field(default_factory=dict)
    strings: dict[int, str] = field(default_factory=dict)
    fuzzy: bool = False
    obsolete: bool = False


def read_catalogue(path: Path, report: Report) -> list[Pair]:
    """Pairs msgid -> msgstr; fuzzy, obsolete and untranslated entries are counted in the report.

    A plural entry gives its singular with the form for one, and its plural with each of the other forms (several right
    answers where a language has several). A language without plural forms gives the plural only: its one string holds
    the number. InputError lists all syntax faults with their lines.
    """
    data = read_all(path)
    if not data:
        raise InputError(f"{path}: is empty")
    is_mo = Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower() == ".mo"
    entries = list(_mo_entries(path, data) if is_mo else _po_entries(path, data))
    header = next((entry.strings.get(0, "") for entry in entries if entry.ids.get("msgid") == "" and not entry.obsolete), "")
    form_of_one = _form_of_one(header)
    pairs: list[Pair] = []
    for entry in entries:
        if entry.obsolete:
            report.drop("obsolete entry", entry.where)
        elif entry.ids.get("msgid") == "":
            continue  # the header
        elif entry.fuzzy:
            report.drop("fuzzy entry", entry.where)
        elif not any(entry.strings.values()):
            report.drop("untranslated entry", entry.where)
        else:
            pairs.extend(_pairs_of(entry, form_of_one))
    return pairs


def _form_of_one(header: str) -> int:
    """The plural index that the catalogue's own formula gives for n = 1: Arabic, for one, has zero before it."""
    found = PLURALS.search(header)
    try:
        formula: Callable[[int], int] = gettext.c2py(found[1].strip()) if found else int  # type: ignore[attr-defined]
        return int(formula(1)) if found else 0
    except (ValueError, RecursionError, ZeroDivisionError):
        return 0


def _pairs_of(entry: Entry, form_of_one: int) -> Iterator[Pair]:
    singular, plural = entry.ids["msgid"], entry.ids.get("msgid_plural")
    if plural is None:
        yield Pair(singular, entry.strings[min(entry.strings)], entry.where)
        return
    if len(entry.strings) == 1:
        yield Pair(plural, next(iter(entry.strings.values())), entry.where)
        return
    for index, text in sorted(entry.strings.items()):
        if text:
            yield Pair(singular if index == form_of_one else plural, text, entry.where)


def _codec(path: Path, data: bytes) -> str:
    found = CHARSET.search(data)
    name = found[1].decode("ascii") if found else "utf-8"
    if name.upper() == "CHARSET":  # the template's placeholder, left in
        return "utf-8"
    try:
        b"    ".decode(name)  # refuses what is no text (base64), and what gettext itself does not allow (UTF-16)
        return codecs.lookup(name).name
    except (LookupError, UnicodeError):
        raise InputError(f"{path}: the header says charset={name}, which cannot be used in a catalogue; expected UTF-8") from None


def _po_entries(path: Path, data: bytes) -> Iterator[Entry]:
    data = data.removeprefix(codecs.BOM_UTF8)
    codec, faults, entries = _codec(path, data), [], []
    entry, at = Entry(""), None  # `at`: the string that continuation lines go to
    for number, raw in enumerate(data.split(b"\n"), 1):
        where = f"{path}:{number}"
        try:
            line = raw.decode(codec).strip()
        except UnicodeDecodeError as error:
            faults.append(f"{where}: not {codec.upper()}: byte 0x{raw[error.start]:02x} at byte {error.start} of the line")
            continue
        obsolete = line.startswith("#~")
        line = line[2:].lstrip() if obsolete and not line.startswith("#~|") else line
        if not line or line.startswith("#"):
            if entry.strings:
                entries.append(entry)
                entry, at = Entry(""), None
            entry.fuzzy |= line.startswith("#,") and "fuzzy" in re.split(r"[,\s]+", line)
            continue
        keyword = KEYWORD.match(line)
        if keyword:
            name = keyword[1].partition("[")[0]
            if entry.strings and name in ("msgctxt", "msgid"):  # entries without a blank line between them
                entries.append(entry)
                entry = Entry("")
            if name == "msgid":
                entry.where = where
            if name == "msgstr" and "msgid" not in entry.ids:
                faults.append(f"{where}: msgstr without a msgid before it")
            at = int(keyword[2] or 0) if name == "msgstr" else name
            line = keyword[3]
        entry.obsolete |= obsolete
        if len(line) < 2 or line[0] != '"' or line[-1] != '"' or at is None:
            faults.append(f'{where}: expected msgid, msgid_plural, msgstr or a string in "quotes", found {line[:40]!r}')
            continue
        text = ESCAPE.sub(_unescaped, line[1:-1])
        strings: dict = entry.strings if isinstance(at, int) else entry.ids
        strings[at] = strings.get(at, "") + text
    if entry.strings:
        entries.append(entry)
    elif "msgid" in entry.ids:
        faults.append(f"{entry.where}: msgid without a msgstr; the file breaks off")
    if faults:
        raise InputError(f"{path}: is not a sound .po file", faults)
    yield from (entry for entry in entries if "msgid" in entry.ids)


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    if code[0] == "x" and len(code) > 1:
        return chr(int(code[1:], 16))
    if code.isdigit() and code[0] in "01234567":
        return chr(int(code, 8))
    return ESCAPED.get(code, code)


def _mo_entries(path: Path, data: bytes) -> Iterator[Entry]:
    """The layout is in GNU gettext's manual, "The Format of GNU MO Files": two tables of (length, offset)."""
    order = next((sign for sign in "<>" if len(data) >= 20 and struct.unpack_from(f"{sign}I", data)[0] == MAGIC), None)
    if order is None:
        raise InputError(f"{path}: is no .mo catalogue (it must start with de 12 04 95 or its reverse); was the .po meant?")
    n, originals, translations = struct.unpack_from(f"{order}3I", data, 8)

    def string(table: int, index: int) -> bytes:
        length, offset = struct.unpack_from(f"{order}2I", data, table + 8 * index)
        if offset + length > len(data):
            raise InputError(f"{path}: breaks off: entry {index + 1} of {n} ends at byte {offset + length:,}, the file at {len(data):,}")
        return data[offset : offset + length]

    try:
        raw = [(string(originals, i), string(translations, i)) for i in range(n)]
    except struct.error:
        raise InputError(f"{path}: breaks off: {n} entries are announced, the file ends at byte {len(data):,}") from None
    codec = _codec(path, next((text for key, text in raw if not key), b""))
    faults = []
    for i, (key, text) in enumerate(raw, 1):
        where = f"{path}:entry {i}"
        try:
            ids = key.decode(codec).rpartition("\x04")[2].split("\0")  # what stands before 0x04 is msgctxt
            strings = text.decode(codec).split("\0")
        except UnicodeDecodeError as error:
            faults.append(f"{where}: not {codec.upper()}: byte 0x{error.object[error.start]:02x}")
            continue
        names: dict[str, str] = dict(zip(("msgid", "msgid_plural"), ids, strict=False))
        yield Entry(where, names, dict(enumerate(strings)))
    if faults:
        raise InputError(f"{path}: is not sound", faults)
