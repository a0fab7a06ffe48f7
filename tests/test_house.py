"""The rules of the house, as tests: who may import whom, and what importing costs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "plait"

# Room -> rooms it may import; a dotted name is that module alone. Every room may import itself, errors and places.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "places": set(),
    "core": set(),
    "weights": set(),
    "models": {"core", "weights.rules"},
    "text": set(),
    "media": set(),
    "data": {"text", "media"},
    "generate": {"core"},
    "tune": {"core"},
    "compress": {"core"},
    "inspect": {"core"},
    "tasks": {"core", "data", "text", "media", "generate"},
    "train": {"core", "data", "tasks"},
    "hub": {"core", "models", "weights", "text", "media", "tasks", "generate", "tune", "compress", "inspect", "data.packages"},
    "serve": {"hub", "generate", "tasks", "text", "media", "inspect", "tune"},
    "cli": {"verbs", "__init__"},
    "__init__": {"hub"},
}
ROOMS["verbs"] = {room for room in ROOMS if room != "cli"}
ROOMS["bench"] = set(ROOMS)
FRONT_DOOR = {("verbs", "serve")}  # these may import the room, and nothing inside it

# Rooms whose third-party imports are limited; the standard library is free. Others take what they need.
LIBRARIES: dict[str, set[str]] = {
    "errors": set(),
    "places": set(),
    "__init__": set(),
    "cli": set(),
    "core": {"torch", "jaxtyping"},
    "models": {"torch"},
    "weights": {"torch", "numpy", "safetensors"},
}
REFERENCES = {"accelerate", "ctranslate2", "diffusers", "fairseq2", "peft", "timm", "torchtune", "transformers"}  # in bench and tests only


# ---- who may import whom ----


def room_of(module: str) -> str:
    """The room of `plait.room.rest`, or of a file's path written so; `__init__` is the package's own front."""
    return [*module.split("."), "__init__"][1]


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(module: str, source: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, in functions too; `from plait.core import masks` counts as plait.core.masks."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            yield from ((node.lineno, f"{origin}.{name.name}") for name in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                yield node.lineno, node.args[0].value


def import_faults(module: str, source: str, is_package: bool = False) -> list[str]:
    room = room_of(module)
    if room not in ROOMS:
        return [f"{module}: the room {room} is not in the table of rooms: add it to ROOMS in {Path(__file__).name}, and to the design"]
    faults = []
    for line, name in imports(module, source, is_package):
        where = f"{module}:{line}: {room} must not import {name}"
        top = name.split(".")[0]
        if top == "plait":
            faults += [where] * (not _may(room, name))
        elif top in REFERENCES and room != "bench":
            faults.append(f"{where}: reference implementations are for bench and tests")
        elif room in LIBRARIES and top not in LIBRARIES[room] | set(sys.stdlib_module_names) | {"__future__"}:
            faults.append(f"{where}: it has the standard library and {', '.join(sorted(LIBRARIES[room])) or 'nothing else'}")
    return faults


def _may(room: str, name: str) -> bool:
    target = room_of(name)
    if target not in ROOMS:  # plait.load and the like: names of the front, or rooms nobody knows
        target = "__init__"
    if target in (room, "errors", "places"):
        return True
    if (room, target) in FRONT_DOOR:
        return name.count(".") <= 1 or not (SRC / Path(*name.split(".")[1:])).with_suffix(".py").exists()
    inside = name.removeprefix("plait.")
    return any(inside == allowed or inside.startswith(allowed + ".") or target == allowed for allowed in ROOMS[room])


def sources() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def test_every_room_imports_only_what_it_may():
    faults = [fault for path in sources() for fault in import_faults(module_of(path), path.read_text("utf-8"), path.name == "__init__.py")]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("plait.core.attention", "from plait.models import gpt2"),
        ("plait.core.attention", "import numpy as np"),
        ("plait.core.attention", "def f():\n    import plait.data.pairs"),
        ("plait.core.attention", "from ..weights import rules"),
        ("plait.core.attention", "from .. import hub"),
        ("plait.core.attention", "import plait"),
        ("plait.core.attention", "from plait import load"),
        ("plait.core.attention", "import importlib\nimportlib.import_module('plait.models.gpt2')"),
        ("plait.core.attention", "try:\n    import tokenizers\nexcept ImportError:\n    pass"),
        ("plait.models.gpt2", "from plait.weights import readers"),
        ("plait.models.gpt2", "from plait.weights.readers import read"),
        ("plait.models.gpt2", "import safetensors"),
        ("plait.models.gpt2", "from plait.data import pairs"),
        ("plait.weights.rules", "from plait.core import linear"),
        ("plait.weights.gguf", "import gguf"),
        ("plait.generate.beam", "from plait.models import gpt2"),
        ("plait.generate.beam", "from plait.tune import lora"),
        ("plait.text.bpe", "from plait.data import pairs"),
        ("plait.train.loop", "from plait.hub import load"),
        ("plait.hub.zoo", "from plait.train import loop"),
        ("plait.hub.zoo", "import transformers"),
        ("plait.verbs.run", "from plait.cli import show"),
        ("plait.verbs.run", "from plait.bench import jobs"),
        ("plait.verbs.run", "import plait.cli"),
        ("plait.cli.parse", "import tyro"),
        ("plait.cli.parse", "from plait.hub import load"),
        ("plait.serve.routes", "from plait.verbs import run"),
        ("plait.errors", "import torch"),
        ("plait.newroom.thing", "import os"),
    ],
)
def test_a_forbidden_import_is_found(module, source):
    assert import_faults(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "plait.core.attention",
            "import math\nfrom torch import nn\nfrom jaxtyping import Float\nfrom plait.core import masks\nfrom . import norms",
        ),
        ("plait.core.attention", "from plait.errors import InputError\nfrom __future__ import annotations"),
        ("plait.models.gpt2", "from plait.weights.rules import rule\nfrom plait.weights import rules\nfrom plait.core.blocks import Stack"),
        ("plait.weights.gguf", "import numpy, torch, struct\nfrom safetensors import safe_open"),
        ("plait.verbs.serve", "from plait.serve import Server"),
        ("plait.verbs.run", "from plait.hub import load\nfrom plait.generate import beam"),
        ("plait.bench.jobs", "import transformers\nfrom plait.cli import main"),
        ("plait.data.pairs", "import polib\nfrom plait.text import bpe"),
        ("plait.cli", "from plait import __version__\nfrom plait.verbs import VERBS"),
    ],
)
def test_an_allowed_import_is_let_through(module, source):
    assert not import_faults(module, source, is_package=module.count(".") == 1)


def test_the_inside_of_a_room_with_a_front_door_is_closed(monkeypatch, tmp_path):
    (tmp_path / "serve").mkdir()
    (tmp_path / "serve" / "engine.py").touch()
    monkeypatch.setattr(sys.modules[__name__], "SRC", tmp_path)
    assert import_faults("plait.verbs.serve", "from plait.serve import engine")
    assert not import_faults("plait.verbs.serve", "from plait.serve import Server")


def test_relative_imports_are_resolved():
    assert [name for _, name in imports("plait.core", "from . import masks", is_package=True)] == ["plait.core.masks"]
    assert [name for _, name in imports("plait.core.masks", "from .norms import RMSNorm")] == ["plait.core.norms.RMSNorm"]
    assert [name for _, name in imports("plait.core.deep.masks", "from ...data import x")] == ["plait.data.x"]


# ---- what importing costs ----


def loaded_by(code: str) -> set[str]:
    """The modules in memory after running `code` in a Python of its own."""
    script = "import sys\n" + code + "\nprint('\\n'.join(sys.modules), file=sys.__stderr__)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT / "src", capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


HEAVY = {"torch", "numpy", "tokenizers", "safetensors", "matplotlib"}
CHEAP = {
    "import plait": "import plait; plait.InputError; plait.__version__; dir(plait)",
    "plait --help": "from plait.cli import main; assert main(['--help']) == 0",
    "plait --version": "from plait.cli import main; assert main(['--version']) == 0",
    "a mistyped verb": "from plait.cli import main; assert main(['modles']) == 2",
    "the pages of all verbs": "from plait.cli import main; from plait.verbs import VERBS\nfor v in VERBS: assert main([v, '--help']) == 0",
}


@pytest.mark.parametrize("what", CHEAP)
def test_torch_is_imported_only_when_needed(what):
    assert not loaded_by(CHEAP[what]) & HEAVY


def test_an_import_of_torch_would_be_seen():
    assert "torch" in loaded_by("import types; sys.modules['torch'] = types.ModuleType('torch'); import torch")
