"""From a tower's module tree to the operations of a native program (`native/step.c`).

Parts are known by their exact type; `CannotLower` says which one is not. Nothing here knows a model.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from plait.core import feedforward
from plait.core.attention import Attention, CrossAttention
from plait.core.blocks import Block, Stack
from plait.core.feedforward import FFN
from plait.core.linear import Linear
from plait.core.norms import LayerNorm, RMSNorm
from plait.core.quantised import QuantisedLinear
from plait.core.residual import Parallel, Post, Pre, Sandwich
from plait.core.rotary import Rotary
from plait.core.stream import Lent

REAL = torch.float32  # what step.c reads
NORM, PREPARE, ADD, PLACE, MULTIPLY, ATTEND = range(6)
ON_ROWS = (NORM, PREPARE, ADD, PLACE)  # a row is the same thread's in all of these, so they need not wait for each other
F = feedforward
ACTIVATIONS = (None, F.relu, F.relu2, F.gelu, F.gelu_tanh, F.silu, F.quick_gelu)


def fields(whole: str, real: str = "", pointers: str = "") -> list[tuple[str, Any]]:
    """Of a C structure: names of int64, double and pointers, in this order."""
    kinds = ((whole, ctypes.c_int64), (real, ctypes.c_double), (pointers, ctypes.c_void_p))
    return [(name, kind) for names, kind in kinds for name in names.split()]


class Op(ctypes.Structure):
    """One operation; step.c says what the fields mean, in the same order."""

    _fields_ = fields(
        "kind wait source target other d_in d_out bits activation add heads kv_heads d_rotary interleaved attention sight turn root_mean",
        "eps scale offset",
        "weight bias scales least",
    )


class CannotLower(Exception):
    """What a program does not know, in words."""


class Lowering:
    """The operations so far. Buffer 0 holds the stream; the others are scratch, known by a name and a width."""

    def __init__(self, name: str, d_model: int, blocks: nn.Module, norm: nn.Module | None):
        """`name` is the tower's; its blocks and its final norm."""
        self.name, self.depth = name, 0
        self.ops: list[Op] = []
        self.widths: list[int] = []
        self.scratch: dict[tuple[str, int], int] = {}
        self.tensors: list[Tensor] = []  # what operations point to
        self.attentions: list[tuple[tuple, Attention, int]] = []  # path, step, which of the sights
        self.sights: dict[tuple, Attention] = {}  # who sees what, the same for all attentions of a kind: one of them
        self.rotaries: list[Rotary] = []
        self.buffer("stream", d_model)
        known(blocks, Stack)
        assert isinstance(blocks, Stack)
        for self.depth, i in enumerate(blocks.order):
            self.block(blocks[i])
        if norm is not None:
            self.norm(norm, 0, 0)

    def buffer(self, name: str, width: int) -> int:
        if (name, width) not in self.scratch:
            self.scratch[name, width] = len(self.widths)
            self.widths.append(width)
        return self.scratch[name, width]

    def pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        if not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise CannotLower(f"a weight of {tuple(tensor.shape)} on {tensor.device} that does not lie row by row")
        self.tensors.append(tensor)
        return tensor.data_ptr()

    def real(self, tensor: Tensor | None) -> int | None:
        if tensor is not None and tensor.dtype != REAL:
            raise CannotLower(f"a weight in {tensor.dtype}")
        return self.pointer(tensor)

    def op(self, kind: int, source: int, target: int, other: int = -1, **fields: Any) -> None:
        last = self.ops[-1] if self.ops else None
        rows = last is not None and last.kind in ON_ROWS and kind in ON_ROWS
        # Products of the same rows do not read what the others of them write, but for `other`, whose columns are the same thread's.
        alike = last is not None and last.kind == kind == MULTIPLY and last.source == source
        fields = {"attention": -1, "turn": -1, "heads": 1, **fields}
        self.ops.append(Op(kind=kind, wait=not (rows or alike), source=source, target=target, other=other, **fields))

    def norm(self, part: Any, source: int, target: int, heads: int = 1) -> None:
        known(part, LayerNorm, RMSNorm)
        common: dict[str, Any] = dict(d_in=part.d, heads=heads, eps=part.eps, weight=self.real(part.weight))
        if isinstance(part, RMSNorm):
            self.op(NORM, source, target, root_mean=1, offset=part.offset, **common)
        else:
            self.op(NORM, source, target, bias=self.real(part.bias), **common)

    def products(self, source: int, *layers: tuple[Any, int, dict[str, Any]]) -> None:
        """(layer, target, fields of its operation): products of the same rows, which are prepared once."""
        ready = None
        for layer, target, fields in layers:
            known(layer, Linear, QuantisedLinear)
            if isinstance(layer, QuantisedLinear):
                matrix = layer.matrix
                wanted = (matrix.d_in, matrix.rounding)
                if ready != wanted:
                    self.op(PREPARE, source, -1, d_in=matrix.d_in, bits=matrix.rounding)
                    ready = wanted
                about: dict[str, Any] = dict(d_in=matrix.d_in, d_out=matrix.d_out, bits=matrix.bits, weight=self.pointer(matrix.codes))
                about |= dict(scales=self.pointer(matrix.scale), least=self.pointer(matrix.least))
            else:
                d_out, d_in = layer.weight.shape
                about = dict(d_in=d_in, d_out=d_out, bits=32, weight=self.real(layer.weight))
            self.op(MULTIPLY, source, target, **about, bias=self.real(layer.bias), **fields)

    def block(self, block: Any) -> None:
        """The stream through one block. A step's last product is added to the stream where the rule allows."""
        known(block, Block)
        rule, x = block.residual, 0
        known(rule, Pre, Post, Sandwich, Parallel)
        steps = [(name, [block.get_submodule(f"{name}_{place}") for place in rule.norms]) for name in block.names]
        d_model = self.widths[0]
        if isinstance(rule, Parallel):
            for i, (_, norms) in enumerate(steps):
                self.norm(norms[0], x, self.buffer(f"normed {i}", d_model))
        for i, (name, norms) in enumerate(steps):
            step = block.get_submodule(name)
            if isinstance(rule, Post):
                self.step(name, step, x, x, True)
                self.norm(norms[0], x, x)
                continue
            normed = self.buffer(f"normed {i}" if isinstance(rule, Parallel) else "normed", d_model)
            if not isinstance(rule, Parallel):
                self.norm(norms[0], x, normed)
            if isinstance(rule, Sandwich):
                branch = self.buffer("branch", d_model)
                self.step(name, step, normed, branch, False)
                self.norm(norms[1], branch, branch)
                self.op(ADD, branch, x)
            else:
                self.step(name, step, normed, x, True)

    def step(self, name: str, step: nn.Module, source: int, target: int, add: bool) -> None:
        known(step, *STEPS)
        STEPS[type(step)](self, (self.name, self.depth, name), step, source, target, add)

    def ffn(self, path: tuple, step: FFN, source: int, target: int, add: bool) -> None:
        if step.activation not in ACTIVATIONS:
            raise CannotLower(f"the activation {getattr(step.activation, '__name__', step.activation)}")
        activation, hidden = ACTIVATIONS.index(step.activation), self.buffer("hidden", width_of(step.up_proj))
        if step.gate_proj is None:
            self.products(source, (step.up_proj, hidden, dict(activation=activation)))
        else:
            gate = self.buffer("gate", width_of(step.gate_proj))
            self.products(source, (step.gate_proj, gate, {}), (step.up_proj, hidden, dict(activation=activation, other=gate)))
        self.products(hidden, (step.down_proj, target, dict(add=add)))

    def attention(self, path: tuple, step: Attention, source: int, target: int, add: bool) -> None:
        if step.memory is not None or step.add_pos:
            raise CannotLower("attention with learned keys, or with positions of its own")
        if step.score_bias is not None and not step.score_bias.fixed:
            raise CannotLower(f"{type(step.score_bias).__name__}, which looks at each layer's queries")
        width, kv_width = width_of(step.q_proj), width_of(step.k_proj)
        heads, kv_heads = width // step.d_head, kv_width // step.d_head
        q, k, v = self.buffer("q", width), self.buffer("k", kv_width), self.buffer("v", kv_width)
        sight = (getattr(step, "source", None), step.mask, id(step.score_bias))
        self.sights.setdefault(sight, step)
        about: dict[str, Any] = dict(d_in=step.d_head, heads=heads, kv_heads=kv_heads, attention=len(self.attentions))
        about["sight"] = list(self.sights).index(sight)
        self.attentions.append((path, step, about["sight"]))
        if isinstance(step, CrossAttention):
            if step.rotary is not None or step.mask is not None or step.score_bias is not None:
                raise CannotLower("cross-attention with positions or a mask of its own")
            self.products(source, (step.q_proj, q, {}))
            self.normed_heads(step.q_norm, q, heads)
        else:
            self.products(source, (step.q_proj, q, {}), (step.k_proj, k, {}), (step.v_proj, v, {}))
            self.normed_heads(step.q_norm, q, heads)
            self.normed_heads(step.k_norm, k, kv_heads)
            self.op(PLACE, q, k, v, **about, **self.turning(step))
        mixed = self.buffer("mixed", width)
        self.op(ATTEND, q, mixed, scale=step.scale, **about)
        self.products(mixed, (step.o_proj, target, dict(add=add)))

    def normed_heads(self, norm: nn.Module | None, buffer: int, heads: int) -> None:
        if norm is not None:
            self.norm(norm, buffer, buffer, heads)

    def turning(self, step: Attention) -> dict[str, Any]:
        rotary = step.rotary.part if isinstance(step.rotary, Lent) else step.rotary
        if rotary is None:
            return {}
        known(rotary, Rotary)
        if rotary not in self.rotaries:
            self.rotaries.append(rotary)
        return dict(turn=self.rotaries.index(rotary), d_rotary=rotary.d_rotary or step.d_head, interleaved=rotary.interleaved)


STEPS: dict[type, Callable[..., None]] = {
    FFN: Lowering.ffn,
    Attention: Lowering.attention,
    CrossAttention: Lowering.attention,
}


def width_of(layer: Any) -> int:
    known(layer, Linear, QuantisedLinear)
    return layer.matrix.d_out if isinstance(layer, QuantisedLinear) else layer.weight.shape[0]


def known(part: Any, *types: type) -> None:
    if type(part) not in types:
        raise CannotLower(f"{type(part).__name__}, which no program knows")
    if isinstance(part, nn.Module) and (part._forward_hooks or part._forward_pre_hooks):
        raise CannotLower(f"a hook on {type(part).__name__}")
