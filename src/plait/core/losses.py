"""Cross-entropy with label smoothing, straight from hidden vectors, so that the logits of a large vocabulary are never all held."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**21  # logits held at a time: 8 MB of float32 stay in a cache while they are passed over
ROWS, MOST = 384, 2**25  # but so many rows, since each chunk reads all weights; of the largest vocabularies no more than 128 MB of logits


class LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients chunk by chunk in one pass: logits live only for a chunk of rows, and nothing is computed twice.

    With e = exp(logits - max) and s = its sum, the softmax e / s is never written down: its rows' factor 1 / s goes to the [n, D]
    side of each product, and the constant that smoothing takes from all entries becomes one vector.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float):
        """hidden [N, D], weight [V, D], targets [N] -> (sum of smoothed losses, sum of plain negative log-likelihoods)."""
        half = half_of(hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            found = _sums(hidden.to(weight.dtype), weight, bias, targets, smoothing, ctx.needs_input_grad[:3], half)
        total, plain, *grads = found
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(plain)
        return total, plain

    @staticmethod
    @once_differentiable  # a second derivative would be wrong without a word
    def backward(ctx, upstream: Tensor, _plain: Tensor):
        grads = [g if g is None else g * upstream for g in ctx.saved_tensors]
        return *grads, None, None


def half_of(device: torch.device) -> torch.dtype | None:
    """What products are rounded to under autocast. Float16 has no room for them: the loss's gradients are not yet scaled here."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.bfloat16 if torch.get_autocast_dtype(device.type) == torch.bfloat16 else None


def _sums(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    smoothing: float,
    wanted: Sequence[bool],
    half: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(total, plain, gradients of hidden, weight and bias, of each where it is wanted); with `half` products are in that type, sums not.

    The gradient of frozen weights, a third of the work, is not computed.
    """
    vocabulary = weight.shape[0]
    grad_hidden = torch.empty_like(hidden) if wanted[0] else None
    grad_weight = torch.zeros_like(weight) if wanted[1] else None
    grad_bias = torch.zeros_like(bias) if wanted[2] and bias is not None else None
    total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    plain = torch.zeros_like(total)
    short = None if half is None else weight.to(half)
    rows = max(1, CHUNK // vocabulary, min(ROWS, MOST // vocabulary))
    for start in range(0, len(hidden), rows):
        h, t = hidden[start : start + rows], targets[start : start + rows, None]
        if short is None:
            e = F.linear(h, weight, bias)  # [n, V]
        else:
            e = F.linear(h.to(half), short).to(weight.dtype)
            e = e if bias is None else e.add_(bias)
        largest, at_target = e.amax(-1, keepdim=True), e.gather(1, t)
        mean = e.sum() / vocabulary if smoothing else None
        s = e.sub_(largest).exp_().sum(-1, keepdim=True)
        log_z = s.log().add_(largest)
        nll = (log_z - at_target).sum()
        plain += nll
        total += nll if mean is None else (1 - smoothing) * nll + smoothing * (log_z.sum() - mean)
        if not any(wanted):
            continue
        e.scatter_add_(1, t, (smoothing - 1) * s)
        if short is None:
            if grad_hidden is not None:
                torch.mm(e, weight, out=grad_hidden[start : start + rows]).div_(s)
            if grad_weight is not None:
                grad_weight.addmm_(e.T, h / s)
        else:
            p = (e / s).to(half)
            if grad_hidden is not None:
                grad_hidden[start : start + rows] = p @ short
            if grad_weight is not None:
                grad_weight += p.T @ h.to(half)
        if grad_bias is not None:
            grad_bias.addmv_(e.T, (1 / s)[:, 0])
    if smoothing and grad_hidden is not None:
        grad_hidden.sub_(weight.sum(0), alpha=smoothing / vocabulary)
    if smoothing and grad_weight is not None:
        grad_weight.sub_(hidden.sum(0), alpha=smoothing / vocabulary)
    if smoothing and grad_bias is not None:
        grad_bias.sub_(smoothing * len(hidden) / vocabulary)
    return total, plain, grad_hidden, grad_weight, grad_bias


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sums over N rows of hidden [N, D] against the scores hidden Wᵀ + b: (with label smoothing, differentiable; without, for reporting).

    Label smoothing (Szegedy et al. 2016; Vaswani et al. 2017, section 5.4): the target gives `smoothing` of its mass evenly to all V.
    """
    return LinearCrossEntropy.apply(hidden, weight, bias, targets, smoothing)  # type: ignore[return-value]
