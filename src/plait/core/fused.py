"""What a training step on a CPU does beside its large products, in fewer passes over memory: fused.c, behind autograd functions."""

import ctypes
from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from plait.core import native

QUERIES = 32  # fewer are not worth the way here
KEYS = 8192  # more do not fit a block of queries' scores into a cache
VECTOR = 16  # channels of a head come in whole vectors of the widest kind


class Stride(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("row", "head", "entry")]


class About(ctypes.Structure):
    """As in fused.c, field by field."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in "rows heads key_heads queries keys d_head causal threads".split()],
        ("scale", ctypes.c_float),
        *[(name, Stride) for name in "q k v out dout dq dk dv".split()],
    ]

    def place(self, **tensors: Tensor) -> list[int]:
        """Notes the strides of [B, H, L, K]; the addresses."""
        for name, tensor in tensors.items():
            setattr(self, name, Stride(*tensor.stride()[:3]))
        return [tensor.data_ptr() for tensor in tensors.values()]


@cache
def library() -> ctypes.CDLL | None:
    if (found := native.library("fused")) is None:
        return None
    found.plait_attention_room.argtypes = [ctypes.c_void_p, ctypes.c_int]
    found.plait_attention_room.restype = ctypes.c_int64
    found.plait_attention.argtypes = [*[ctypes.c_void_p] * 7, ctypes.c_int64]
    found.plait_attention_backward.argtypes = [*[ctypes.c_void_p] * 11, ctypes.c_int64]
    found.plait_activate.argtypes = [ctypes.c_int, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 3, ctypes.c_int]
    found.plait_activate_backward.argtypes = [*[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 3, ctypes.c_int]
    for name in ("attention", "attention_backward", "activate", "activate_backward"):
        getattr(found, f"plait_{name}").restype = None
    return found


def by_entry(*like: Tensor) -> list[Tensor]:
    """Room for [B, H, L, K] each, that lies as [B, L, H, K], as projections write it; side by side where all have the same entries."""
    if len({x.shape[2] for x in like}) > 1:
        return [room for x in like for room in by_entry(x)]
    widths = [x.shape[1] * x.shape[3] for x in like]
    room = like[0].new_empty(like[0].shape[0], like[0].shape[2], sum(widths)).split(widths, -1)
    return [part.unflatten(-1, (x.shape[1], -1)).transpose(1, 2) for part, x in zip(room, like, strict=True)]


def dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ · scale) v that keeps one number a query of the scores, which the backward pass computes again."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
        q, k, v = map(dense, (q, k, v))
        (out,), log_sum = by_entry(q), q.new_empty(q.shape[:3])
        about = About(*q.shape[:2], k.shape[1], q.shape[2], *k.shape[2:], causal, torch.get_num_threads(), scale)
        _call("plait_attention", about, about.place(q=q, k=k, v=v, out=out), log_sum.data_ptr())
        ctx.save_for_backward(q, k, v, out, log_sum)
        ctx.about = about
        return out

    @staticmethod
    @once_differentiable  # a second derivative would be wrong without a word
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        q, k, v, out, log_sum = ctx.saved_tensors
        grad, found, about = dense(grad), by_entry(q, k, v), ctx.about
        given = about.place(q=q, k=k, v=v, out=out)
        more = about.place(dout=grad, dq=found[0], dk=found[1], dv=found[2])
        _call("plait_attention_backward", about, given, log_sum.data_ptr(), *more)
        return *found, None, None


def activated(kind: int, x: Tensor, bias: Tensor | None) -> Tensor:
    """The activation of x + bias for x [N, F], which becomes its derivative. `kind`: one of `KINDS`."""
    y, made = torch.empty_like(x), library()
    assert made is not None
    made.plait_activate(kind, *x.shape, None if bias is None else bias.data_ptr(), x.data_ptr(), y.data_ptr(), torch.get_num_threads())
    return y


def scaled(grad: Tensor, slope: Tensor) -> Tensor:
    """grad [N, F] times slope, in place; the sums of its columns."""
    made, threads = library(), torch.get_num_threads()
    sums = grad.new_empty(threads, grad.shape[1])
    assert made is not None
    made.plait_activate_backward(*grad.shape, slope.data_ptr(), grad.data_ptr(), sums.data_ptr(), threads)
    return sums.sum(0)


def _call(name: str, about: About, given: list[int], *more: int) -> None:
    made = library()
    assert made is not None
    each = made.plait_attention_room(ctypes.byref(about), name != "plait_attention")
    room = torch.empty(each * about.threads)
    getattr(made, name)(ctypes.byref(about), *given, *more, room.data_ptr(), each)


def serves(*tensors: Tensor) -> bool:
    """Whether a step that will go backward through these is this file's business."""
    # A subclass (pieces on other ranks, quantised values) has no memory of its own to point to.
    usual = all(type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
    learns = usual and torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return learns and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu") and library() is not None


def attends(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `attention` is quicker than torch's for these [B, H, L, K], [B, G, S, K] twice."""
    return q.shape[2] >= QUERIES and k.shape[2] <= KEYS and not q.shape[-1] % VECTOR and v.shape == k.shape and serves(q, k, v)


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """[B, H, L, K] of queries that see all keys or, `causal`, those up to their own place."""
    return _Attention.apply(q, k, v, causal, scale)  # type: ignore[return-value]
