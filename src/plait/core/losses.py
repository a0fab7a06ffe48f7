"""Cross-entropy with label smoothing, straight from hidden vectors, so that the logits of a large vocabulary are never all held."""

import torch
import torch.nn.functional as F
from torch import Tensor


class LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients chunk by chunk in one pass: logits live only for a chunk of rows, and nothing is computed twice."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float, chunk: int):
        """hidden [N, D], weight [V, D], targets [N] -> (sum of smoothed losses, sum of plain negative log-likelihoods)."""
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        grad_bias = torch.zeros_like(bias) if bias is not None and need_bias else None
        total, plain = hidden.new_zeros(()), hidden.new_zeros(())
        vocabulary = weight.shape[0]
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            h, t = hidden[rows], targets[rows, None]
            logits = F.linear(h, weight, bias)  # [n, V]
            log_z = logits.logsumexp(-1, keepdim=True)
            at_target = logits.gather(1, t)
            nll = (log_z - at_target).sum()
            plain += nll
            if smoothing:
                total += (1 - smoothing) * nll + smoothing * (log_z.sum() - logits.sum() / vocabulary)
            else:
                total += nll
            if need_hidden or need_weight or need_bias:
                grad = logits.sub_(log_z).exp_()  # softmax, in place
                if smoothing:
                    grad.sub_(smoothing / vocabulary)
                grad.scatter_add_(1, t, torch.full_like(t, smoothing - 1, dtype=grad.dtype))
                if grad_hidden is not None:
                    torch.mm(grad, weight, out=grad_hidden[rows])
                if grad_weight is not None:
                    grad_weight.addmm_(grad.T, h)
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(plain)
        return total, plain

    @staticmethod
    def backward(ctx, upstream: Tensor, _plain: Tensor):
        grads = [g if g is None else g * upstream for g in ctx.saved_tensors]
        return *grads, None, None, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float = 0.0, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """Sums over N rows of hidden [N, D] against the scores hidden Wᵀ + b: (with label smoothing, differentiable; without, for reporting).

    Label smoothing (Szegedy et al. 2016; Vaswani et al. 2017, section 5.4): the target gives `smoothing` of its mass evenly to all V.
    """
    return LinearCrossEntropy.apply(hidden, weight, bias, targets, smoothing, chunk)  # type: ignore[return-value]
