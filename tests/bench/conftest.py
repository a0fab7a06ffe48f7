"""Toy shapes, one thread; what a peer is needed for is skipped where it is not installed."""

import importlib.util

import pytest
import torch

from plait.bench.operations import Shape


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def toy() -> Shape:
    return Shape(16, 2, 2, 32, 40, 40)


@pytest.fixture(scope="session")
def peers() -> None:
    missing = [name for name in ("transformers", "accelerate", "ctranslate2") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (pip install 'plait[bench]')")
    import transformers

    transformers.logging.set_verbosity_error()
