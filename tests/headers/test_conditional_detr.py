"""Conditional DETR at its released sizes: every name and shape of its files, on `meta`, with the backbone's names of either kind."""

import re

import pytest
import torch

from plait.core.model import parameters
from plait.models import conditional_detr as page
from plait.weights import config as keys
from plait.weights.rules import export, load
from plait.weights.source import Held

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

DEPTHS = {"r50": [3, 4, 6, 3], "r101": [3, 4, 23, 3]}
# Its modules are called otherwise than the tensors of its files, whose names are those of 2022 (tests/parity shows both).
OLDER = {"model.backbone.": "model.backbone.conv_encoder.", ".o_proj.": ".out_proj.", ".mlp.fc": ".fc"}
APART = re.compile(r"(decoder\.layers\.\d+)\.(self|encoder)_attn\.(?:(q|k)_(content|pos|pos_sine)|(v))_proj\.")


def apart(found):
    side, letter = "sa" if found[2] == "self" else "ca", found[5] or f"{found[3]}{found[4]}"
    return f"{found[1]}.{side}_{letter}_proj."


def reference(preset):
    """(the names and shapes of a file of the reference's, its parameters, its config)"""
    backbone = transformers.ResNetConfig(depths=DEPTHS[preset], out_features=["stage4"])
    settings = transformers.ConditionalDetrConfig(use_timm_backbone=False, backbone_config=backbone, num_labels=91)
    with torch.device("meta"):
        peer = transformers.ConditionalDetrForObjectDetection(settings)
    shapes = {}
    for name, t in peer.state_dict().items():
        for now, then in OLDER.items():
            name = name.replace(now, then)
        shapes[APART.sub(apart, name)] = tuple(t.shape)
    return shapes, sum(p.numel() for p in peer.parameters()), settings


def timm(name):
    """A name of transformers' own backbone as timm has it: layers count from 1, as convolutions and norms do."""
    front, found, rest = name.partition("conv_encoder.model.")
    if not found:
        return name
    rest = rest.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
    rest = rest.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
    rest = re.sub(r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}", rest)
    rest = re.sub(r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}", rest)
    return front + found + re.sub(r"encoder\.stages\.(\d)\.layers", lambda m: f"layer{int(m[1]) + 1}", rest)


@pytest.mark.parametrize("names", ["transformers", "timm"])
@pytest.mark.parametrize("preset", DEPTHS)
def test_every_name_and_shape_of_the_reference_is_claimed(preset, names):
    theirs, total, settings = reference(preset)
    raw = {**settings.to_dict(), "architectures": ["ConditionalDetrForObjectDetection"]}
    if names == "timm":
        theirs = {timm(name): shape for name, shape in theirs.items()}
        raw |= {"backbone_config": None, "use_timm_backbone": True, "backbone": "resnet" + preset[1:]}
    config = page.Config(**keys.read(page.KEYS, raw))
    assert config == page.Config(**page.PRESETS[preset], names=names)
    with torch.device("meta"):
        net = page.build(config)
    table = page.rules(config)
    assert {name: tuple(t.shape) for name, t in export(net, table).items()} == theirs
    assert parameters(net) == total
    assert {name for name in theirs if "qpos_proj" in name and ".ca_" in name} == {
        f"model.decoder.layers.0.ca_qpos_proj.{kind}" for kind in ("weight", "bias")
    }
    counts = [f"model.backbone.conv_encoder.model.layer{i}.0.downsample.1.num_batches_tracked" for i in (1, 2, 3, 4)]
    if names == "timm":  # the released files count batches beside some of the norms that replaced those that counted
        file = {name: torch.empty(shape, device="meta") for name, shape in theirs.items()}
        file |= {name: torch.empty((), dtype=torch.int64, device="meta") for name in counts}
        certificate = load(net, Held(file), table)
        assert list(certificate.dropped) == counts and len(certificate.claimed) == len(theirs)


def test_totals_of_the_paper():
    """Table 1: 44M with ResNet-50, dilated or not, and 63M with ResNet-101."""
    for preset, wanted in (("r50", 44e6), ("r50-dc5", 44e6), ("r101", 63e6), ("r101-dc5", 63e6)):
        with torch.device("meta"):
            total = parameters(page.build(page.Config(**page.PRESETS[preset])))
        assert total == pytest.approx(wanted, rel=0.02), (preset, total)
