"""What all tests share."""

from pathlib import Path

import jaxtyping
import pytest
import torch

# Annotated shapes are checked while these run; elsewhere the checks would take longer than tiny models do.
CHECKED = ("core", "models", "tasks", "tune", "compress", "media", "contracts/test_same_numbers.py")
CHECKED_FILES = tuple(str(Path(__file__).parent / name) for name in CHECKED)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    jaxtyping.config.update("jaxtyping_disable", not str(item.path).startswith(CHECKED_FILES))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Shapes are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
