"""Optimizers: AdamW for vectors and tables, Muon (orthogonalised momentum) for the matrices inside the blocks."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from plait.core.model import learning
from plait.train.placement import like, local, piece, placed_as, spread, whole


class Adam:
    """Adam with decoupled weight decay (Kingma & Ba 2015; Loshchilov & Hutter 2019), on torch's fused kernel.

    What decays are matrices and tables; norms, biases and scalars do not, since no product grows with them. `shares` say what part of
    the rate a parameter gets, where it is not all of it. Of parameters spread over ranks each rank updates its piece.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        rate: float,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-9,
        decay: float = 0.0,
        shares: Mapping[str, float] | None = None,
    ):
        self.named, self.rate, self.betas, self.eps = dict(named), rate, betas, eps
        self.groups: dict[tuple[float, float], list[str]] = defaultdict(list)  # (share, decay) -> names: one call of the kernel each
        for name, p in self.named.items():
            self.groups[(shares or {}).get(name, 1.0), decay if p.ndim > 1 else 0.0].append(name)
        self.first = {name: torch.zeros_like(p) for name, p in self.named.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.named.items()}
        self.steps = torch.zeros(())

    @torch.no_grad()
    def step(self, factor: float, divide: Tensor | None = None) -> None:
        """One update at the learning rate `rate` · `factor`, from each parameter's `.grad`; one without a gradient is left alone.

        Gradients are divided by `divide` (a scalar) on the way, which spares a pass over all of them.
        """
        self.steps += 1
        for (share, decay), group in self.groups.items():
            if names := [name for name in group if self.named[name].grad is not None]:
                self.update(names, self.rate * factor * share, decay, divide)

    def update(self, names: list[str], rate: float, decay: float, divide: Tensor | None) -> None:
        params = [local(self.named[name]) for name in names]
        grads = [local(self.named[name].grad) for name in names]
        if divide is not None and params[0].dtype == torch.float64:  # the kernel takes its divisor in float32
            torch._foreach_div_(grads, divide)
            divide = None
        torch._fused_adamw_(
            params,
            grads,
            [local(self.first[name]) for name in names],
            [local(self.second[name]) for name in names],
            [],
            [self.steps.to(p.device) for p in params],
            lr=rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
            grad_scale=None if divide is None else divide.float(),
        )

    def state(self) -> dict[str, Tensor]:
        moments = {f"first.{n}": t for n, t in self.first.items()} | {f"second.{n}": t for n, t in self.second.items()}
        return {"steps": self.steps, **moments}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


# One odd polynomial a x + b x³ + c x⁵ a step, each the best for the singular values that the steps before have left (Amsel et al.
# 2025, "Polar Express", for values down to 0.001). The first three do here what five of one fixed polynomial do (docs/log.md).
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
CUSHION = 1.01  # keeps values above 1 by rounding inside the polynomials' range


