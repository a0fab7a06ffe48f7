"""Which optimizer at which rates: the paper's recipe for the paper's model, and those measured to be better for others."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from torch import nn

from plait.train.optimizers import Adam, Muon, Together, inner_matrices, others
from plait.train.schedules import Schedule, cosine, inverse_sqrt, linear_decay


class Wishes(Protocol):
    """What a user may set; None leaves it to the recipe."""

    optimizer: Any
    learning_rate: float | None
    schedule: Any
    warmup: int | None
    weight_decay: float | None


@dataclass(frozen=True)
class Recipe:
    """`rate` is Muon's where there is Muon, and then `adam_rate` that of embeddings, norms and head."""

    kind: str
    rate: float
    adam_rate: float
    shape: str
    warmup: int
    decay: float
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-9

    def optimizer(self, net: nn.Module) -> Together:
        if self.kind == "adam":
            return Together(adam=Adam(dict(net.named_parameters()), self.rate, self.betas, self.eps, self.decay))
        inner = inner_matrices(net)
        rest = Adam(others(net, inner), self.adam_rate, betas=(0.9, 0.95), eps=1e-10)
        return Together(muon=Muon(inner, self.rate, decay=self.decay), adam=rest)

    def schedule(self) -> Schedule:
        shapes = {
            "inverse-sqrt": lambda: inverse_sqrt(self.warmup),
            "linear": lambda: linear_decay(self.warmup),
            "cosine": lambda: cosine(self.warmup),
            "wsd": lambda: linear_decay(self.warmup, hold=0.8),
        }
        return shapes[self.shape]()

    def described(self) -> dict[str, Any]:
        return asdict(self)


MODERN = Recipe("muon", 0.02, 0.008, "linear", 50, 0.0)  # from scratch, for pages whose blocks start as the identity
SCRATCH = Recipe("adam", 1e-3, 1e-3, "cosine", 100, 0.1, (0.9, 0.99), 1e-8)  # from scratch, for published pages
TUNING = Recipe("adam", 5e-5, 5e-5, "linear", 50, 0.01, (0.9, 0.999), 1e-8)  # from released weights (Devlin et al. 2019, A.3)


def paper(d_model: int, warmup: int = 4000) -> Recipe:
    """Vaswani et al. 2017, section 5.3: the rate is d_model^-0.5 · step^-0.5 after the warm-up."""
    return Recipe("adam", (d_model * warmup) ** -0.5, (d_model * warmup) ** -0.5, "inverse-sqrt", warmup, 0.0)


def recipe_for(wishes: Wishes, usual: Recipe, d_model: int) -> Recipe:
    """The usual recipe of a model with what the user wants otherwise. Another optimizer or schedule brings rates of its own."""
    kind, shape = wishes.optimizer or usual.kind, wishes.schedule or usual.shape
    if kind != usual.kind:
        usual = MODERN if kind == "muon" else Recipe("adam", 2e-3, 2e-3, "linear", 50, usual.decay)
    if shape == "inverse-sqrt" and kind == "adam":
        of_paper = paper(d_model, wishes.warmup or 4000)
        usual = replace(usual, rate=of_paper.rate, warmup=of_paper.warmup)
    elif shape == "inverse-sqrt":
        usual = replace(usual, warmup=4000)
    rate = wishes.learning_rate or usual.rate
    warmup = usual.warmup if wishes.warmup is None else wishes.warmup
    decay = usual.decay if wishes.weight_decay is None else wishes.weight_decay
    return replace(
        usual, kind=kind, rate=rate, adam_rate=usual.adam_rate if kind == "muon" else rate, shape=shape, warmup=warmup, decay=decay
    )
