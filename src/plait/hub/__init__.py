"""From a name to a model ready to use."""

from pathlib import Path
from typing import Any


def place(name: str | Path) -> Path:
    """The folder that a name means: a folder's own path, or a checkpoint of the zoo."""
    from plait.hub.zoo import ZOO, folder_of

    return folder_of(str(name)) if str(name) in ZOO and not Path(name).exists() else Path(name)


def load(name: str | Path, device: str = "cpu") -> Any:
    """A run folder, a released checkpoint's folder or a name of the zoo, opened: call it to let it do its task."""
    from plait.hub.checkpoints import is_checkpoint, open_checkpoint
    from plait.hub.runs import open_run

    folder = place(name)
    return open_checkpoint(folder, device) if is_checkpoint(folder) else open_run(folder, device)


def load_translator(name: str | Path) -> Any:
    """As `load`, for what is built for translators alone so far; InputError for another model."""
    from plait.errors import InputError

    model = load(name)
    if model.task != "translation":
        raise InputError(f"{name}: its task is {model.task}; this verb knows runs of translation so far")
    return model
