"""Plait: the whole family of Transformers, braided out of one set of blocks."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from plait.errors import InputError

__all__ = ["InputError", "__version__", "load"]
__version__ = "0.1.0"

load: Callable[..., Any]  # plait.hub.load
_LAZY = {"load": "plait.hub"}  # what needs torch is imported when it is first asked for


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'plait' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
