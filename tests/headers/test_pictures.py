"""Models of pictures at their released sizes: every name and shape of the files that the reference writes, on `meta`."""

import math

import pytest
import torch

from plait.core.model import parameters
from plait.models import dinov2, vit
from plait.weights import config as keys
from plait.weights.rules import Drop, Prefix, export

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
loading = pytest.importorskip("transformers.core_model_loading", reason="transformers before 5 has the files' names in memory")
PAGES_SHOWN = ["vit", "dinov2"]

LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
SMALL = dict(hidden_size=384, num_attention_heads=6)
GIANT = dict(hidden_size=1536, num_hidden_layers=40, num_attention_heads=24, use_swiglu_ffn=True)
DINO = dict(image_size=518, patch_size=14)
# page, preset, class, what the released config.json says beside its class's defaults, classes, parameters of the file. The totals are
# those of the reference's own classes with these configs (of ViT-B/16: 86,567,656, as timm's model of that name has too), with mask
# tokens, which are of pretraining.
RELEASED = [
    (vit, "base", "ViTForImageClassification", {}, 1000, 86_567_656),
    (vit, "base", "ViTModel", {}, 0, 86_389_248),
    (vit, "large", "ViTForImageClassification", {**LARGE, "intermediate_size": 4096}, 1000, 304_326_632),
    (vit, "deit-base", "DeiTForImageClassificationWithTeacher", {}, 1000, 87_338_192),
    (vit, "deit-small", "DeiTForImageClassificationWithTeacher", {**SMALL, "intermediate_size": 1536}, 1000, 22_436_432),
    (dinov2, "small", "Dinov2Model", {**SMALL, **DINO}, 0, 22_056_576),
    (dinov2, "base", "Dinov2ForImageClassification", DINO, 1000, 88_117_480),
    (dinov2, "giant", "Dinov2Model", {**GIANT, **DINO}, 0, 1_136_480_768),
    (dinov2, "large", "Dinov2WithRegistersForImageClassification", {**LARGE, **DINO}, 1000, 306_421_736),
]


@pytest.mark.parametrize(("page", "preset", "name", "said", "labels", "total"), RELEASED, ids=lambda x: x if isinstance(x, str) else "")
def test_every_name_and_shape_of_the_reference_is_claimed(page, preset, name, said, labels, total):
    kind = getattr(transformers, name)
    settings = kind.config_class(**said, **({"num_labels": labels} if labels else {}))
    with torch.device("meta"):
        peer = kind(settings)
    config = page.Config(**keys.read(page.KEYS, {**settings.to_dict(), "architectures": [name]}))
    with torch.device("meta"):
        net = page.build(config)
    rules = page.rules(config)
    ours = {key: tuple(t.shape) for key, t in export(net, rules).items()}
    written = loading.revert_weight_conversion(peer, peer.state_dict())  # names in memory are others than in files
    theirs = {key: tuple(t.shape) for key, t in written.items()}
    bare = "" if labels else next(entry.text for entry in rules if isinstance(entry, Prefix))
    drops = [entry.pattern for entry in rules if isinstance(entry, Drop)]
    dropped = {key: shape for key, shape in theirs.items() if any(pattern.match(bare + key) is not None for pattern in drops)}
    assert set(dropped) == {key for key in theirs if key.endswith("mask_token")}
    assert {key.removeprefix(bare): shape for key, shape in ours.items()} == {k: v for k, v in theirs.items() if k not in dropped}
    assert sum(p.numel() for p in peer.parameters()) == total
    assert parameters(net) == total - sum(math.prod(shape) for shape in dropped.values())
    assert {field: getattr(config, field) for field in page.PRESETS[preset]} == page.PRESETS[preset]


def test_totals_of_the_papers():
    """ViT: 86M, 307M, 632M (table 1); DeiT: 5M, 22M, 86M (table 1) before distillation's; DINOv2: 21M, 86M, 300M, 1100M (model card)."""
    given = [(vit, "base", 86e6), (vit, "large", 307e6), (vit, "huge", 632e6)]
    given += [(vit, "deit-tiny", 5e6), (vit, "deit-small", 22e6), (vit, "deit-base", 86e6)]
    given += [(dinov2, "small", 21e6), (dinov2, "base", 86e6), (dinov2, "large", 300e6), (dinov2, "giant", 1100e6)]
    for page, preset, wanted in given:
        with torch.device("meta"):
            total = parameters(page.build(page.Config(**{**page.PRESETS[preset], "head": "none"})))
        assert total == pytest.approx(wanted, rel=0.11), (page.__name__, preset, total)
