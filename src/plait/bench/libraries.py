"""Peers' libraries, by name. Torch-free, so that a process can hold a peer that does without torch."""

from importlib import import_module
from typing import Any

from plait.errors import InputError


def need(module: str) -> Any:
    """A peer's library, or what to type to get it."""
    try:
        return import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise InputError(
            f"{name} is not installed ({error}): pip install 'plait[bench]' brings all peers, pip install {name} this one"
        ) from None
