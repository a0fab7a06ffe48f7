"""The one weight matrix of the library: every projection is a `Linear`, so that passes (LoRA, int8, sharding) meet it here."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from plait.core import init, native

MANY = 128  # rows


class Multiplied:
    """Another way to multiply by a float32 weight [d_out, d_in], with the same numbers up to rounding.

    It serves only without gradients and while the weight is what it was: a changed or moved weight is used itself again. Copies of a
    module have none.
    """

    def __init__(self, weight: Tensor):
        self.of = self.mark(weight)

    @staticmethod
    def mark(weight: Tensor) -> tuple[int, int]:
        return weight.data_ptr(), weight._version

    def serves(self, x: Tensor, weight: Tensor) -> bool:
        return x.dtype == torch.float32 and not torch.is_grad_enabled() and self.of == self.mark(weight)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def __deepcopy__(self, memo: dict) -> None:
        return None

    def __reduce__(self) -> tuple:
        return type(None), ()


class Packed(Multiplied):
    """A copy of a weight in the order in which oneDNN multiplies fastest on this CPU; the numbers are the same."""

    def __init__(self, weight: Tensor, rows: int):
        """`rows`: about how many rows of x a product will have."""
        super().__init__(weight)
        self.tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)

    @staticmethod
    def possible(weight: Tensor) -> bool:
        ops = torch.ops.mkldnn
        there = torch.backends.mkldnn.is_available() and hasattr(ops, "_reorder_linear_weight") and hasattr(ops, "_linear_pointwise")
        return there and weight.device.type == "cpu" and weight.dtype == torch.float32 and not weight.is_inference()

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.tensor, bias, "none", [], "")


class Fixed(Multiplied):
    """The native kernel's product, which adds up each row of x in one order whatever is beside it: what `Model.exact` is made of.

    It needs no copy, and is slower for many rows.
    """

    def __init__(self, weight: Tensor):
        """ValueError where there is no such product."""
        here = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous() and not weight.is_inference()
        product = native.product() if here else None
        if product is None:
            how = ", made in inference mode" if weight.is_inference() else ""
            raise ValueError(f"weights in {weight.dtype} on {weight.device}{how} have no product of one order")
        super().__init__(weight)
        self.tensor, self.product = weight.detach(), product

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        (d_out, d_in), x = self.tensor.shape, x.contiguous()
        y = x.new_empty(*x.shape[:-1], d_out)
        pointers = [None if t is None else t.data_ptr() for t in (self.tensor, None, None, bias, x, y)]
        self.product(*pointers, x.numel() // d_in, d_in, d_out, 32, False, torch.get_num_threads())
        return y


def affine(x: Float[Tensor, "... d_in"], weight: Tensor, bias: Tensor | None) -> Float[Tensor, "... d_out"]:
    """x Wᵀ + b. On a CPU the bias is added to the product of many rows: `F.linear` first spreads it over the output (docs/log.md)."""
    if bias is None or x.device.type != "cpu" or x.numel() < MANY * x.shape[-1]:
        return F.linear(x, weight, bias)
    return torch.mm(x.flatten(0, -2), weight.t()).add_(bias).view(*x.shape[:-1], -1)


class Linear(nn.Module):
    """y = x Wᵀ + b with `weight` [d_out, d_in] (as `torch.nn.Linear` and released files store it)."""

    bias: nn.Parameter | None
    packed: Multiplied | None = None

    def __init__(self, d_in: int, d_out: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.register_parameter("bias", nn.Parameter(torch.empty(d_out)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weight (the initialisation of the 2017 reference code), zero bias; a model's page may set its own."""
        init.xavier_uniform_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        if self.packed is not None and self.packed.serves(x, self.weight):
            return self.packed(x, self.bias)
        return affine(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}, bias={self.bias is not None}"


def plain(layer: nn.Module) -> bool:
    """Whether a layer is this file's `Linear` and nobody watches its input or output, so that its weights may be used without it."""
    return type(layer) is Linear and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)


def beside(parts: Sequence[Tensor]) -> Tensor | None:
    """The matrix [N, sum of widths] whose columns the parts [N, width] are, where they lie so: one product is quicker than several."""
    first, stride = parts[0], (sum(part.shape[1] for part in parts), 1)
    at, memory = first.storage_offset(), first.untyped_storage().data_ptr()
    for part in parts:
        if part.stride() != stride or part.storage_offset() != at or part.untyped_storage().data_ptr() != memory:
            return None
        at += part.shape[1]
    return first.as_strided((len(first), stride[0]), stride)


class _Project(torch.autograd.Function):
    """Several layers on the same rows x [N, D]: what goes back to x is summed by the products themselves. W, b, W, b ... follow x."""

    @staticmethod
    def forward(ctx, x: Tensor, *weights: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x if any(ctx.needs_input_grad[1::2]) else None, *weights[::2])  # beside frozen weights x is not needed
        return tuple(affine(x, weight, bias) for weight, bias in zip(weights[::2], weights[1::2], strict=True))  # type: ignore[arg-type]

    @staticmethod
    @once_differentiable  # a second derivative would be wrong without a word
    def backward(ctx, *grads: Tensor):  # type: ignore[override]
        x, *weights = ctx.saved_tensors
        if all(ctx.needs_input_grad[1::2]) and (whole := beside(grads)) is not None:
            widths = [len(weight) for weight in weights]
            back = whole @ torch.cat(weights) if ctx.needs_input_grad[0] else None
            sums = whole.sum(0).split(widths) if any(ctx.needs_input_grad[2::2]) else [None] * len(widths)
            return back, *[grad for pair in zip((whole.T @ x).split(widths), sums, strict=True) for grad in pair]
        back, found = None, []
        for i, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
            if ctx.needs_input_grad[0]:
                back = grad @ weight if back is None else back.addmm_(grad, weight)
            found.append(grad.T @ x if ctx.needs_input_grad[1 + 2 * i] else None)
            found.append(grad.sum(0) if ctx.needs_input_grad[2 + 2 * i] else None)
        return back, *found


def project(x: Float[Tensor, "... d_in"], *layers: nn.Module) -> Sequence[Tensor]:
    """Each layer applied to the same x; plain `Linear`s share one matrix product, whatever else stands there is called by itself.

    On a CPU that is for learning alone, where one product of the way back saves more than a copy of the weights costs. Elsewhere the
    copy is small beside the product from a few dozen rows on; below that reading the weights is the whole cost.
    """
    joined = [layer for layer in layers if isinstance(layer, Linear) and plain(layer) and layer.packed is None]
    if len(joined) < len(layers) or len(layers) < 2 or x.numel() < MANY * x.shape[-1]:
        return [layer(x) for layer in layers]
    if x.device.type == "cpu" and not torch.is_grad_enabled():
        return [layer(x) for layer in layers]
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu"):
        found = _Project.apply(x.flatten(0, -2), *[part for layer in joined for part in (layer.weight, layer.bias)])
        return [y.view(*x.shape[:-1], -1) for y in found]  # type: ignore[union-attr]
    widths = [layer.weight.shape[0] for layer in joined]
    bias = None
    if any(layer.bias is not None for layer in joined):
        bias = torch.cat([x.new_zeros(width) if layer.bias is None else layer.bias for layer, width in zip(joined, widths, strict=True)])
    return affine(x, torch.cat([layer.weight for layer in joined]), bias).split(widths, dim=-1)
