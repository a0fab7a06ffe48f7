"""From a name to a model ready to use."""

from pathlib import Path
from typing import Any


def load(name: str | Path, device: str = "cpu") -> Any:
    """A run folder, opened: call it to let it do its task."""
    from plait.hub.runs import open_run

    return open_run(Path(name), device)
