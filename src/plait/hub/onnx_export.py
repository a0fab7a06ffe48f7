"""ONNX files of a model, through torch's own exporter: names of inputs and outputs as Hugging Face's Optimum has them.

    towers             files               inputs                                            outputs
    encoder            model.onnx          input_ids attention_mask (token_type_ids)         logits, or last_hidden_state without a head
    decoder            model.onnx          input_ids attention_mask past_key_values.*        logits present.*
    encoder, decoder   encoder_model.onnx  input_ids attention_mask                          last_hidden_state
                       decoder_model.onnx  input_ids encoder_hidden_states                   logits present.*
                                           encoder_attention_mask past_key_values.*

Batch and lengths are free, the past may be empty. `past_key_values.{layer}.key` [B, G, P, K] are those of self-attention;
a decoder's attention_mask [B, P + L] also covers the past. Keys and values of the encoder's vectors are computed in every call.
"""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plait.core import kernels
from plait.core.attention import Attention, CrossAttention
from plait.core.cache import Cache
from plait.core.embeddings import Types
from plait.core.model import Model
from plait.core.positions import Sinusoid, sinusoid
from plait.core.stream import Call, Places, Stream
from plait.errors import InputError

OPSET = 18  # the least that torch's exporter writes without converting


class Past(Cache):
    """A cache over tensors that are given: keys and values [B, G, P, K] of each self-attention, in the order in which they are asked."""

    def __init__(self, given: Sequence[Tensor], real: Tensor | None):
        super().__init__(0)
        self.given, self.real, self.present = list(given), real, list[Tensor]()
        self.length = given[0].shape[2]

    def extend(self, path: tuple, k: Tensor, v: Tensor, call: Call, reach: int | None = None) -> tuple[Tensor, Tensor, Places]:
        at = len(self.present)
        k_all, v_all = torch.cat([self.given[at], k], 2), torch.cat([self.given[at + 1], v], 2)
        self.present += [k_all, v_all]
        places = call.once("places of the past", lambda: self.places(self.length + k.shape[2], k.device))
        return k_all, v_all, places

    def places(self, stop: int, device: torch.device, start: int = 0) -> Places:
        return Places(stop, 0, self.real, None, device)


class Computed(nn.Module):
    """`Sinusoid` without its table, which would have the length of the example's."""

    def __init__(self, of: Sinusoid):
        super().__init__()
        self.of = of

    def forward(self, s: Stream) -> Stream:
        angles = sinusoid(s.at_positions() + self.of.first, s.x.shape[-1], self.of.base, self.of.layout)
        return s.having(x=s.x + angles.to(s.x.dtype))


class Encoding(nn.Module):
    """(ids, mask, types) -> hidden vectors of an encoder, or the scores of a head on them."""

    def __init__(self, net: Model, head: nn.Module | None):
        super().__init__()
        self.net, self.head = net, head

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        x = self.net.run(self.net.towers[0], Stream(ids, real=mask.bool(), types=types)).x
        return x if self.head is None else self.head(x)


class Continuing(nn.Module):
    """(ids, mask of all places so far, past) -> scores and what is now past, of a model of one causal tower."""

    def __init__(self, net: Model, head: nn.Module):
        super().__init__()
        self.net, self.head = net, head

    def forward(self, ids: Tensor, mask: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, ...]:
        real = mask.bool()
        cache = Past(past, real)
        here = slice(cache.length, None)
        positions = (real.cumsum(1) - 1).clamp_min(0)[:, here]
        s = Stream(ids, cache.length, real[:, here], positions=positions)
        return self.head(self.net.run(self.net.towers[-1], s, None, cache).x), *cache.present


class Answering(nn.Module):
    """(ids, the encoder's vectors and mask, past) -> scores and what is now past, of the decoder of a pair."""

    def __init__(self, net: Model, head: nn.Module):
        super().__init__()
        self.net, self.head = net, head

    def forward(self, ids: Tensor, hidden: Tensor, mask: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, ...]:
        source, target = self.net.towers
        cache = Past(past, None)
        memories = {source: Stream(hidden, real=mask.bool())}
        return self.head(self.net.run(target, Stream(ids, cache.length), memories, cache).x), *cache.present


def export_onnx(net: Model, folder: Path) -> list[Path]:
    """The ONNX files of a model in a folder that is there; their paths. Large weights lie beside in files of their own, as ONNX wants it.

    InputError where a model of its kind has no such form, or the packages for it are missing.
    """
    try:
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError:
        raise InputError("writing ONNX needs the packages onnx and onnxscript: pip install 'plait[onnx]'") from None
    kinds = {("encoder",): _encoder, ("decoder",): _decoder, ("encoder", "decoder"): _pair}
    if net.towers not in kinds:
        raise InputError(f"towers {', '.join(net.towers)}: exported are models of an encoder, of a decoder, and of both")
    if (given := net.takes(net.towers[0])) != "ids":
        raise InputError(f"a model of {given}: exported are models that read ids")
    if next(net.parameters()).dtype != torch.float32:
        raise InputError(f"its weights are {next(net.parameters()).dtype}: exported are models in float32, which --dtype f32 makes of it")
    net = _exportable(net)
    return kinds[net.towers](net, folder)


