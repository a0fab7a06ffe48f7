"""What training asks of a task: the loss of a batch, as sums, so that parts of a batch add up to the whole."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from plait.core.model import Model


@dataclass
class Loss:
    """Sums over `count` predictions: `total` is what is minimised (smoothed), `plain` the negative log-likelihood in nats."""

    total: Tensor
    plain: Tensor
    count: int


class Objective(Protocol):
    def loss(self, net: Model, batch: Any) -> Loss: ...

    def parts(self, batch: Any, n: int) -> list[Any]:
        """The batch cut into at most n smaller ones that hold the same rows."""
        ...

    def size(self, batch: Any) -> int:
        """Tokens the batch feeds to the model, for the speed shown."""
        ...
