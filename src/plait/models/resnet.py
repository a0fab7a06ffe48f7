"""ResNet (He et al. 2016): no model of its own here, but what turns pixels into the entries of a page that reads pictures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.convolution import Conv, FrozenBatchNorm, Levels, Unit, halvings
from plait.core.stream import Stream
from plait.weights.rules import Entry, Keys, drop, fixed, group, key, read_keys, rule, write_keys

EXPANSION = 4  # of a bottleneck: its 3x3 convolution has a fourth of the channels (table 1)


class Residual(nn.Module):
    """Convolutions beside a shortcut, which has one of its own where the shape changes (section 3.3)."""

    def __init__(self, units: Sequence[Unit], shortcut: Unit | None):
        super().__init__()
        self.units, self.shortcut = nn.ModuleList(units), shortcut

    def forward(self, x: Tensor, levels: Levels | None) -> Tensor:
        *units, last = self.units
        y = x
        for unit in units:
            y = unit(y, levels)
        return last(y, levels, x if self.shortcut is None else self.shortcut(x, levels, activated=False))


class ResNet(nn.Module):
    """Pixels [B, 3, H, W] as a stream -> an entry [B, h * w, widths[-1]] for each place of the last stage's map, whose grid is (h, w).

    `widths` and `depths` are channels and blocks of each stage; every stage after the first halves the map, the stem quarters it.
    `bottleneck` blocks have three convolutions, others two (figure 5); `early` ones have their stride in the first (the paper; later
    code has it in the 3x3). `halved`: the first stage halves the map too. `dilated`: the last one does not, and its convolutions look
    twice as far instead (DC5 of Carion et al. 2020, section 4). `real` [B, H, W] tells pixels from padding.
    """

    takes = "pixels"

    def __init__(
        self,
        stem: int = 64,
        widths: Sequence[int] = (256, 512, 1024, 2048),
        depths: Sequence[int] = (3, 4, 6, 3),
        *,
        bottleneck: bool = True,
        early: bool = False,
        halved: bool = False,
        dilated: bool = False,
        norm: Callable[[int], nn.Module] = FrozenBatchNorm,
    ):
        super().__init__()
        if len(widths) != len(depths) or not widths:
            raise ValueError(f"widths={list(widths)} and depths={list(depths)} must have a number for each stage")
        self.bottleneck, self.early, self.norm = bottleneck, early, norm
        self.stem = Unit(Conv(3, stem, 7, 2), norm)
        self.stages = nn.ModuleList()
        for i, (d_in, d, depth) in enumerate(zip((stem, *widths), widths, depths, strict=False)):
            stride, far = (2 if i or halved else 1), 1
            if dilated and i == len(widths) - 1:
                stride, far = 1, 2
            blocks = [self.block(d_in, d, stride, 1, far), *(self.block(d, d, 1, far, far) for _ in range(depth - 1))]
            self.stages.append(nn.ModuleList(blocks))

    def block(self, d_in: int, d_out: int, stride: int, before: int, after: int) -> Residual:
        """`before` and `after` are how far its 3x3 convolutions look, those up to where its stride is or would be and those behind."""
        if self.bottleneck:
            d, (one, three) = d_out // EXPANSION, (stride, 1) if self.early else (1, stride)
            convs = [Conv(d_in, d, 1, one), Conv(d, d, 3, three, after if self.early else before), Conv(d, d_out, 1)]
        else:
            convs = [Conv(d_in, d_out, 3, stride, before), Conv(d_out, d_out, 3, 1, after)]
        shortcut = Unit(Conv(d_in, d_out, 1, stride), self.norm) if stride > 1 or d_in != d_out else None
        return Residual([Unit(conv, self.norm) for conv in convs], shortcut)

    def forward(self, s: Stream) -> Stream:
        if s.x.ndim != 4 or s.x.shape[1] != 3 or not s.x.numel():
            raise ValueError(f"pixels {list(s.x.shape)}: this model takes pictures of three channels, [B, 3, H, W]")
        levels = None if s.real is None or self.norm is FrozenBatchNorm else halvings(s.real)
        x = self.stem(s.x.contiguous(memory_format=torch.channels_last), levels)
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            for block in stage:  # type: ignore[union-attr]
                x = block(x, levels)
        real = None
        if s.real is not None:
            size = x.shape[-2:]
            real = F.interpolate(s.real[:, None].float(), size=size).bool() if levels is None else levels[size]
        return s.having(x=x.flatten(2).mT, real=real if real is None else real.flatten(1), grid=tuple(x.shape[-2:]))


NORM = "{x:weight|bias|running_mean|running_var}"
COUNT = "how many batches a norm that no longer learns has seen"


def rules(theirs: str, ours: str, c: Any) -> list[Entry]:
    """Names in files of timm, or of transformers, as `c.names` says; `theirs` and `ours` are what all of them begin with."""
    if c.names == "transformers":
        units = {"embedder.embedder": "stem"}
        units["encoder.stages.{i}.layers.{j}.layer.{k:0|1|2}"] = "stages.{i}.{j}.units.{k:0|1|2}"
        units["encoder.stages.{i}.layers.{j}.shortcut"] = "stages.{i}.{j}.shortcut"
        found = [(f"{a}.convolution", f"{a}.normalization", b) for a, b in units.items()]
    else:
        found = [("conv1", "bn1", "stem")]
        for i in range(len(c.widths)):
            block, here = f"layer{i + 1}.{{j}}.", f"stages.{i}.{{j}}."
            found += [(f"{block}conv{k + 1}", f"{block}bn{k + 1}", f"{here}units.{k}") for k in range(2 + c.bottleneck)]
            found.append((f"{block}downsample.0", f"{block}downsample.1", f"{here}shortcut"))
    table: list[Entry] = []
    for conv, norm, unit in found:
        table.append(rule(f"{theirs}{conv}.weight", f"{ours}{unit}.conv.weight"))
        table.append(rule(f"{theirs}{norm}.{NORM}", f"{ours}{unit}.norm.{NORM}"))
        table.append(drop(f"{theirs}{norm}.num_batches_tracked", COUNT))
    return table


BASIC = dict(widths=(64, 128, 256, 512), bottleneck=False)
WIDE = dict(widths=(256, 512, 1024, 2048), bottleneck=True)
RELEASED: dict[str, Any] = {  # table 1
    "resnet18": dict(**BASIC, depths=(2, 2, 2, 2)),
    "resnet34": dict(**BASIC, depths=(3, 4, 6, 3)),
    "resnet50": dict(**WIDE, depths=(3, 4, 6, 3)),
    "resnet101": dict(**WIDE, depths=(3, 4, 23, 3)),
    "resnet152": dict(**WIDE, depths=(3, 8, 36, 3)),
}
TIMM: dict[str, Any] = dict(names="timm", backbone_norm="frozen", stem=64, early=False, halved=False)
OWN: dict[str, Any] = dict(names="transformers", backbone_norm="frozen", dilated=False)


def _only(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if other := [f"{name}={settings[name]!r}" for name, value in wanted.items() if settings[name] != value]:
        raise ValueError(f"it has no {', '.join(other)}")


def _named(raw: Mapping[str, Any]) -> dict[str, Any]:
    name, stride, last = raw["backbone"], raw.get("output_stride"), (raw.get("out_indices") or [4])[-1]
    if name not in RELEASED:
        raise ValueError(f"backbone={name!r} is not known here: there is {', '.join(RELEASED)}")
    if stride not in (None, 16, 32) or last not in (4, -1):
        raise ValueError(f"output_stride={stride!r}, out_indices=[..., {last!r}]: only the last map is read, at a stride of 32 or 16")
    return {**TIMM, **RELEASED[name], "dilated": stride == 16}


def _name(settings: Mapping[str, Any]) -> dict[str, Any]:
    _only(settings, TIMM)
    for name, shape in RELEASED.items():
        if all(settings[field] == value for field, value in shape.items()):
            return {"backbone": name, "output_stride": 16 if settings["dilated"] else None}
    raise ValueError(f"no backbone of timm has widths={settings['widths']} and depths={settings['depths']}: choose names='transformers'")


def _stages(raw: Mapping[str, Any]) -> dict[str, Any]:
    like = RELEASED["resnet50"]
    widths, depths = tuple(raw.get("hidden_sizes") or like["widths"]), tuple(raw.get("depths") or like["depths"])
    last = (raw.get("out_features") or [f"stage{len(depths)}"])[-1]
    if last != f"stage{len(depths)}" or (raw.get("out_indices") or [len(depths)])[-1] not in (len(depths), -1):
        raise ValueError(f"out_features=[..., {last!r}]: only the last map is read, that of stage{len(depths)}")
    return {**OWN, "widths": widths, "depths": depths}


def _stage_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    _only(settings, OWN)
    widths, depths = list(settings["widths"]), list(settings["depths"])
    return {"hidden_sizes": widths, "depths": depths, "out_features": [f"stage{len(depths)}"]}


KEYS = (
    Keys(
        "timm_backbone",
        [group(["backbone", "output_stride", "out_indices"], _named, _name), fixed("num_channels", 3), fixed("in_chans", 3)],
        ignored=["features_only", "freeze_batch_norm_2d", "out_features", "stage_names", "use_pretrained_backbone"],
    ),
    Keys(
        "resnet",
        [
            group(["hidden_sizes", "depths", "out_features", "out_indices"], _stages, _stage_keys),
            key("embedding_size", "stem", 64),
            key("layer_type", "bottleneck", "bottleneck", kind=str, values={"bottleneck": True, "basic": False}),
            fixed("hidden_act", "relu", "the reference has it in some places only"),
            key("downsample_in_bottleneck", "early", False),
            key("downsample_in_first_stage", "halved", False),
            fixed("num_channels", 3),
        ],
        ignored=["stage_names"],
    ),
)


def read(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a backbone's own config describes, timm's or transformers'."""
    return read_keys(KEYS, raw)


def write(settings: Mapping[str, Any]) -> dict[str, Any]:
    return write_keys([table for table in KEYS if (table.model_type == "resnet") == (settings["names"] == "transformers")], settings)
