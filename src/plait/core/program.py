"""A tower as one native program: its module tree, lowered to a list of operations over rows (`lowering.py`) that one call runs.

A step of one token is many small operations, and the way through Python to each of them takes longer than the operation. A program's
numbers are those of the modules up to rounding. A row's are summed in an order that depends on that row alone, so they are the same
in any batch: `Model.exact` is built on that. What a program does not know, or what somebody hooked, stays with the modules.
"""

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plait.core import kernels, native
from plait.core.attention import CrossAttention
from plait.core.cache import Cache
from plait.core.lowering import MULTIPLY, PREPARE, REAL, CannotLower, Lowering, Op, fields, width_of
from plait.core.rotary import Rotary
from plait.core.stream import Call, Places
from plait.errors import InputError

if TYPE_CHECKING:
    from plait.core.model import Tower

BUFFERS = 32  # as in step.c
FEW, MANY = 16, 128  # rows up to which a program is faster than the modules, with weights in float32 and in codes (docs/log.md)


class Sight(ctypes.Structure):
    """Who sees what; step.c says what the fields of these structures mean, in the same order."""

    _fields_ = fields("slots start fold causal by_source by_head by_query by_slot", pointers="seen bias")


class Keys(ctypes.Structure):
    _fields_ = fields("by_source by_head by_slot", pointers="keys values")


class Turn(ctypes.Structure):
    _fields_ = fields("by_row by_entry", pointers="cos sin")


class Pass(ctypes.Structure):
    _fields_ = fields("rows entries d_model buffers widest slots threads", pointers="source target arena widths spent")


@cache
def _library() -> ctypes.CDLL | None:
    library = native.library("step")
    if library is not None:
        library.plait_room.restype = ctypes.c_int64
        library.plait_run.restype = None
    return library


