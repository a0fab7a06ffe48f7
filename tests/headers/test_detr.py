"""DETR at its released sizes: every name and shape of its files, on `meta`, with the backbone's names of either kind."""

import re

import pytest
import torch

from plait.core.model import parameters
from plait.models import detr
from plait.weights import config as keys
from plait.weights.rules import export, load
from plait.weights.source import Held

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

DEPTHS = {"r50": [3, 4, 6, 3], "r101": [3, 4, 23, 3]}
# Parameters of the reference's own classes; the statistics, gains and biases of frozen norms are none.
TOTALS = {"r50": 41_524_768, "r101": 60_464_672}
# ResNet-101 has 17 more blocks of the third stage (He et al. 2016, table 1): 1024 to 256 channels, 3x3, and back.
CONVOLUTIONS = {"r50": 23_454_912, "r101": 23_454_912 + 17 * (2 * 1024 * 256 + 9 * 256 * 256)}
OLDER = {"model.backbone.": "model.backbone.conv_encoder.", ".o_proj.": ".out_proj.", ".mlp.fc": ".fc"}


def reference(preset):
    """(the names and shapes of a file of the reference's, its parameters, its config)

    Its modules are called otherwise than the tensors of its files, whose names are those of 2020 (tests/parity shows both).
    """
    backbone = transformers.ResNetConfig(depths=DEPTHS[preset], out_features=["stage4"])
    settings = transformers.DetrConfig(use_timm_backbone=False, backbone_config=backbone, num_labels=91)
    with torch.device("meta"):
        peer = transformers.DetrForObjectDetection(settings)
    shapes = {}
    for name, t in peer.state_dict().items():
        for now, then in OLDER.items():
            name = name.replace(now, then)
        shapes[name] = tuple(t.shape)
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
    raw = {**settings.to_dict(), "architectures": ["DetrForObjectDetection"]}
    if names == "timm":
        theirs = {timm(name): shape for name, shape in theirs.items()}
        raw |= {"backbone_config": None, "use_timm_backbone": True, "backbone": "resnet" + preset[1:]}
    config = detr.Config(**keys.read(detr.KEYS, raw))
    assert config == detr.Config(**detr.PRESETS[preset], names=names)
    with torch.device("meta"):
        net = detr.build(config)
    assert {name: tuple(t.shape) for name, t in export(net, detr.rules(config)).items()} == theirs
    assert parameters(net) == total == TOTALS[preset]
    assert parameters(net.encoder.embed.backbone) == CONVOLUTIONS[preset]
    assert ("model.backbone.conv_encoder.model.layer1.0.downsample.1.running_mean" in theirs) == (names == "timm")


def test_what_timm_counted_is_dropped_with_its_reason():
    """The released files have counts of batches beside some of the norms that replaced those that counted."""
    with torch.device("meta"):
        net = detr.build(detr.Config())
    rules = detr.rules(detr.Config())
    file = {name: t.new_empty(t.shape, device="meta") for name, t in export(net, rules).items()}
    counts = [f"model.backbone.conv_encoder.model.layer{i}.0.downsample.1.num_batches_tracked" for i in (1, 2, 3, 4)]
    file |= {name: torch.empty((), dtype=torch.int64, device="meta") for name in counts}
    certificate = load(net, Held(file), rules)
    assert list(certificate.dropped) == counts and len(certificate.claimed) == len(file) - 4


def test_totals_of_the_paper():
    """Table 1: 41M with ResNet-50, dilated or not, and 60M with ResNet-101; the preset that learns from scratch is of 2 to 5 million."""
    for preset, wanted in (("r50", 41e6), ("r50-dc5", 41e6), ("r101", 60e6), ("r101-dc5", 60e6)):
        with torch.device("meta"):
            total = parameters(detr.build(detr.Config(**detr.PRESETS[preset])))
        assert total == pytest.approx(wanted, rel=0.015), (preset, total)
    with torch.device("meta"):
        assert 2e6 < parameters(detr.build(detr.Config(**detr.PRESETS["small"]))) < 5e6
