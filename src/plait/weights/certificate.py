"""What a load proved: which tensor filled what, which ties held, what was left out and why."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Tied:
    """A name that a file may hold as a second copy of another. `found` says how this file has it, so that writing back equals it."""

    of: str
    found: str  # "absent"; "copy": there, with the same bits; "instead": only the copy is there


@dataclass(frozen=True)
class Made:
    """A tensor of the file that the model computes: found equal bit for bit (`exact`), else within one rounding of its dtype."""

    what: str
    dtype: str
    exact: bool


@dataclass(frozen=True)
class Certificate:
    """Every tensor of the file is in exactly one of `claimed`, `ties`, `dropped` and `computed`; every parameter was filled once."""

    path: str
    claimed: dict[str, tuple[str, ...]]  # the file's names, in its order -> the parameters that were filled from it
    ties: dict[str, Tied] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)  # name -> why
    computed: dict[str, Made] = field(default_factory=dict)
    order: tuple[str, ...] = ()  # every name of the file, as they stand there
    dtypes: dict[str, int] = field(default_factory=dict)  # as read -> how many of the claimed tensors
    cast: str | None = None  # what they were converted to; None: kept as read, so that export gives the file's bits back
    bare: str = ""  # the prefix of the table that this file's names lack
    numbers: int = 0  # values filled

    def __str__(self) -> str:
        dtypes = ", ".join(f"{n} {dtype}" if len(self.dtypes) > 1 else dtype for dtype, n in sorted(self.dtypes.items()))
        filled = sum(len(ours) for ours in self.claimed.values())
        converted = f", converted to {self.cast}" if self.cast else ""
        lines = [f"{self.path}: {len(self.claimed)} tensors fill {filled} parameters, {self.numbers:,} numbers ({dtypes}{converted})"]
        how = {
            "absent": "not in the file",
            "copy": "in the file too, verified bit for bit",
            "instead": "the only one of the two in the file",
        }
        lines += [f"  tied     {name} = {tied.of} ({how[tied.found]})" for name, tied in self.ties.items()]
        lines += [
            f"  computed {name}: {made.what}, {'equal bit for bit' if made.exact else f'equal within one rounding of {made.dtype}'}"
            for name, made in self.computed.items()
        ]
        for why, count in Counter(self.dropped.values()).items():
            first = next(name for name, reason in self.dropped.items() if reason == why)
            lines.append(f"  dropped  {first}{f' and {count - 1} like it' if count > 1 else ''}: {why}")
        if self.bare:
            lines.append(f"  names    without their usual prefix {self.bare!r}")
        return "\n".join(lines)