def orthogonalised(g: Tensor, steps: int = 3) -> Tensor:
    """Newton-Schulz iteration on a batch of matrices [n, r, c]: about U Vᵀ of each one's singular value decomposition."""
    tall = g.shape[1] > g.shape[2]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(1, 2), keepdim=True) * (CUSHION + 0.01) + 1e-7)
    for a, b, c in POLAR_EXPRESS[:steps]:
        a, b, c = a / CUSHION, b / CUSHION**3, c / CUSHION**5
        xx = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(xx, xx, xx, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon:
    """Momentum, orthogonalised (Jordan et al. 2024): every direction of a matrix moves alike. Matrices of one shape go in one batch.

    Updates are scaled by the square root of the matrix's longer side over its shorter one, so that one rate serves all shapes.
    Of matrices spread over ranks each rank keeps its piece of the momentum; they are put together to be orthogonalised.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        rate: float,
        momentum: float = 0.95,
        decay: float = 0.0,
        steps: int = 3,
        shares: Mapping[str, float] | None = None,
    ):
        self.named, self.rate, self.momentum, self.decay, self.steps = dict(named), rate, momentum, decay, steps
        groups: dict[tuple, list[str]] = defaultdict(list)
        for name, p in self.named.items():
            groups[(shares or {}).get(name, 1.0), *placed_as(p)].append(name)
        self.groups, self.shares = list(groups.values()), [share for share, *_ in groups]
        self.buffers = [torch.stack([torch.zeros_like(local(self.named[name].detach())) for name in names]) for names in self.groups]

    @torch.no_grad()
    def step(self, factor: float, divide: Tensor | None = None) -> None:
        for names, share, buffer in zip(self.groups, self.shares, self.buffers, strict=True):
            named = [self.named[name] for name in names]
            params = [local(p) for p in named]
            grads = torch.stack(
                [torch.zeros_like(mine) if p.grad is None else local(p.grad) for p, mine in zip(named, params, strict=True)]
            )
            if divide is not None:
                grads.div_(divide)
            buffer.lerp_(grads, 1 - self.momentum)
            updates = self.orthogonalised(grads.lerp_(buffer, self.momentum), named)  # Nesterov
            scale = (max(named[0].shape) / min(named[0].shape)) ** 0.5
            rate = self.rate * factor * share
            if self.decay:
                torch._foreach_mul_(params, 1 - rate * self.decay)
            torch._foreach_add_(params, updates, alpha=-rate * scale)

    def orthogonalised(self, stacked: Tensor, named: list[nn.Parameter]) -> list[Tensor]:
        if not spread(named[0]):
            return list(orthogonalised(stacked, self.steps).unbind())
        full = torch.stack([whole(like(mine, p)) for mine, p in zip(stacked, named, strict=True)])
        return [piece(one, p) for one, p in zip(orthogonalised(full, self.steps), named, strict=True)]

    def state(self) -> dict[str, Tensor]:
        return {
            f"momentum.{name}": like(row, self.named[name])
            for names, buffer in zip(self.groups, self.buffers, strict=True)
            for name, row in zip(names, buffer, strict=True)
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


class Together:
    """Several optimizers as one, each on parameters of its own."""

    def __init__(self, **parts: Adam | Muon):
        self.parts = parts

    def step(self, factor: float, divide: Tensor | None = None) -> None:
        for part in self.parts.values():
            part.step(factor, divide)

    def state(self) -> dict[str, Tensor]:
        return {f"{name}.{key}": tensor for name, part in self.parts.items() for key, tensor in part.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, part in self.parts.items():
            part.load({key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")})


def inner_matrices(net: nn.Module) -> dict[str, nn.Parameter]:
    """The weight matrices of the blocks: what Muon is for. Embeddings, heads, norms and biases are Adam's."""
    return {name: p for name, p in learning(net).items() if p.ndim == 2 and "_proj." in name}


def layer_shares(names: Iterable[str], decay: float) -> dict[str, float]:
    """What part of the rate each parameter gets where each layer learns `decay` times as fast as the one above (Howard & Ruder 2018,
    section 3.2; Clark et al. 2020, appendix A): all of it heads and last norms, the least embeddings and what else blocks read.

    Layers are counted within a tower, those that share their weights as one.
    """
    depths = {name: (name.partition(".")[0], depth_of(name)) for name in names}
    tops: dict[str, int] = defaultdict(int)
    for tower, depth in depths.values():
        tops[tower] = max(tops[tower], 0 if depth is None else depth)
    return {name: 1.0 if depth is None else decay ** (tops[tower] + 1 - depth) for name, (tower, depth) in depths.items()}


def depth_of(name: str) -> int | None:
    """Layers between the input and this parameter, None where it stands above all: `tower.blocks.0` is 1."""
    first, part, number, *_ = [*name.split("."), "", ""]
    if first == "heads" or part == "norm":
        return None
    return int(number) + 1 if part == "blocks" else 0


def others(net: nn.Module, taken: Iterable[str]) -> dict[str, nn.Parameter]:
    taken = set(taken)
    return {name: p for name, p in learning(net).items() if name not in taken}
