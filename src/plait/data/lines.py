"""Files of the user, plain or gzipped, as numbered lines of text with every unusable line accounted for."""

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from plait.data.report import Finding, Report
from plait.errors import InputError

# Above this share of unusable lines the file is not what it is taken for (other encoding, other format), and going
# on would train on a rest that nobody chose. Below it the lines are dropped and counted: crawled text always has some.
TOLERATED = 0.01
REMEMBERED = 1000  # single faults kept in memory for one file; beyond that they are only counted

T = TypeVar("T")

BOMS = (  # UTF-32 first: its little-endian mark starts with the one of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def open_bytes(path: Path) -> io.BufferedReader:
    """The file's bytes, unpacked when it is gzip (seen from its first bytes). InputError when it cannot be opened."""
    if path.is_dir():
        raise InputError(f"{path}: is a directory; expected a file (give the files in it)")
    try:
        stream = open(path, "rb")  # noqa: SIM115 - handed on
    except FileNotFoundError:
        beside = "" if path.parent.exists() else f" (there is no directory {path.parent} either)"
        raise InputError(f"{path}: no such file{beside}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if stream.peek(2)[:2] == b"\x1f\x8b":
        unpacked = gzip.GzipFile(fileobj=stream)
        unpacked.myfileobj = stream  # type: ignore[assignment] - closed together, as gzip.open does
        return io.BufferedReader(unpacked)  # type: ignore[arg-type]
    if path.suffix == ".gz" and stream.peek(1):
        stream.close()
        raise InputError(f"{path}: is named .gz but does not hold gzip data; expected the bytes 1f 8b at its start")
    return stream


def guarded(path: Path, read: Callable[[], T]) -> T:
    """`read()`, with the ways in which reading breaks off turned into an InputError."""
    try:
        return read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        kind = "breaks off before its end" if isinstance(error, EOFError) else f"is damaged ({error})"
        raise InputError(f"{path}: the gzip data {kind}; fetch or pack the file again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_all(path: Path) -> bytes:
    """All (unpacked) bytes of a file."""
    with open_bytes(path) as stream:
        return guarded(path, stream.read)


class LineFile:
    """One file of lines: iterate it for `(number, text)`, where text is None for a line that could not be decoded.

    The reader of the format calls `bad` for lines that it cannot use, and `settle` at the end: a share below
    `TOLERATED` is dropped and counted, more is an error that lists the lines. Lines end with LF or CR LF and with nothing
    else: characters such as U+2028 stay inside a line, so that parallel files keep in step.
    """

    def __init__(self, path: Path, encoding: str = "utf-8", keep_ends: bool = False):
        """With `keep_ends` a line's text has the end that it has in the file."""
        self.path, self.encoding, self.keep_ends = path, encoding, keep_ends
        self.n_lines = 0
        self.n_bad = 0
        self.reasons: dict[str, Finding] = {}
        self.faults: list[str] = []

    def __iter__(self) -> Iterator[tuple[int, str | None]]:
        with open_bytes(self.path) as stream:
            first = guarded(self.path, lambda: stream.peek(4)[:4])
            wide = next((name for mark, name in BOMS if first.startswith(mark)), None)
            if wide:
                stream = self._as_utf8(guarded(self.path, stream.read), wide)
            elif first.startswith(codecs.BOM_UTF8):
                stream.read(3)
            offset = 3 if first.startswith(codecs.BOM_UTF8) else 0
            while raw := guarded(self.path, stream.readline):
                self.n_lines += 1
                yield self.n_lines, self._decoded(raw, offset)
                offset += len(raw)

    def _as_utf8(self, data: bytes, encoding: str) -> io.BufferedReader:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.path}: starts with a {encoding.upper()} mark but breaks off or is damaged at byte {error.start}; save it as UTF-8"
            ) from None
        return io.BufferedReader(io.BytesIO(text.encode("utf-8", "surrogatepass")))  # type: ignore[arg-type]

    def _decoded(self, raw: bytes, offset: int) -> str | None:
        if not self.keep_ends:
            raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        if b"\0" in raw:
            hint = "the file may be UTF-16 without a mark, or no text at all; save it as UTF-8"
            self.bad(self.n_lines, "holds a NUL byte", f"at byte {offset + raw.index(0)} of the file; {hint}")
            return None
        try:
            return raw.decode(self.encoding)
        except UnicodeDecodeError as error:
            at, name = error.start, self.encoding.upper()
            detail = f"byte 0x{raw[at]:02x} at byte {offset + at} of the file ({error.reason}); save the file as {name}"
            self.bad(self.n_lines, f"not {name}", detail)
            return None

    def where(self, number: int) -> str:
        return f"{self.path}:{number}"

    def bad(self, number: int, reason: str, detail: str = "") -> None:
        """Line `number` cannot be used: `reason` is the kind of fault (counted together), `detail` this one."""
        self.n_bad += 1
        self.reasons.setdefault(reason, Finding()).add(self.where(number))
        if len(self.faults) < REMEMBERED:
            self.faults.append(f"{self.where(number)}: {reason}{': ' if detail else ''}{detail}")

    def settle(self, report: Report) -> list[str]:
        """The faults of this file; when they are few, they go into the report instead and the list is empty."""
        if self.n_bad < TOLERATED * self.n_lines:
            for reason, finding in self.reasons.items():
                report.dropped.setdefault(reason, Finding()).merge(finding)
            return []
        if self.n_bad > len(self.faults):
            self.faults.append(f"{self.path}: {self.n_bad:,} such lines in all")
        return self.faults
