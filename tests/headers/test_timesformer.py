"""TimeSformer at its released sizes: every name and shape of the reference's own model, on `meta`."""

import pytest
import torch

from plait.core.model import parameters
from plait.models import timesformer
from plait.weights import config as keys
from plait.weights.rules import export

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

# What each released config.json says beside its class's defaults, and what the reference's own class has with it.
RELEASED = {
    "base": ({}, 121_566_352),
    "hr": (dict(image_size=448, num_frames=16), 122_024_080),
    "large": (dict(num_frames=96), 121_633_936),
}


@pytest.mark.parametrize("head", ["ForVideoClassification", "Model"])
@pytest.mark.parametrize("preset", RELEASED)
def test_every_name_and_shape_of_the_reference_is_claimed(preset, head):
    said, total = RELEASED[preset]
    kind = getattr(transformers, f"Timesformer{head}")
    settings = transformers.TimesformerConfig(**said, num_labels=400)
    with torch.device("meta"):
        peer = kind(settings)
    theirs = {name: tuple(t.shape) for name, t in peer.state_dict().items()}
    config = timesformer.Config(**keys.read(timesformer.KEYS, {**settings.to_dict(), "architectures": [kind.__name__]}))
    with torch.device("meta"):
        net = timesformer.build(config)
    front = "timesformer." if head == "Model" else ""
    assert {name.removeprefix(front): tuple(t.shape) for name, t in export(net, timesformer.rules(config)).items()} == theirs
    assert parameters(net) == total - (0 if net.heads else 400 * 769)
    assert {field: getattr(config, field) for field in timesformer.PRESETS[preset]} == timesformer.PRESETS[preset]


def test_totals_of_the_paper():
    """Table 1: 85.9M with attention over space only or over both at once, 121.4M divided."""
    kinds: tuple[tuple[timesformer.Kind, float], ...] = (
        ("space_only", 85.9e6),
        ("joint_space_time", 85.9e6),
        ("divided_space_time", 121.4e6),
    )
    for attention, wanted in kinds:
        with torch.device("meta"):
            total = parameters(timesformer.build(timesformer.Config(labels=400, attention=attention)))
        assert total == pytest.approx(wanted, rel=0.005), (attention, total)
