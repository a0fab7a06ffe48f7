"""Kernels: softmax(q kᵀ · scale + bias, masked) v. The one place where masks and biases are lowered to what a kernel wants.

Every kernel here is exact and equals `reference` within rounding; a query that may see nothing gives zeros, never NaN.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from plait.core import fused
from plait.core.dropout import dropout as dropped
from plait.core.masks import Mask, causal, real, same_document
from plait.core.stream import Places


class Lowered:
    """A mask and a score bias as a kernel takes them: an additive or boolean tensor broadcastable to [B, H, L, S], or a flag."""

    __slots__ = ("causal", "tensor")

    def __init__(self, tensor: Tensor | None, causal: bool = False):
        self.tensor, self.causal = tensor, causal


def allowed(mask: Mask | None, q: Places, k: Places) -> Tensor | None:
    """The mask, joined with padding and document borders where the streams have them, as one boolean tensor; None: all see all."""
    whole = mask
    if mask == causal and k.stop <= q.start + 1:
        whole = None  # no query comes before a key, as with one new token and a cache
    if k.real is not None:
        whole = real if whole is None else whole & real
    if q.segment is not None and k.segment is not None:
        whole = same_document if whole is None else whole & same_document
    if whole is None:
        return None
    tensor = whole.allows(q, k)
    return tensor[None, None] if tensor.ndim == 2 else tensor


def additive(seen: Tensor | None, bias: Tensor) -> Tensor:
    """A boolean mask and a score bias as one additive tensor: -inf where nothing may be seen."""
    return bias if seen is None else bias.masked_fill(~seen, float("-inf"))


class Kernel:
    """How attention is computed. `lower` is called once a forward for each kind of mask, `attend` once a layer."""

    def lower(self, mask: Mask | None, q: Places, k: Places, bias: Tensor | None = None) -> Lowered:
        """`bias`: a score bias that is the same in every layer (T5's table, ALiBi), broadcastable to [B, H, L, S]."""
        seen = allowed(mask, q, k)
        return Lowered(seen if bias is None else additive(seen, bias))

    def attend(
        self,
        q: Float[Tensor, "B H L K"],
        k: Float[Tensor, "B G S K"],
        v: Float[Tensor, "B G S K"],
        mask: Lowered,
        bias: Tensor | None = None,
        scale: float = 1.0,
        dropout: float = 0.0,
    ) -> Float[Tensor, "B H L K"]:
        """G may divide H (grouped queries). `bias` [B, H, L, S] depends on this layer's queries; `dropout` falls on the weights."""
        raise NotImplementedError


def weights(q: Tensor, k: Tensor, mask: Lowered, bias: Tensor | None, scale: float) -> Float[Tensor, "B H L S"]:
    """softmax(q kᵀ · scale + bias) under the mask, the textbook way; rows that may see nothing are zero."""
    if k.shape[1] != q.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = (q @ k.transpose(-1, -2)) * scale  # [B, H, L, S]
    if bias is not None:
        scores = scores + bias
    seen = mask.tensor
    if mask.causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if seen is None:
        return scores.softmax(-1)
    if seen.dtype != torch.bool:
        scores, seen = scores + seen, seen != float("-inf")
    blind = ~seen.any(-1, keepdim=True)  # these rows get something finite, then nothing
    return scores.masked_fill(~seen, float("-inf")).masked_fill(blind, 0.0).softmax(-1).masked_fill(~seen, 0.0)


def partial(q: Tensor, k: Tensor, v: Tensor, mask: Lowered, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention over some of the keys: ([B, H, L, K], the log of what its weights were divided by [B, H, L, 1]), for `merged`.

    The query heads that share a key head are further queries of it, so keys and values are read once.
    """
    scores = (q.unflatten(1, (k.shape[1], -1)).flatten(2, 3) * scale) @ k.transpose(-1, -2)  # [B, G, H / G * L, S]
    scores = scores.view(*q.shape[:3], -1)
    if bias is not None:
        scores = scores + bias
    if mask.causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1), float("-inf"))
    elif mask.tensor is not None:
        scores = scores.masked_fill(~mask.tensor, float("-inf")) if mask.tensor.dtype == torch.bool else scores + mask.tensor
    # Where nothing may be seen the sum is 0; a finite logarithm in its place keeps NaN away, and the values are 0.
    log = scores.logsumexp(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    weights = (scores - log).exp_().view(k.shape[0], k.shape[1], -1, k.shape[2])
    return (weights @ v).view(*q.shape[:3], -1), log


def merged(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two results of `partial` over different keys as one over all of them."""
    log = torch.logaddexp(a[1], b[1])
    return a[0] * (a[1] - log).exp() + b[0] * (b[1] - log).exp(), log


class Reference(Kernel):
    """The formula of the paper (Vaswani et al. 2017, section 3.2.1), step by step: the measure of every other kernel."""

    def attend(self, q, k, v, mask, bias=None, scale=1.0, dropout=0.0):
        if v.shape[1] != q.shape[1]:
            v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        return dropped(weights(q, k, mask, bias, scale), dropout, training=True).to(v.dtype) @ v


class SDPA(Kernel):
    """`torch.nn.functional.scaled_dot_product_attention`, which picks flash, memory-efficient or plain code for the device."""

    def lower(self, mask: Mask | None, q: Places, k: Places, bias: Tensor | None = None) -> Lowered:
        # Its causal flag aligns queries and keys at the top left, so it is right only where both begin at the same slot.
        together = q.start == k.start and q.length == k.length
        if mask == causal and bias is None and k.real is None and k.segment is None and together:
            return Lowered(None, causal=True)
        return super().lower(mask, q, k, bias)

    def attend(self, q, k, v, mask, bias=None, scale=1.0, dropout=0.0):
        tensor, flag = mask.tensor, mask.causal
        if tensor is None and bias is None and not dropout and fused.attends(q, k, v):
            return fused.attention(q, k, v, flag, scale)
        if dropout and q.device.type == "cpu":  # torch holds all weights then too, and draws what falls one by one
            return reference.attend(q, k, v, mask, bias, scale, dropout)
        if bias is not None:
            if flag:
                tensor, flag = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(), False
            tensor = additive(tensor, bias) if tensor is None or tensor.dtype == torch.bool else tensor + bias
        if tensor is not None and tensor.dtype != torch.bool:
            tensor = tensor.to(q.dtype)  # with float64 queries and a float32 bias torch (2.13, CPU) gives wrong numbers from 16 keys on
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=tensor, dropout_p=dropout, is_causal=flag, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
        )


reference = Reference()
sdpa = SDPA()
