"""What every reader of weights offers: names and shapes at once, a tensor when it is asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor


class Source(Protocol):
    """The tensors of a file (or of a folder of shards), lazily: nothing is read but the header until `read` asks for a tensor."""

    path: Path
    metadata: Mapping[str, Any]  # what the file says beside its tensors: a GGUF's keys, a safetensors file's strings

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's name and shape, in the file's order."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor: as it is stored, quantised ones as float32. Raises `InputError` where its bytes are not what the header says."""
        ...


class Held:
    """Tensors that are in memory already, such as another model's state dict, as a source."""

    metadata: Mapping[str, Any] = {}

    def __init__(self, tensors: Mapping[str, Tensor], path: str = "tensors in memory"):
        self.tensors, self.path = tensors, Path(path)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(t.shape) for name, t in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        """A copy, so that what is filled from it shares nothing with the one that holds it."""
        return self.tensors[name].clone()
