"""Results on standard output, everything else on standard error, whatever the encoding, the reader or the disk do."""

import dataclasses
import errno
import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any


class ReaderGone(Exception):
    """Whoever read our output has closed it, as `head` does: no error, nothing left to say."""


def streams() -> None:
    """UTF-8 into files and pipes, whatever the locale (on Windows it would be a code page); on a terminal, `?` for what it cannot show."""
    if "PYTHONIOENCODING" in os.environ:
        return
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace" if stream.isatty() else "backslashreplace")


def results(value: Any, as_json: bool = False) -> None:
    """Prints what a verb's `run()` gave back (the rules stand in `plait.verbs`)."""
    if value is None:
        return
    if isinstance(value, Iterator):
        for item in value:
            if item == "" and not as_json:
                out("")  # an empty answer keeps its line
            else:
                results(item, as_json)
    elif as_json or isinstance(value, Mapping) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        out(json.dumps(plain(value), ensure_ascii=False, allow_nan=False))
    elif text := str(value):
        out(text)


def plain(value: Any) -> Any:
    """A result in JSON's own types; a number that is not finite becomes null, since JSON has no word for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | Iterator):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    tolist = getattr(value, "tolist", None)  # numpy's and torch's arrays and numbers have it; neither need be imported
    if callable(tolist):
        return plain(tolist())
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def out(text: str) -> None:
    """One line or more on standard output, seen at once."""
    if sys.stdout is None:
        return
    try:
        print(text, flush=True)
    except OSError as error:
        if lost(error):
            raise ReaderGone from None
        raise


def lost(error: OSError) -> bool:
    """Whether this is how a write says that the reader has gone (Windows says EINVAL)."""
    return isinstance(error, BrokenPipeError) or (sys.platform == "win32" and error.errno == errno.EINVAL)


def say(text: str) -> None:
    """One line or more on standard error; if that is gone, silence."""
    try:
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)
    except OSError:
        pass


def finish() -> None:
    """Writes out what is still in the buffer, so that a full disk or a closed pipe shows here and not as Python leaves."""
    if sys.stdout is None or sys.stdout.closed:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        if lost(error):
            raise ReaderGone from None
        raise


def abandon() -> None:
    """Standard output cannot be written any more: what its buffer holds goes nowhere, or Python would complain again while leaving."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        except (OSError, ValueError, AttributeError):
            pass
