"""Plait: the whole family of Transformers, braided out of one set of blocks."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from plait.errors import InputError

__all__ = ["InputError", "__version__", "adapt", "load", "record", "using"]
__version__ = "0.1.0"

load: Callable[..., Any]  # plait.hub.load
record: Callable[..., Any]  # plait.inspect.record.record
adapt: Callable[..., Any]  # plait.hub.tuned.adapt
using: Callable[..., Any]  # plait.hub.tuned.using
# What needs torch is imported when it is first asked for.
_LAZY = {"load": "plait.hub", "record": "plait.inspect.record", "adapt": "plait.hub.tuned", "using": "plait.hub.tuned"}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'plait' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