class Program:
    """The blocks and the final norm of a tower. It holds the weights that it points to; who changes the modules lowers them again."""

    def __init__(self, tower: "Tower", name: str, d_model: int):
        """Raises `CannotLower`."""
        if tower.prompt is not None:
            raise CannotLower("entries of a prompt before its own")
        made = Lowering(name, d_model, tower.blocks, tower.norm)
        if (library := _library()) is None:
            raise CannotLower("no native library to run it")
        if len(made.widths) > BUFFERS:
            raise CannotLower(f"layers of so many widths that {len(made.widths)} buffers are needed; a program has {BUFFERS}")
        self.library, self.tensors, self.ops = library, made.tensors, (Op * len(made.ops))(*made.ops)
        self.rows = MANY if all(op.bits != 32 for op in made.ops if op.kind == MULTIPLY) else FEW
        self.widths = (ctypes.c_int64 * len(made.widths))(*made.widths)
        self.widest = max((op.d_in for op in made.ops if op.kind == PREPARE), default=0)
        self.starts = {part: sum(map(_eights, made.widths[:i])) for part, i in made.scratch.items()}
        self.attentions, self.sights, self.rotaries = made.attentions, list(made.sights.values()), made.rotaries
        self.shapes = [(width_of(step.k_proj) // step.d_head, step.d_head) for _, step, _ in self.attentions]
        self.keys = (Keys * max(1, len(self.attentions)))()
        self.given: list[Any] = [None] * len(self.attentions)  # what `keys` point to
        self.d_model, self.arena = d_model, torch.empty(0)
        self.spent: ctypes.Array | None = None  # where seconds of each operation are summed up, if wanted

    def __call__(self, x: Tensor, call: Call) -> Tensor:
        """x [B, L, D] of the embedding -> the tower's normed output. Keys and values go where the call's cache has its own."""
        rows, length, _ = x.shape
        x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        if not x.numel():
            return out
        held: list[Any] = []  # what is pointed to until the end of the run
        about = Pass(rows, length, self.d_model, len(self.widths), self.widest, 0, torch.get_num_threads())
        about.source, about.target, about.widths = x.data_ptr(), out.data_ptr(), ctypes.addressof(self.widths)
        about.spent = None if self.spent is None else ctypes.addressof(self.spent)
        for i, (path, step, _) in enumerate(self.attentions):
            if isinstance(step, CrossAttention):
                self.point(i, step.read(call, path)[:2])  # the same tensors each time where there is a cache
            elif call.cache is not None:
                self.point(i, call.cache.buffers.get(path) or call.cache.room(path, (rows, *self.shapes[i]), REAL, x.device))
        if call.cache is not None:
            call.cache.written = True
        sights = (Sight * max(1, len(self.sights)))()
        for sight, step in zip(sights, self.sights, strict=False):
            self.see(sight, step, self.places(step, length, call), rows, call, held)
        about.slots = max((sight.slots for sight in sights), default=0)
        if (room := self.library.plait_room(ctypes.byref(about))) > len(self.arena):
            self.arena = torch.empty(room)
        about.arena = self.arena.data_ptr()
        if call.cache is None:
            self.point_inside(rows, length)
        turns = (Turn * max(1, len(self.rotaries)))()
        for turn, rotary in zip(turns, self.rotaries, strict=False):
            self.turned(turn, rotary, call, held)
        self.library.plait_run(ctypes.byref(about), self.ops, ctypes.c_int64(len(self.ops)), self.keys, sights, turns)
        return out

    def point(self, i: int, parts: Any) -> None:
        """The keys and values [sources, G, S, K] of attention i."""
        k, v = parts
        if self.given[i] is not None and self.given[i][0] is k:
            return
        given = k
        if k.stride() != v.stride() or k.stride(3) != 1:
            k, v = k.contiguous(), v.contiguous()
        at = self.keys[i]
        at.by_source, at.by_head, at.by_slot = k.stride()[:3]
        at.keys, at.values = k.data_ptr(), v.data_ptr()
        self.given[i] = given, k, v

    def point_inside(self, rows: int, length: int) -> None:
        """Without a cache a pass's own keys and values are in its buffers."""
        start = self.arena.data_ptr()
        for i, ((_, step, _), (heads, d_head)) in enumerate(zip(self.attentions, self.shapes, strict=True)):
            if not isinstance(step, CrossAttention):
                at, width = self.keys[i], heads * d_head
                at.by_source, at.by_head, at.by_slot = length * _eights(width), d_head, _eights(width)
                at.keys, at.values = (start + 4 * rows * length * self.starts[part, width] for part in "kv")
                self.given[i] = None

    def places(self, step: Any, length: int, call: Call) -> Places:
        if isinstance(step, CrossAttention):
            return call.memories[step.source].whole.places
        if (cache := call.cache) is None:
            return call.stream.places
        return cache.places(cache.length + length, call.stream.x.device)

    def see(self, sight: Sight, step: Any, places: Places, rows: int, call: Call, held: list[Any]) -> None:
        sight.slots, sight.start, sight.fold = places.length, -1, 1
        if isinstance(step, CrossAttention):
            sight.fold = rows // call.memories[step.source].x.shape[0]
        elif call.cache is not None:
            sight.start = call.cache.length
        lowered = step.lowered(step.score_bias, call, places)
        sight.causal = lowered.causal
        if (mask := lowered.tensor) is not None:
            mask = mask if mask.dtype == torch.bool else mask.float()
            held.append(mask)
            strides = [0 if size == 1 else stride for size, stride in zip(mask.shape, mask.stride(), strict=True)]
            sight.by_source, sight.by_head, sight.by_query, sight.by_slot = strides
            sight.seen, sight.bias = (mask.data_ptr(), None) if mask.dtype == torch.bool else (None, mask.data_ptr())

    def turned(self, turn: Turn, rotary: Rotary, call: Call, held: list[Any]) -> None:
        width = rotary.d_rotary or next(step.d_head for _, step, _ in self.attentions if step.rotary is not None)
        cos, sin = rotary.table(call.stream, width, REAL)
        if cos.ndim == 4:  # [B, 1, L, d/2]
            turn.by_row = cos.shape[2] * cos.shape[3]
        turn.by_entry = width // 2
        cos, sin = cos.contiguous(), sin.contiguous()
        held += [cos, sin]
        turn.cos, turn.sin = cos.data_ptr(), sin.data_ptr()


def _eights(n: int) -> int:
    return -(-n // 8) * 8


def lowered(tower: "Tower", name: str, call: Call) -> Program | None:
    """The program that this forward is to be run by; None: the modules. A cache keeps it, so it lives as long as one generation."""
    x, exact = call.stream.x, call.exact
    if not (exact or call.cache is not None) or not usable(tower, call):
        return None
    if call.cache is not None and not (type(call.cache) is Cache and call.cache.plain):
        if exact:
            raise InputError("a model that is exact goes with a static cache, and not with a window's or one in 8 bits")
        return None
    kept = {} if call.cache is None else call.cache.programs
    if name not in kept and (exact or x.shape[0] * x.shape[1] <= MANY):
        try:
            kept[name] = Program(tower, name, x.shape[2])
        except CannotLower as why:
            if exact:
                raise InputError(f"this model cannot be computed exactly: its {name} has {why}") from None
            kept[name] = None
    program = kept.get(name)
    return program if program is not None and (exact or x.shape[0] * x.shape[1] <= program.rows) else None


def usable(tower: "Tower", call: Call) -> bool:
    """Whether this forward may be a program's: no gradients, nobody watches, float32 on a CPU, a static cache or none."""
    x = call.stream.x
    here = x.device.type == "cpu" and x.dtype == REAL and type(x) is Tensor and not tower.training
    free = call.watch is None and type(call.kernel) is kernels.SDPA and call.stream.pos is None and call.stream.segment is None
    eager = not torch.compiler.is_compiling() and not torch.jit.is_tracing() and not torch.is_autocast_enabled("cpu")
    return here and free and eager and not (torch.is_grad_enabled() and any(p.requires_grad for p in tower.parameters()))
