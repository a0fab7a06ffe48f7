"""What a user sees when the input is wrong: what was given, what was expected, what to do, all faults at once."""

from collections.abc import Iterable

SHOWN = 20  # faults printed before the rest are only counted; a file of a million bad lines must stay readable


class InputError(ValueError):
    """The caller's input cannot be used. The command line prints it without a traceback and exits with code 2.

    `faults` are the single findings (one line each, with file and line number where there is one).
    """

    def __init__(self, message: str, faults: Iterable[str] = ()):
        self.message, self.faults = message, list(faults)
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.message, *(f"  - {fault}" for fault in self.faults[:SHOWN])]
        if len(self.faults) > SHOWN:
            lines.append(f"  ... and {len(self.faults) - SHOWN} more")
        return "\n".join(lines)


def choices(names: Iterable[str]) -> str:
    """Names as a readable list for an error message: `a, b or c`."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last
