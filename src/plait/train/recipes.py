"""Which optimizer at which rates: the paper's recipe for the paper's model, and the one measured to be better for the modern one."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import nn

from plait.train.optimizers import Adam, Muon, Together, inner_matrices, others
from plait.train.schedules import Schedule, inverse_sqrt, linear_decay


class Wishes(Protocol):
    """What a user may set; None leaves it to the recipe."""

    optimizer: Any
    learning_rate: float | None
    schedule: Any
    warmup: int | None
    weight_decay: float


@dataclass(frozen=True)
class Recipe:
    """`rate` is Muon's where there is Muon, and then `adam_rate` that of embeddings, norms and head."""

    kind: str
    rate: float
    adam_rate: float
    shape: str
    warmup: int
    decay: float

    def optimizer(self, net: nn.Module) -> Together:
        if self.kind == "adam":
            return Together(adam=Adam(dict(net.named_parameters()), self.rate, decay=self.decay))
        inner = inner_matrices(net)
        rest = Adam(others(net, inner), self.adam_rate, betas=(0.9, 0.95), eps=1e-10)
        return Together(muon=Muon(inner, self.rate, decay=self.decay), adam=rest)

    def schedule(self) -> Schedule:
        return inverse_sqrt(self.warmup) if self.shape == "inverse-sqrt" else linear_decay(self.warmup)

    def described(self) -> dict[str, Any]:
        return asdict(self)


def recipe_for(wishes: Wishes, arch: str, config: dict[str, Any]) -> Recipe:
    """Vaswani's models get section 5.3 of the paper (Adam, 4,000 steps of warm-up, inverse square root), others Muon and a linear decay."""
    modern = arch != "vaswani"
    kind = wishes.optimizer or ("muon" if modern else "adam")
    shape = wishes.schedule or ("linear" if modern else "inverse-sqrt")
    warmup = wishes.warmup or (4000 if shape == "inverse-sqrt" else 50)
    if kind == "muon":
        rate = wishes.learning_rate or 0.02
    else:
        rate = wishes.learning_rate or ((config["d_model"] * warmup) ** -0.5 if shape == "inverse-sqrt" else 2e-3)
    return Recipe(kind, rate, 0.008 if kind == "muon" else rate, shape, warmup, wishes.weight_decay)
