"""Optimizers: AdamW for vectors and tables, Muon (orthogonalised momentum) for the matrices inside the blocks."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class Adam:
    """Adam with decoupled weight decay (Kingma & Ba 2015; Loshchilov & Hutter 2019), on torch's fused kernel."""

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        rate: float,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-9,
        decay: float = 0.0,
    ):
        self.named, self.rate, self.betas, self.eps, self.decay = dict(named), rate, betas, eps, decay
        self.first = {name: torch.zeros_like(p) for name, p in self.named.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.named.items()}
        self.steps = torch.zeros(())

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update at the learning rate `rate` · `factor`, from each parameter's `.grad`; one without a gradient is left alone."""
        self.steps += 1
        names = [name for name, p in self.named.items() if p.grad is not None]
        if not names:
            return
        params: list[Tensor] = [self.named[name] for name in names]
        torch._fused_adamw_(
            params,
            [p.grad for p in params],  # type: ignore[arg-type]
            [self.first[name] for name in names],
            [self.second[name] for name in names],
            [],
            [self.steps.to(p.device) for p in params],
            lr=self.rate * factor,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        moments = {f"first.{n}": t for n, t in self.first.items()} | {f"second.{n}": t for n, t in self.second.items()}
        return {"steps": self.steps, **moments}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


# Odd polynomial whose iteration drives singular values towards 1 (Jordan et al. 2024, "Muon"): fast at zero, not exact at one.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalised(g: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration on a batch of matrices [n, r, c]: about U Vᵀ of each one's singular value decomposition."""
    a, b, c = QUINTIC
    tall = g.shape[1] > g.shape[2]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        xx = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(xx, xx, xx, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon:
    """Momentum, orthogonalised (Jordan et al. 2024): every direction of a matrix moves alike. Matrices of one shape go in one batch.

    The update of an [out, in] matrix is scaled by sqrt(max(1, out / in)), so that one learning rate serves all shapes.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], rate: float, momentum: float = 0.95, decay: float = 0.0, steps: int = 5):
        self.named, self.rate, self.momentum, self.decay, self.steps = dict(named), rate, momentum, decay, steps
        groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, p in self.named.items():
            groups[tuple(p.shape)].append(name)
        self.groups = list(groups.values())
        self.buffers = [torch.stack([torch.zeros_like(self.named[name]) for name in names]) for names in self.groups]

    @torch.no_grad()
    def step(self, factor: float) -> None:
        for names, buffer in zip(self.groups, self.buffers, strict=True):
            params: list[Tensor] = [self.named[name] for name in names]
            grads = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in params])
            buffer.lerp_(grads, 1 - self.momentum)
            update = orthogonalised(grads.lerp_(buffer, self.momentum), self.steps)  # Nesterov
            rows, columns = params[0].shape
            rate = self.rate * factor
            if self.decay:
                torch._foreach_mul_(params, 1 - rate * self.decay)
            torch._foreach_add_(params, list(update.unbind()), alpha=-rate * max(1.0, rows / columns) ** 0.5)

    def state(self) -> dict[str, Tensor]:
        return {
            f"momentum.{name}": row
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

    def step(self, factor: float) -> None:
        for part in self.parts.values():
            part.step(factor)

    def state(self) -> dict[str, Tensor]:
        return {f"{name}.{key}": tensor for name, part in self.parts.items() for key, tensor in part.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, part in self.parts.items():
            part.load({key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")})


def inner_matrices(net: nn.Module) -> dict[str, nn.Parameter]:
    """The weight matrices of the blocks: what Muon is for. Embeddings, heads, norms and biases are Adam's."""
    return {name: p for name, p in net.named_parameters() if p.ndim == 2 and "_proj." in name}


def others(net: nn.Module, taken: Iterable[str]) -> dict[str, nn.Parameter]:
    taken = set(taken)
    return {name: p for name, p in net.named_parameters() if name not in taken}
