"""`plait models`."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from plait.verbs import Rows


@dataclass
class Models:
    """List the models there are."""

    json: Annotated[bool, "write JSON"] = False

    def run(self) -> Rows:
        """One row a paper, read from the files of `plait.models` without importing them."""
        folder = Path(__file__).parents[1] / "models"
        pages = sorted(file for file in folder.glob("*.py") if not file.name.startswith("_"))
        return Rows({"model": file.stem, "what": _first_line(file)} for file in pages)


def _first_line(file: Path) -> str:
    doc = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return doc.partition("\n")[0]
