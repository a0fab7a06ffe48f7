"""Tuned runs: the small part that training changed, kept apart from the model it stands on."""

import zlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from plait import models, tune
from plait.compress import limited
from plait.core.model import Model, learning
from plait.errors import InputError
from plait.hub.transfer import Transfer, transfer
from plait.text.special import read_object
from plait.tune.attach import misfits


@dataclass(frozen=True)
class Tuned:
    """What stands under `tuned` in a run's config.json: on which model it stands, and which small part of it was trained.

    `also` are patterns of what was trained besides, such as a new head; `bits` those of the frozen weights.
    """

    base: str
    checksum: str  # of the weights that were taken from it
    tuning: dict[str, Any]
    also: tuple[str, ...] = ()
    bits: int | None = None

    @classmethod
    def of(cls, said: Mapping[str, Any], where: Path) -> "Tuned":
        try:
            return cls(**{**said, "also": tuple(said["also"])})
        except (TypeError, KeyError, AttributeError):
            raise InputError(f"{where}: what it says under `tuned` is not what `plait tune` writes: the file was changed") from None

    def written(self) -> dict[str, Any]:
        return asdict(self) | {"also": list(self.also)}


def begun(net: Model, base: str, found: Transfer, tuning: Any, bits: int | None = None) -> Tuned:
    """`net`, which was filled in from the model `base`, takes the parts that are to be trained, in place."""
    tuned = Tuned(absolute(base), checksum(net.state_dict(), found.all), tune.described(tuning), tuple(found.new), bits)
    if bits is not None:
        limited(net, bits)
    attach(net, tuned)
    return tuned


def attach(net: Model, tuned: Tuned) -> None:
    tune.attach(net, tune.tuning_of(tuned.tuning), also=tuned.also)


def from_base(net: Model, tuned: Tuned, where: Path) -> None:
    """A freshly built model takes the weights it stands on. InputError where the base is gone, or another one now."""
    from plait.hub import load

    try:
        old = load(tuned.base).net
    except InputError as error:
        raise InputError(f"{where}: stands on the model {tuned.base}, which cannot be opened: {error.message}", error.faults) from None
    found = transfer(old, net)
    if (now := checksum(net.state_dict(), found.all)) != tuned.checksum:
        then = f"{tuned.checksum}, now it is {now}"
        raise InputError(f"{where}: stands on the model {tuned.base}, whose weights have changed since: their checksum was {then}")
    if tuned.bits is not None:
        limited(net, tuned.bits)


def open_tuned(net: Model, said: Mapping[str, Any], weights: Path, finished: bool, apart: bool = False) -> None:
    """A freshly built model becomes the tuned one. What can be merged into its weights is, so that it is as fast as untuned; not with
    `apart`. `weights` are what `tune.small` gave, or where training was stopped (not `finished`) the best of a checkpoint.
    """
    where = weights.parent / "config.json"
    tuned = Tuned.of(said, where)
    from_base(net, tuned, where)
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{weights}: is not a whole safetensors file ({error}); copy it anew") from None
    try:
        if finished:
            tune.load_small(net, tune.tuning_of(tuned.tuning), tensors)
        else:
            attach(net, tuned)
            wanted = learning(net)
            if faults := misfits({name: t.shape for name, t in wanted.items()}, tensors):
                raise InputError("these tensors are those of another model, or of another tuning", faults)
            with torch.no_grad():
                for name, t in wanted.items():
                    t.copy_(tensors[name])
    except InputError as error:
        raise InputError(f"{weights}: {error.message}", error.faults) from None
    if not apart and tune.mergeable(net):
        tune.merge(net, keep=False)


def open_peft(folder: Path, device: str, bits: int | None) -> Any:
    """A folder of PEFT's: the model that it names, with its small part on."""
    from plait.hub import load
    from plait.hub.peft_files import CONFIG, read_peft

    base = read_object(folder / CONFIG, "the object of an adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(f"{folder / CONFIG}: does not say on which model it stands: add base_model_name_or_path")
    try:
        model = load(base, device, bits)
    except InputError as error:
        raise InputError(f"{folder}: stands on the model {base}, which cannot be opened: {error.message}", error.faults) from None
    read_peft(folder, model.net, model.parts.settings)
    if tune.mergeable(model.net):
        tune.merge(model.net, keep=False)
    model.net.eval()
    return model


def write_as_peft(folder: Path, out: Path) -> dict[str, Any]:
    """The small part of a tuned run as a folder of PEFT's; InputError where PEFT or its model has no names for it."""
    from plait.hub.checkpoints import is_checkpoint
    from plait.hub.peft_writing import write_peft
    from plait.hub.runs import WEIGHTS, read_config

    config = {} if is_checkpoint(folder) else read_config(folder)
    if "tuned" not in config or not (folder / WEIGHTS).exists():
        raise InputError(f"{folder}: is no finished run of `plait tune`, whose small part is what PEFT's folders hold")
    net = models.build(config["arch"], config["config"])
    open_tuned(net, config["tuned"], folder / WEIGHTS, finished=True, apart=True)
    settings = models.PAGES[config["arch"]].Config(**{name: value for name, value in config["config"].items() if name != "shape"})
    write_peft(net, settings, out, base=config["tuned"]["base"])
    return {"tensors": len(tune.small(net)), "base": config["tuned"]["base"]}


def absolute(base: str) -> str:
    """A path from everywhere; a name as it is."""
    return str(Path(base).resolve()) if Path(base).exists() else base


@torch.no_grad()
def checksum(state: Mapping[str, Tensor], names: Iterable[str]) -> str:
    """Of the tensors of these names: those that were taken from the base."""
    total = 0
    for name in sorted(names):
        total = zlib.crc32(state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def adapt(model: Any, **runs: str | Path) -> None:
    """Puts the small parts of tuned runs on a loaded model, side by side, each under the name it is given by.

    `with plait.using(model, name): ...` answers with one of them; outside, the model is as it was. InputError says of every run in what
    it is of another model.
    """
    from plait.hub import place
    from plait.hub.runs import CONFIG, WEIGHTS, read_config

    net, faults, found = model.net, list[str](), dict[str, tuple[Tuned, dict[str, Tensor]]]()
    with tune.using(net, None):
        own = {name: t for name, t in net.state_dict().items() if not name.startswith("tunings.")}
    for name, run in runs.items():
        folder = place(run)
        config, weights = read_config(folder), folder / WEIGHTS
        if "tuned" not in config or not weights.exists():
            faults.append(f"{run}: is no finished run of `plait tune`")
            continue
        tuned = Tuned.of(config["tuned"], folder / CONFIG)
        with torch.device("meta"):
            shapes = {path: t.shape for path, t in models.build(config["arch"], config["config"]).state_dict().items()}
        if {path: t.shape for path, t in own.items()} != shapes:
            faults.append(f"{run}: is of a model with other tensors; open it alone")
        elif tuned.bits is None and checksum(own, set(own) - set(tuned.also)) != tuned.checksum:
            faults.append(f"{run}: stands on other weights than these, those of {tuned.base}")
        else:
            found[name] = tuned, load_file(weights)
    if faults:
        raise InputError("these runs cannot be put on this model", faults)
    for name, (tuned, tensors) in found.items():
        tune.load_small(net, tune.tuning_of(tuned.tuning), tensors, name)
    tune.select(net, None)
    net.eval()


def using(model: Any, name: str | None) -> AbstractContextManager[Any]:
    """Within it, a loaded model answers with the small part of this name (`adapt`); None: with none."""
    return tune.using(model.net, name)
