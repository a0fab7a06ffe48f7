"""Matrices in 8 or 4 bits a value, and the parts that multiply by them: what `Linear`, `Tokens` and `Tied` become (`plait.compress`).

Values stand in groups of 32 along a row, each group with a scale in float16. In 8 bits a value is scale * code with codes of -127 to
127; in 4 bits, codes of 0 to 15, it is least + scale * code, `least` in float16 as well, or -8 * scale where there is none.
These are the numbers of the GGUF types Q8_0, Q4_1 and Q4_0, in another order.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from plait.core import native
from plait.core.codes import GROUP, decoded, encoded4, encoded8, rounded
from plait.core.embeddings import Tokens
from plait.core.heads import Tied
from plait.core.linear import Linear
from plait.core.stream import Lent, Stream

LANES = 8  # rows that lie side by side, so that a vector of 32 bytes has four values of each
AT_ONCE = 2**22  # values that are taken out of their codes at a time
MANY = 128  # rows from which on torch's product of float32 numbers pays for taking them out of their codes (docs/log.md)


class Quantised(nn.Module):
    """A matrix [d_out, d_in] as codes and scales. With `rounding`, x is rounded too before a product: to 127 steps of each of its groups.

    Rows are counted up to whole eights, columns to whole groups. float16 numbers are kept as the int16 of their bits, so that a change
    of a model's dtype leaves them as they are.
    """

    codes: Tensor  # uint8 [d_out / 8, groups, bits, 8, 4]: for each group, `bits` vectors of eight rows with four bytes each
    scale: Tensor  # int16 [d_out / 8, groups, 8]
    least: Tensor | None  # as `scale`
    size: Tensor  # int64 [2], so that a file tells it

    def __init__(self, codes: Tensor, scale: Tensor, least: Tensor | None, size: Tensor, rounding: bool = True):
        """The tensors as they are stored; `packed` and `quantised` make them."""
        super().__init__()
        self.rounding = rounding
        for name, tensor in (("codes", codes), ("scale", scale), ("least", least), ("size", size)):
            self.register_buffer(name, tensor)
        self.d_out, self.d_in = size.tolist()

    @property
    def bits(self) -> int:
        return self.codes.shape[2]

    def values(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "d_out d_in"]:
        return _values(self.codes, self.scale, self.least, dtype)[: self.d_out, : self.d_in]

    def rows(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... d_in"]:
        """The rows of these numbers as float32; an index out of range is an error, as in `F.embedding`."""
        flat = ids.reshape(-1)
        if not torch.compiler.is_compiling() and flat.numel() and not (flat.min() >= 0 and flat.max() < self.d_out):
            raise IndexError(f"index out of range: rows are numbered from 0 to {self.d_out - 1}")
        block, lane = flat // LANES, flat % LANES
        halves = [None if t is None else t.view(torch.float16)[block, :, lane] for t in (self.scale, self.least)]
        codes = self.codes[block, :, :, lane].flatten(2)  # [N, groups, bytes of a group]
        return decoded(codes, halves[0], halves[1])[:, : self.d_in].view(*ids.shape, -1)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "... d_in"], bias: Tensor | None = None) -> Float[Tensor, "... d_out"]:
        """x times the matrix transposed (+ bias), in the dtype of x. A gradient goes to x as if it had not been rounded."""
        if x.shape[-1] != self.d_in:
            raise ValueError(f"rows of {x.shape[-1]} values do not fit a matrix of {self.d_in} columns")
        wanted = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
        if wanted:
            return _Product.apply(x, self.codes, self.scale, self.least, bias, self.d_out, self.rounding)  # type: ignore[return-value]
        if x.dtype != torch.float32:
            return in_torch(x, self.codes, self.scale, self.least, bias, self.d_out, self.rounding)
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor
        # Called straight in eager mode: the way through torch's dispatcher takes 20 us, a small product 10.
        return (product if traced else _product)(x, self.codes, self.scale, self.least, bias, self.d_out, self.rounding)

    def extra_repr(self) -> str:
        return f"{self.d_in} -> {self.d_out}, {self.bits} bits"


# ---- the parts ----


class QuantisedLinear(nn.Module):
    """A `Linear` whose matrix is quantised."""

    bias: nn.Parameter | None

    def __init__(self, matrix: Quantised, bias: nn.Parameter | None):
        super().__init__()
        self.matrix = matrix
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:  # computed
        return self.matrix.values()

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        return self.matrix(x, self.bias)


class QuantisedTokens(nn.Module):
    """`Tokens` whose matrix is quantised: only the rows that are asked for become float32."""

    def __init__(self, matrix: Quantised, scale: float = 1.0):
        super().__init__()
        self.matrix, self.scale = matrix, scale

    @property
    def weight(self) -> Tensor:
        return self.matrix.values()

    @property
    def size(self) -> tuple[int, int]:
        return self.matrix.d_out, self.matrix.d_in

    def forward(self, s: Stream) -> Stream:
        x = self.matrix.rows(s.x)
        return s.having(x=x if self.scale == 1.0 else x * self.scale)


class QuantisedTied(Tied):
    """Scores against the rows of a quantised embedding."""

    def forward(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return self.tokens.matrix(hidden if self.scale == 1.0 else hidden * self.scale, self.bias)


def place(net: nn.Module, matrices: dict[str, Quantised]) -> nn.Module:
    """Puts matrices where `Linear` and `Tokens` of these names stand, in place; whoever shares them (`Lent`, `Tied`) gets the new part."""
    parts = {name: net.get_submodule(name) for name in matrices}
    new: dict[nn.Module, nn.Module] = {}
    for name, part in parts.items():
        assert type(part) in (Linear, Tokens), f"{name} is a {type(part).__name__}"
        new[part] = QuantisedTokens(matrices[name], part.scale) if isinstance(part, Tokens) else QuantisedLinear(matrices[name], part.bias)  # type: ignore[arg-type]
    owners = list(net.modules())
    for lent in (value for owner in owners for value in vars(owner).values()):
        while isinstance(lent, Lent):  # what is lent may be lent on
            lent.part = new.get(lent.part, lent.part)
            lent = lent.part
    for tied in owners:
        if type(tied) is Tied and hasattr(tied.tokens, "matrix"):
            new[tied] = QuantisedTied(tied.tokens.part, tied.scale)
            new[tied].register_parameter("bias", tied.bias)
    for owner in owners:
        for name, part in owner.named_children():
            if part in new:
                owner.register_module(name, new[part].train(part.training))
    return net


# ---- packed and taken out ----


def quantised(weight: Float[Tensor, "d_out d_in"], bits: int, rounding: bool = True) -> Quantised:
    """A matrix in 8 bits, symmetric, or in 4 with a least value for each group. ValueError where float16 cannot hold a scale."""
    fill = (0, -weight.shape[1] % GROUP)
    step = max(1, AT_ONCE // 16 // max(1, weight.shape[1]))  # small enough for the many passes in 4 bits to stay in the CPU's cache
    encode = {8: encoded8, 4: encoded4}[bits]
    made = [encode(F.pad(part.float(), fill).unflatten(1, (-1, GROUP))) for part in weight.detach().split(step)]
    codes, scale, least = (None if parts[0] is None else torch.cat(parts) for parts in zip(*made, strict=True))  # type: ignore[arg-type]
    assert codes is not None and scale is not None
    if not (scale.isfinite().all() and (least is None or least.isfinite().all())):
        raise ValueError(f"values up to {weight.abs().max():.3g} are too large, or no numbers")
    return packed(codes, scale, least, weight.shape[1], rounding)


def packed(codes: UInt8[Tensor, "N G W"], scale: Tensor, least: Tensor | None, d_in: int, rounding: bool = True) -> Quantised:
    """Rows in the order in which they are multiplied. A group's codes are 32 bytes (8 bits, signed), or 16 whose low halves come first.

    `scale` and `least` are float16 [N, G]; that is how GGUF stores them, too.
    """
    n = len(codes)
    four = F.pad(codes, (0, 0, 0, 0, 0, -n % LANES)).unflatten(0, (-1, LANES)).unflatten(-1, (-1, 4))  # [N / 8, 8, G, bits, 4]
    size = torch.tensor([n, d_in], device="cpu")
    least = None if least is None else _side_by_side(least)
    return Quantised(four.permute(0, 2, 3, 1, 4).contiguous(), _side_by_side(scale), least, size, rounding)


def _side_by_side(halves: Tensor) -> Tensor:
    """[N, G] -> [N / 8, G, 8], counted up."""
    return F.pad(halves, (0, 0, 0, -len(halves) % LANES)).unflatten(0, (-1, LANES)).transpose(1, 2).contiguous().view(torch.int16)


def _values(codes: Tensor, scale: Tensor, least: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Stored blocks -> values [d_out, d_in], both counted up."""
    halves = [None if t is None else t.view(torch.float16).transpose(1, 2).flatten(0, 1) for t in (scale, least)]
    return decoded(codes.permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(2), halves[0], halves[1], dtype)  # type: ignore[arg-type]


