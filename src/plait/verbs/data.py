"""plait data: the built-in data sets, as a list or as files."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from plait.errors import InputError
from plait.verbs import Rows, positional


@dataclass
class Data:
    """List the built-in data sets, or write one of them as a file."""

    name: Annotated[str | None, positional, "a data set"] = None
    part: Annotated[Literal["train", "test", "all"], "test is the fixed twentieth that is never trained on"] = "all"
    out: Annotated[
        Path | None, "FILE", "write it there, in the form of its task: TSV, CoNLL, SQuAD's JSON, JSON lines, zip; - is standard output"
    ] = None
    json: Annotated[bool, "write JSON"] = False

    def run(self) -> Any:
        """The list (nothing is fetched), what is in one set, or its lines."""
        from plait.data.builtin import sets, written

        if self.name is None:
            if self.out is not None:
                raise InputError(f"--out {self.out}: which data set is to be written? `plait data` lists them")
            return Rows(asdict(line) for line in sets())
        data, suffix, rows = written(self.name, self.part)
        packed = suffix == ".zip"
        if self.out is None:
            begins = {} if packed else {"begins": data.decode()[:300]}
            return {"name": self.name, "part": self.part, "rows": rows, "file": suffix, **begins}
        if str(self.out) == "-":
            if packed:
                raise InputError(f"--out -: {self.name} is a zip archive of pictures, which is no text: give the name of a file")
            return iter(data.decode().splitlines())
        from plait.train.checkpoints import write_atomically

        write_atomically(self.out, data)
        return {"written": str(self.out), "rows": rows}
