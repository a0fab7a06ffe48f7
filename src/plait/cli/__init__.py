"""The command `plait`: parsing and printing only; what a verb does stands in `plait.verbs`."""

import errno
import os
import re
import sys
from collections.abc import Sequence

from plait import __version__
from plait.cli import show
from plait.errors import InputError
from plait.verbs import VERBS

DONE, BUG, WRONG_INPUT, INTERRUPTED, READER_GONE = 0, 1, 2, 130, 141  # 130 and 141: what a shell calls ended by SIGINT and SIGPIPE
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; a bug of ours leaves with its traceback."""
    show.streams()
    # Threads of a matrix product wait for each other by spinning. Beside any other busy program that is ruinous (a training step took
    # ten times as long, docs/log.md); after this short a spin they sleep. Read once, when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        show.finish()
        return code
    except show.ReaderGone:
        show.abandon()
        return READER_GONE
    except KeyboardInterrupt as stop:
        show.abandon()
        show.say("\n" + (str(stop) or "interrupted"))
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and show.lost(error) and _stdout_is_lost():
            return READER_GONE
        message = _explain(error)
        if message is None or os.environ.get("PLAIT_TRACEBACK"):
            raise
        show.abandon()
        show.say(f"plait: {message}")
        return WRONG_INPUT


def _dispatch(words: list[str]) -> int:
    from plait.cli import page, parse

    name, rest = (words[0], words[1:]) if words else ("", [])
    if name == "help":
        name, rest = (rest[0], ["--help"]) if rest else ("--help", [])
    if name in ("--help", "-h"):
        show.out(page.overview())
        return DONE
    if name in ("--version", "-V"):
        show.out(f"plait {__version__}")
        return DONE
    if not name:
        show.say(page.overview())
        return WRONG_INPUT
    if name not in VERBS:
        hint = "; options follow the verb" if name.startswith("-") else parse.near(name, list(VERBS))
        raise InputError(f"{name}: no such verb{hint}; plait --help lists them")
    options = rest[: rest.index("--")] if "--" in rest else rest
    if "--help" in options or "-h" in options:
        show.out(page.of_verb(name))
        return DONE
    try:
        verb = parse.parse(VERBS[name].load(), rest)
    except InputError as error:
        hint = f"plait {name} --help shows what it takes"
        raise InputError(f"{name}: {error}\n{hint}" if error.faults else f"{name}: {error}; {hint}") from None
    show.results(verb.run(), as_json=getattr(verb, "json", False) is True)
    return DONE


def _explain(error: Exception) -> str | None:
    """What the user can do about an error, or None where it is a bug of ours."""
    if isinstance(error, InputError):
        return str(error)
    full = isinstance(error, OSError) and error.errno in FULL
    if full or "No space left on device" in str(error):  # safetensors and torch write with error types of their own
        where = getattr(error, "filename", None)
        return "the disk is full" + (f" (writing {where})" if where else "") + ": free some space, or write somewhere else"
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        extras = _extras_with(error.name.partition(".")[0])
        if extras:
            return f"{error.name} is not installed: pip install 'plait[{extras[0]}]'"
    return None


def _extras_with(module: str) -> list[str]:
    from importlib import metadata

    try:
        needs = metadata.requires("plait") or []
    except metadata.PackageNotFoundError:
        return []
    found = (re.fullmatch(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"].*", need) for need in needs)
    return [match[2] for match in found if match and match[1].replace("-", "_").lower() == module.lower()]


def _stdout_is_lost() -> bool:
    """Whether a broken pipe was our own standard output, and not one to a process we started."""
    try:
        sys.stdout.flush()
    except OSError:
        show.abandon()
        return True
    except (ValueError, AttributeError):
        pass
    return False