def _exportable(net: Model) -> Model:
    """A copy whose every operation takes any length: textbook attention, sinusoids computed anew."""
    net = copy.deepcopy(net).cpu().eval().requires_grad_(False)
    net.kernel = kernels.reference
    for part in list(net.modules()):
        for name, child in part.named_children():
            if isinstance(child, Sinusoid):
                setattr(part, name, Computed(child))
    return net


def _head(net: Model) -> nn.Module | None:
    return next(iter(net.heads.values()), None)


def _encoder(net: Model, folder: Path) -> list[Path]:
    typed = any(isinstance(part, Types) for part in net.modules())
    ids, mask = _ids(), torch.ones(ROWS, NEW, dtype=torch.long)
    args, names = (ids, mask, *[torch.zeros_like(ids)] * typed), ["input_ids", "attention_mask", *["token_type_ids"] * typed]
    head = None if "pool" in net.heads else _head(net)
    out = "last_hidden_state" if head is None else "logits"
    return [_write(Encoding(net, head), args, (BATCH_LENGTH,) * len(args), names, [out], folder / "model.onnx")]


def _decoder(net: Model, folder: Path) -> list[Path]:
    past, names = _past(net, net.towers[0])
    args = (_ids(), torch.ones(ROWS, PAST + NEW, dtype=torch.long), past)
    free = (BATCH_LENGTH, BATCH_LENGTH, [BATCH_PAST] * len(past))
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in names)]
    head = _head(net)
    assert head is not None
    return [_write(Continuing(net, head), args, free, ["input_ids", "attention_mask", *names], outputs, folder / "model.onnx")]


def _pair(net: Model, folder: Path) -> list[Path]:
    source, target = net.towers
    mask = torch.ones(ROWS, SOURCE, dtype=torch.long)
    ids = torch.arange(ROWS * SOURCE).reshape(ROWS, SOURCE) % 3
    names = ["input_ids", "attention_mask"]
    first = _write(Encoding(net, None), (ids, mask), (BATCH_LENGTH,) * 2, names, ["last_hidden_state"], folder / "encoder_model.onnx")
    hidden = net.run(source, ids).x
    past, names = _past(net, target)
    free = (*(BATCH_LENGTH,) * 3, [BATCH_PAST] * len(past))
    inputs = ["input_ids", "encoder_hidden_states", "encoder_attention_mask", *names]
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in names)]
    head = _head(net)
    assert head is not None
    args = (_ids(), hidden, mask, past)
    return [first, _write(Answering(net, head), args, free, inputs, outputs, folder / "decoder_model.onnx")]


# The example that the exporter follows: all sizes differ, and none is 0 or 1, which it would take for constants.
ROWS, NEW, PAST, SOURCE = 2, 3, 4, 5
FREE = torch.export.Dim.DYNAMIC
BATCH_LENGTH, BATCH_PAST = {0: FREE, 1: FREE}, {0: FREE, 2: FREE}  # the axes that may have any size


def _ids() -> Tensor:
    return torch.arange(ROWS * NEW).reshape(ROWS, NEW) % 3


def _past(net: Model, tower: str) -> tuple[list[Tensor], list[str]]:
    """An example of the past of a tower, and the names of its tensors."""
    stack = net.get_submodule(tower).blocks
    layers = [stack[i] for i in stack.order]  # type: ignore[index, union-attr]
    past, names = [], []
    for layer, block in enumerate(layers):
        for part in block.children():  # type: ignore[union-attr]
            if isinstance(part, Attention) and not isinstance(part, CrossAttention):
                heads = part.k_proj.weight.shape[0] // part.d_head
                past += [torch.zeros(ROWS, heads, PAST, part.d_head) for _ in range(2)]
                names += [f"past_key_values.{layer}.{what}" for what in ("key", "value")]
    return past, names


def _write(net: nn.Module, args: tuple, free: Any, inputs: list[str], outputs: list[str], path: Path) -> Path:
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # about its own insides, of use to nobody who exports
        # A choice between two ways to the same numbers (`core.linear.affine`) is taken as in the example, and kept as an assertion.
        program = torch.export.export(net, args, dynamic_shapes=free, strict=False, prefer_deferred_runtime_asserts_over_guards=True)
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        made = torch.onnx.export(program, input_names=inputs, output_names=outputs, opset_version=OPSET, dynamo=True, verbose=False)
        assert made is not None
        made.save(path)
    return path
