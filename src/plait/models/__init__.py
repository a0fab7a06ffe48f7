"""Every published model is a page: its config, its presets, one assembly function. This list is all there is to registering one."""

from dataclasses import fields
from types import ModuleType
from typing import Any

from plait.core.model import Model
from plait.models import modern, vaswani

PAGES: dict[str, ModuleType] = {"vaswani": vaswani, "modern": modern}


def build(arch: str, config: dict[str, Any]) -> Model:
    """A saved description {"arch": ..., "config": {...}} as a model; unknown settings are an error, never ignored."""
    if arch not in PAGES:
        raise ValueError(f"no model called {arch!r}: there are {', '.join(PAGES)}")
    page = PAGES[arch]
    known = {f.name for f in fields(page.Config)}
    if unknown := sorted(set(config) - known):
        raise ValueError(f"settings that {arch} does not have: {', '.join(unknown)} (it has {', '.join(sorted(known))})")
    return page.build(page.Config(**config))
