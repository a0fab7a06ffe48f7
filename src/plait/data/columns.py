"""Which columns of a table are read, how they are found by name, and what may stand in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from plait.errors import InputError, choices

LONGEST = 10_000_000  # characters of one row: beyond that a quote or a line end is missing far more often than a text is so long
TEXT = (str,)
WORDS = {
    str: "a string",
    bytes: "bytes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


@dataclass(frozen=True, slots=True)
class Row:
    """The values of one row, by the names that were asked for, and the place it was read from (`file:line`)."""

    values: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Wanted:
    """Which columns are read: those `needed` and those that are `optional`.

    A column is found under the name that `columns` gives it, else under its own or one of its `aliases`, capitals aside. Its values
    are of one of `kinds[name]` (strings unless said: in CSV, TSV and plain text everything is one). A text line is the only needed one.
    """

    needed: Sequence[str]
    optional: Sequence[str] = ()
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, tuple[type, ...]] = field(default_factory=dict)
    longest: int | None = LONGEST

    def __post_init__(self):
        if strangers := [name for name in self.columns if name not in self.names]:
            raise InputError(f"--columns: there is no {choices(strangers)} to give a column to; what is read here is {choices(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.needed, *self.optional)

    @property
    def by_number(self) -> bool:
        """Whether the columns were given as numbers, from 1: a table without a header line."""
        return bool(self.columns) and all(column.isdecimal() and int(column) > 0 for column in self.columns.values())

    def found(self, there: Sequence[str]) -> dict[str, str]:
        """name -> the column it is in, of those that are there."""
        plain = {column.strip().lower(): column for column in reversed(list(there))}
        found = {}
        for name in self.names:
            for known in (self.columns[name],) if name in self.columns else (name, *self.aliases.get(name, ())):
                if (column := known if known in there else plain.get(known.lower())) is not None:
                    found[name] = column
                    break
        return found

    def lacking(self, found: Mapping[str, str], there: Sequence[str]) -> str | None:
        """What to say of needed (or expressly named) columns that are not there."""
        missing = [name for name in self.names if name not in found and (name in self.needed or name in self.columns)]
        if not missing:
            return None
        sought = [self.columns.get(name, name) for name in missing]
        near = [close[0] for word in sought if (close := get_close_matches(word, there, n=1))]
        hint = f"; did you mean {choices(near)}?" if near else ""
        free = [name for name in missing if name not in self.columns]
        say = f"; say which one it is: --columns {' '.join(f'{name}=COLUMN' for name in free)}" if free else ""
        return f"{choices(map(repr, sought))}; there is {', '.join(map(repr, there[:20])) or 'nothing'}{hint}{say}"

    def values(self, record: Mapping[str, Any]) -> dict[str, Any] | tuple[str, str]:
        """The wanted ones of a record, or (kind of fault, this fault). Null is the same as absent."""
        record = {key: value for key, value in record.items() if value is not None}
        there = list(record)
        found = self.found(there)
        if (lacking := self.lacking(found, there)) is not None:
            return "missing column", lacking
        values = {name: record[column] for name, column in found.items()}
        size = 0
        for name, value in values.items():
            kinds = self.kinds.get(name, TEXT)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                expected = choices(WORDS[kind] for kind in kinds)
                return "wrong type", f"{found[name]!r} is {WORDS.get(type(value), 'something else')}, {shown(value)}; expected {expected}"
            if not isinstance(value, str):
                continue
            size += len(value)
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    return "half of a surrogate pair", f"in {found[name]!r}: \\ud800 to \\udfff alone is no character"
        if self.longest is not None and size > self.longest:
            return "too long a row", f"{size:,} characters, more than {self.longest:,}; is a quote or a line end missing?"
        return values


def columns_of(words: Sequence[str]) -> dict[str, str]:
    """`["text=Body", ...]`, as `--columns` gives it, by name."""
    if faults := [f"{word!r} is not of the form NAME=COLUMN" for word in words if not all(word.partition("="))]:
        raise InputError("--columns cannot be read", faults)
    return {name.strip(): column.strip() for name, _, column in (word.partition("=") for word in words)}


def shown(value: Any) -> str:
    """The beginning of a value, to be recognised by."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    return text if len(text := repr(value)) <= 40 else text[:37] + "..."
