"""plait data: the built-in data sets, as a list or as files."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from plait.errors import InputError
from plait.verbs import Rows, positional


@dataclass
class Data:
    """List the built-in data sets, or write one of them as TSV."""

    name: Annotated[str | None, positional, "a data set"] = None
    part: Annotated[Literal["train", "test", "all"], "test is the fixed twentieth that is never trained on"] = "all"
    out: Annotated[Path | None, "FILE", "write it there as TSV: source, tab, target; - is standard output"] = None
    json: Annotated[bool, "write JSON"] = False

    def run(self) -> Any:
        """The list (nothing is fetched), what is in one set, or its lines."""
        from plait.data.builtin import load, sets

        if self.name is None:
            if self.out is not None:
                raise InputError(f"--out {self.out}: which data set is to be written? `plait data` lists them")
            return Rows(asdict(line) for line in sets())
        pairs = load(self.name, self.part)
        lines = (f"{pair.source}\t{pair.target}" for pair in pairs)
        if self.out is None:
            sources = len({pair.source for pair in pairs})
            return {
                "name": self.name,
                "part": self.part,
                "pairs": len(pairs),
                "sources": sources,
                "first": [asdict(pair) for pair in pairs[:3]],
            }
        if str(self.out) == "-":
            return lines
        from plait.train.checkpoints import write_atomically

        write_atomically(self.out, "".join(f"{line}\n" for line in lines).encode())
        return {"written": str(self.out), "pairs": len(pairs)}