# ---- products ----


def in_torch(x: Tensor, codes: Tensor, scale: Tensor, least: Tensor | None, bias: Tensor | None, d_out: int, rounding: bool) -> Tensor:
    """The product in torch's own operations, on any device: blocks of the matrix become numbers, one after another."""
    if rounding:
        x = x + (rounded(x.detach()) - x.detach()) if x.requires_grad else rounded(x)
    y = torch.cat([x @ block[:, : x.shape[-1]].t() for block in _blocks(codes, scale, least, x.dtype)], -1)[..., :d_out]
    return y if bias is None else y + bias


def _blocks(codes: Tensor, scale: Tensor, least: Tensor | None, dtype: torch.dtype) -> Iterator[Tensor]:
    """The values [some rows, d_in], counted up, one block after another: never all of a large matrix at once."""
    step = max(1, AT_ONCE // (LANES * GROUP * codes.shape[1]))
    for at in range(0, len(codes), step):
        yield _values(*(None if t is None else t[at : at + step] for t in (codes, scale, least)), dtype)  # type: ignore[arg-type]


class _Product(torch.autograd.Function):
    """The product in learning: nothing is kept for the way back, which takes the values out of their codes again."""

    @staticmethod
    def forward(
        ctx, x: Tensor, codes: Tensor, scale: Tensor, least: Tensor | None, bias: Tensor | None, d_out: int, rounding: bool
    ) -> Tensor:
        ctx.save_for_backward(codes, scale, least)
        ctx.d_in = x.shape[-1]
        return (_product if x.dtype == torch.float32 else in_torch)(x, codes, scale, least, bias, d_out, rounding)

    @staticmethod
    @once_differentiable  # a second derivative would be wrong without a word
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        back, at = None, 0
        if ctx.needs_input_grad[0]:
            back = grad.new_zeros(grad.numel() // grad.shape[-1], ctx.d_in)
            rows = grad.flatten(0, -2)
            for block in _blocks(*ctx.saved_tensors, grad.dtype):  # type: ignore[call-arg]
                some = rows[:, at : at + len(block)]  # the last block may be counted up
                back.addmm_(some, block[: some.shape[1], : ctx.d_in])
                at += len(block)
            back = back.view(*grad.shape[:-1], ctx.d_in)
        sums = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[4] else None
        return back, None, None, None, sums, None, None


_native = native.product


def _product(x: Tensor, codes: Tensor, scale: Tensor, least: Tensor | None, bias: Tensor | None, d_out: int, rounding: bool) -> Tensor:
    """The product of float32 rows, native on a CPU where that can be built (`native.described("product")` tells)."""
    d_in = x.shape[-1]
    rows = x.numel() // d_in
    here = x.device.type == codes.device.type == "cpu" and (rounding or rows < MANY)
    call = _native() if here else None
    if call is None:
        return in_torch(x, codes, scale, least, bias, d_out, rounding)
    x, bias = x.contiguous(), None if bias is None else bias.float().contiguous()
    y = x.new_empty(*x.shape[:-1], d_out)
    pointers = [None if t is None else t.data_ptr() for t in (codes, scale, least, bias, x, y)]
    if call(*pointers, rows, d_in, d_out, codes.shape[2], rounding, torch.get_num_threads()):
        raise MemoryError(f"no memory for {rows} rows of {d_in} values")
    return y


product: Any = torch.library.custom_op("plait::product", _product, mutates_args=())


@product.register_fake
def _(x: Tensor, codes: Tensor, scale: Tensor, least: Tensor | None, bias: Tensor | None, d_out: int, rounding: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], d_out)
