"""`plait data`."""

from dataclasses import asdict, dataclass
from typing import Annotated

from plait.errors import InputError
from plait.verbs import Rows, positional


@dataclass
class Data:
    """List the built-in data sets, or say what is in one of them."""

    name: Annotated[str | None, positional, "a data set"] = None
    json: Annotated[bool, "write JSON"] = False

    def run(self) -> Rows:
        """One row a set; nothing is fetched."""
        from plait.data.builtin import sets

        rows = Rows(asdict(line) for line in sets() if self.name in (None, line.name))
        if not rows:
            raise InputError(f"{self.name}: no such data set; plait data lists them")
        return rows
