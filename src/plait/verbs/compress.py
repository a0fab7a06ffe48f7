"""plait compress: a finished model made smaller, with what that costs and brings beside it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from plait.errors import InputError
from plait.verbs import Rows, positional
from plait.verbs.numbers import number_faults

Method = Literal["int8", "int4", "gptq", "awq", "heads", "units", "layers", "magnitude", "2:4"]
CALIBRATED = ("gptq", "awq")  # cannot do without data
SHARED = ("heads", "units", "layers", "magnitude")  # take out a share


@dataclass
class Compress:
    """Make a finished model smaller, and say what that costs in quality and brings in bytes and time."""

    model: Annotated[str, positional, "a run folder, a released checkpoint's folder, or a name such as smollm2"]
    method: Annotated[
        list[Method],
        "int8, int4: nearest values; gptq, awq: 4 bits that know the data; heads, units, layers: a share goes; magnitude, 2:4: zeros that "
        "save no time here; several are compared",
    ]
    out: Annotated[Path, "DIR", "the run to make; of several methods or shares, a folder of runs, table.json and trade-off.png"]
    share: Annotated[list[float], "what part of the heads, units, layers or weights goes; several are compared (default 0.33)"] = field(
        default_factory=lambda: [0.33]
    )
    data: Annotated[list[str], "FILES", "what to calibrate on, as for train; gptq and awq need it, to the others it says what matters"] = (
        field(default_factory=list)
    )
    columns: Annotated[list[str], "NAME=COLUMN", "as for train"] = field(default_factory=list)
    tokens: Annotated[int, "tokens or patches to calibrate on"] = 16384
    valid: Annotated[list[str], "FILES", "what quality is measured on, as by eval; default: as of eval"] = field(default_factory=list)
    limit: Annotated[int | None, "measure quality on the first so many inputs"] = None
    seed: Annotated[int, "of the order of the data"] = 0
    threads: Annotated[int | None, "CPU threads; default: all cores"] = None
    json: Annotated[bool, "one JSON list of rows"] = False

    def run(self) -> Rows:
        """A row for the model as it was, and one for each result: megabytes, times as fast, and the figures of `plait eval`."""
        faults = number_faults(self, ("tokens", "limit", "threads"), ("seed",))
        faults += [f"--share {share}: must be above 0 and below 1" for share in self.share if not 0 < share < 1]
        faults += [f"--method {m} needs --data FILES to calibrate on" for m in self.method if m in CALIBRATED and not self.data]
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            faults.append(f"--out {self.out}: is not empty: choose another folder")
        if faults:
            raise InputError("this model cannot be compressed so", faults)
        from plait.verbs.compressing import compressed

        return compressed(self)

    def jobs(self) -> list[tuple[str, float | None]]:
        """Each method with each share where it takes one, once."""
        found: list[tuple[str, float | None]] = [(m, share) for m in self.method for share in (self.share if m in SHARED else [None])]
        return list(dict.fromkeys(found))
