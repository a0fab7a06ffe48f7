"""A model that was made smaller, written as a run: `plait.load`, `plait run`, `eval` and `train --model` take it like any other."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plait import models
from plait.errors import InputError
from plait.hub import runs
from plait.hub.checkpoints import is_checkpoint
from plait.hub.pictures import FILE
from plait.hub.writing import copy_beside
from plait.text.saving import keep_tokenizer
from plait.weights.rules import stored
from plait.weights.safetensors_writer import write_safetensors

# What the run of a released model is called that does this; what it does is seen from the model itself.
TASKS = {"generate": "language-model", "fill-mask": "masked-lm", "text-to-text": "masked-lm", "translate": "masked-lm"}
POOLING = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")  # of sentence-transformers


def write_run(model: Any, place: Path, folder: Path, about: dict[str, Any]) -> None:
    """What `plait.load(place)` gave, its net changed since, into an existing folder: config.json, weights, and what answering needs.

    `about` is kept in config.json under `compressed`. `place` is a run or a checkpoint.
    """
    if is_checkpoint(place):
        described = released(model)
        beside_released(model, place, folder)
    else:
        described = runs.read_config(place)
        copy_beside(place, folder)
    config = {name: value for name, value in described["config"].items() if name != "shape"}
    shape = {"shape": list(model.net.shape)} if model.net.shape else {}
    _write(folder / runs.CONFIG, {**described, "config": config | shape, "compressed": [*described.get("compressed", ()), about]})
    write_safetensors(folder / runs.WEIGHTS, stored(model.net))


def released(model: Any) -> dict[str, Any]:
    """config.json of a run, of a checkpoint that is ready."""
    parts = model.parts
    arch = next((name for name, page in models.PAGES.items() if type(parts.settings) is page.Config), None)
    if arch is None:
        raise InputError(f"{parts.folder}: is of a page that no run can name")
    # Of a GGUF's metadata, vocabularies stand in the tokenizer's own file.
    said = {name: value for name, value in parts.config.items() if isinstance(value, str | int | float | bool | None | dict)}
    said |= {name: value for name, value in parts.config.items() if isinstance(value, list) and not name.startswith("tokenizer.")}
    task = TASKS.get(model.task, model.task)
    config = {"format": runs.FORMAT, "task": task, "arch": arch, "config": asdict(parts.settings)}
    return config | {"max_length": parts.max_length, "answers": said, "generation": parts.generation}


def beside_released(model: Any, place: Path, folder: Path) -> None:
    """The tokenizer, what is done to pictures, how vectors are pooled."""
    parts = model.parts
    if parts.tokenizers is not None:
        source, target = parts.tokenizers
        keep_tokenizer(folder, source)
        if target is not source:
            raise InputError(f"{place}: has a tokenizer for each side, which no run of a released model keeps")
    if parts.preparation is not None:
        _write(folder / FILE, parts.preparation.written())
    for name in POOLING if place.is_dir() else ():
        if (place / name).is_file():
            (folder / name).write_bytes((place / name).read_bytes())
    for path in place.glob("[0-9]_*/config.json") if place.is_dir() else ():
        (folder / path.parent.name).mkdir()
        (folder / path.parent.name / path.name).write_bytes(path.read_bytes())


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
