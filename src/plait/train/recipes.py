"""Which optimizer at which rates: the paper's recipe for the paper's model, and those measured to be better for others."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from torch import nn

from plait.core.model import learning
from plait.train.optimizers import Adam, Muon, Together, inner_matrices, layer_shares, others
from plait.train.schedules import Schedule, cosine, inverse_sqrt, linear_decay


class Wishes(Protocol):
    """What a user may set; None leaves it to the recipe."""

    optimizer: Any
    learning_rate: float | None
    schedule: Any
    warmup: float | None
    weight_decay: float | None
    layer_decay: float | None


@dataclass(frozen=True)
class Recipe:
    """`rate` is Muon's where there is Muon, and then `adam_rate` that of embeddings, norms and head. `betas` and `eps` are Adam's.

    `warmup` is a number of steps, below 1 a share of the budget; `hold` the share of it up to which a straight schedule stays level.
    `decay` is of matrices and tables alone; `layer_decay` is what a layer's rate is of the rate of the one above it, `heads`
    what that of heads is of all others'.
    """

    kind: str
    rate: float
    adam_rate: float
    shape: str
    warmup: float
    decay: float
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-9
    layer_decay: float = 1.0
    momentum: float = 0.95
    hold: float = 0.0
    heads: float = 1.0

    def optimizer(self, net: nn.Module) -> Together:
        named = learning(net)
        shares = layer_shares(named, self.layer_decay)
        shares |= {name: share * self.heads for name, share in shares.items() if name.startswith("heads.")}
        if self.kind == "adam":
            return Together(adam=Adam(named, self.rate, self.betas, self.eps, self.decay, shares))
        inner = inner_matrices(net)
        rest = Adam(others(net, inner), self.adam_rate, self.betas, self.eps, self.decay, shares)
        return Together(muon=Muon(inner, self.rate, self.momentum, decay=self.decay, shares=shares), adam=rest)

    def schedule(self) -> Schedule:
        shapes = {
            "inverse-sqrt": lambda: inverse_sqrt(max(self.warmup, 1)),
            "linear": lambda: linear_decay(self.warmup, self.hold),
            "cosine": lambda: cosine(self.warmup),
            "wsd": lambda: linear_decay(self.warmup, hold=0.8),
        }
        return shapes[self.shape]()

    def described(self) -> dict[str, Any]:
        return asdict(self)


# From scratch, for pages whose blocks start as the identity, and for such language models: docs/log.md has how they were found.
MODERN = Recipe("muon", 0.02, 0.008, "linear", 50, 0.0, (0.9, 0.95), 1e-10)
LANGUAGE = Recipe("muon", 0.03, 0.03, "linear", 5, 0.0, (0.8, 0.95), 1e-10, momentum=0.9, hold=0.35)
SCRATCH = Recipe("adam", 1e-3, 1e-3, "cosine", 100, 0.1, (0.9, 0.99), 1e-8)  # from scratch, for published pages


def paper(d_model: int, warmup: float = 4000) -> Recipe:
    """Vaswani et al. 2017, section 5.3: the rate is d_model^-0.5 · step^-0.5 after the warm-up."""
    return Recipe("adam", (d_model * warmup) ** -0.5, (d_model * warmup) ** -0.5, "inverse-sqrt", warmup, 0.0)


# A small detector from scratch: five times the rate of Carion et al. 2020, section 4, whose model is twice as wide.
DETECTOR = Recipe("adam", 5e-4, 5e-4, "cosine", 100, 1e-4, (0.9, 0.999), 1e-8)


def tuning(d_model: int) -> Recipe:
    """From released weights (Devlin et al. 2019, A.3): the rate is theirs at their width of 768, and the higher the narrower a model is."""
    rate = 5e-5 * 768 / d_model
    return Recipe("adam", rate, rate, "linear", 0.06, 0.01, (0.9, 0.999), 1e-8)


# Times the rate of all weights: what learns is small, or begins at zero. (IA)³'s is 3e-3 in Liu et al. 2022, section 3.3; docs/log.md.
SMALL = {"lora": 30, "rslora": 30, "dora": 30, "prefix": 100, "prompt": 200, "houlsby": 20, "pfeiffer": 20, "ia3": 60}
SMALL |= {"bitfit": 20, "head": 20}


def small(method: str, d_model: int) -> Recipe:
    """For the small part of a model that a method of `plait.tune` trains."""
    whole = tuning(d_model)
    rate = whole.rate * SMALL[method]
    # A new classifier beside a prefix has ordinary weights, for which the prefix's rate is far too high.
    return replace(whole, rate=rate, adam_rate=rate, decay=0.0, heads=min(1.0, SMALL["head"] / SMALL[method]))


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
    layer_decay, adam_rate = wishes.layer_decay or usual.layer_decay, usual.adam_rate if kind == "muon" else rate
    return replace(usual, kind=kind, rate=rate, adam_rate=adam_rate, shape=shape, warmup=warmup, decay=decay, layer_decay=layer_decay)
