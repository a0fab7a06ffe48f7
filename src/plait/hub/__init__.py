"""From a name to a model ready to use."""

from pathlib import Path
from typing import Any


def place(name: str | Path) -> Path:
    """The folder that a name means: a folder's own path, a checkpoint of the zoo, or a model of the Hugging Face Hub.

    A path comes first. What looks like an id but lies beside something that is here, as `runs/mine` in a folder with `runs`, is a path.
    """
    from plait.hub import cache, zoo

    path, text = Path(name), str(name)
    if path.exists() or isinstance(name, Path):
        return path
    if text in zoo.ZOO:
        return zoo.folder_of(text)
    if cache.ID.fullmatch(text):
        return path if path.parent.exists() and not cache.cached(*text.partition("@")[::2]) else cache.folder_of(text)
    if path.name == text and not path.suffix:
        raise zoo.unknown(text)
    return path


def load(name: str | Path, device: str = "cpu", bits: int | None = None) -> Any:
    """A run folder, a released checkpoint's folder, a name of the zoo or an id of the Hugging Face Hub (`org/name`, `org/name@revision`).

    What is returned is called to let it do its task. With `bits`, 8 or 4, its matrices are rounded to so many bits a value
    (`plait.compress.quantise`): less memory, and faster where few rows are multiplied.
    """
    from plait.hub.checkpoints import is_checkpoint, open_checkpoint
    from plait.hub.runs import open_run

    folder = place(name)
    return open_checkpoint(folder, device, bits) if is_checkpoint(folder) else open_run(folder, device, bits)


def load_translator(name: str | Path) -> Any:
    """As `load`, for what is built for translators alone so far; InputError for another model."""
    from plait.errors import InputError

    model = load(name)
    if model.task != "translation":
        raise InputError(f"{name}: its task is {model.task}; this verb knows runs of translation so far")
    return model
