"""From a name to a model ready to use."""

from collections.abc import Sequence
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


def load(name: str | Path | Sequence[str | Path], device: str = "cpu", bits: int | None = None, exact: bool = False) -> Any:
    """A run folder, a folder of a released checkpoint or of PEFT's, a name of the zoo or an id of the Hugging Face Hub (`org/name@main`).

    What is returned is called to let it do its task. With `bits`, 8 or 4, its matrices are rounded to so many bits a value
    (`plait.compress.quantise`) as they are read: less memory, and faster where few rows are multiplied. A GGUF's blocks that have no more
    bits (Q4_0 and Q4_1; for 8 also Q8_0) are used as they are. Several names of models with one vocabulary make an ensemble, which answers
    by the mean of their log-probabilities. With `exact` an answer is the same to the last bit alone and in any batch, at the price of
    speed; `plait.generate.layout.exactly` says what that needs.
    """
    from plait.generate.layout import exactly
    from plait.hub.checkpoints import is_checkpoint, open_checkpoint
    from plait.hub.runs import open_run
    from plait.hub.tuned import open_peft

    if not isinstance(name, str | Path):
        from plait.hub.together import together

        members = [(str(one), load(one, device, bits, exact)) for one in name]
        return members[0][1] if len(members) == 1 else together(members)
    folder = place(name)
    if (folder / "adapter_config.json").is_file():
        model = open_peft(folder, device, bits)
    else:
        model = open_checkpoint(folder, device, bits) if is_checkpoint(folder) else open_run(folder, device, bits)
    if exact:
        exactly(model.net)
    return model
