"""Half precision: products in 16 bits, weights and sums in 32, and for float16 a loss scale that follows what overflows."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from plait.errors import InputError, choices

KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIRST, LARGEST, PATIENCE = 2.0**16, 2.0**24, 2000  # loss scale: its start, its limit, steps without overflow before it doubles


class Precision:
    """`kind` of products. Gradients of float16 are those of the loss times `scale` (Micikevicius et al. 2018, section 3.2)."""

    def __init__(self, kind: str, device: torch.device):
        if kind not in KINDS:
            raise InputError(f"precision {kind!r}: expected {choices(KINDS)}")
        self.kind, self.device = kind, device
        self.scale = torch.tensor(FIRST if kind == "float16" else 1.0)
        self.since = torch.zeros(())  # steps since the scale changed

    def context(self) -> AbstractContextManager:
        return nullcontext() if self.kind == "float32" else torch.autocast(self.device.type, KINDS[self.kind])

    @property
    def factor(self) -> float:
        return float(self.scale)

    def overflowed(self, watched: Tensor) -> bool:
        """Whether this step must be skipped, since its gradients did not fit into float16; the scale is halved then, down to 1."""
        if self.kind != "float16":
            return False
        bad = not bool(watched.isfinite()) and self.factor > 1.0
        self.since += 1
        if bad:
            self.scale.mul_(0.5)
            self.since.zero_()
        elif self.since >= PATIENCE and self.factor < LARGEST:
            self.scale.mul_(2.0)
            self.since.zero_()
        return bad

    def state(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "since": self.since} if self.kind == "float16" else {}

    def load(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
