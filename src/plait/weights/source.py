"""What every reader of weights offers: names and shapes at once, a tensor when it is asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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


@runtime_checkable
class InBlocks(Protocol):
    """A source whose quantised tensors can be had as they are stored."""

    types: Mapping[str, str]  # of each tensor, by the format's names

    def raw(self, name: str) -> Tensor:
        """A tensor's bytes, uint8."""
        ...


class Taker(Protocol):
    """Takes tensors as they are read, instead of a model's parameters, which stay as they were: small weights, one after another."""

    def wants(self, ours: Sequence[str], kind: str) -> bool:
        """Whether these parameters' rows are to be given as they are stored, in blocks of the type `kind`."""
        ...

    def takes(self, ours: str, rows: Tensor, kind: str | None) -> bool:
        """Whether it has taken a parameter's values, or where there is a `kind` its blocks, uint8 [rows, bytes of a row]."""
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
