"""The config.json of Conditional DETR: read, written, and read by the reference."""

from dataclasses import asdict

import pytest

from plait.errors import InputError
from plait.models import conditional_detr as page
from plait.weights import config as keys

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

RELEASED = {  # keys of a config.json of the time of the release (transformers 4), beside those of training and classes
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "architectures": ["ConditionalDetrForObjectDetection"],
    "attention_dropout": 0.0,
    "auxiliary_loss": False,
    "backbone": "resnet50",
    "bbox_cost": 5,
    "class_cost": 2,
    "cls_loss_coefficient": 2,
    "d_model": 256,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 2048,
    "decoder_layerdrop": 0.0,
    "decoder_layers": 6,
    "dilation": False,
    "dropout": 0.1,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "encoder_layerdrop": 0.0,
    "encoder_layers": 6,
    "focal_alpha": 0.25,
    "id2label": {str(i): str(i) for i in range(91)},
    "is_encoder_decoder": True,
    "max_position_embeddings": 1024,
    "model_type": "conditional_detr",
    "num_channels": 3,
    "num_hidden_layers": 6,
    "num_queries": 300,
    "position_embedding_type": "sine",
    "scale_embedding": False,
    "use_pretrained_backbone": True,
    "use_timm_backbone": True,
}
OWN_RESNET = {"backbone": None, "use_timm_backbone": False, "backbone_config": {"model_type": "resnet", "out_features": ["stage4"]}}


@pytest.mark.parametrize(
    ("said", "preset", "more"),
    [
        ({}, "r50", {}),
        ({"num_queries": None}, "r50", {}),
        ({"backbone": "resnet101"}, "r101", {}),
        ({"dilation": True}, "r50-dc5", {}),
        (OWN_RESNET, "r50", {"names": "transformers"}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_released_configs_are_read_and_written(said, preset, more):
    """What we write is read by the reference as the same model, and what it writes by us."""
    raw = {name: value for name, value in (RELEASED | said).items() if value is not None or name == "backbone"}
    read = page.Config(**keys.read(page.KEYS, raw))
    assert read == page.Config(**{**page.PRESETS[preset], **more}) and read.n_queries == 300
    back = keys.write(page.KEYS, asdict(read))
    theirs = transformers.ConditionalDetrConfig(**back)
    again = {**theirs.to_dict(), "architectures": back["architectures"]}
    assert page.Config(**keys.read(page.KEYS, again)) == page.Config(**keys.read(page.KEYS, back)) == read
    assert (theirs.backbone_config.model_type == "timm_backbone") == (read.names == "timm")


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"architectures": ["ConditionalDetrForSegmentation"]}, "ConditionalDetrForSegmentation"),
        ({"model_type": "detr"}, "detr"),
        ({"backbone": "resnet50d"}, "resnet50d"),
        ({"position_embedding_type": "odd"}, "position_embedding_type"),
        ({"decoder_layerdrop": 0.5}, "decoder_layerdrop"),
        ({"new": 1}, "new"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_refused_by_name(said, named):
    with pytest.raises(InputError, match=named):
        keys.read(page.KEYS, RELEASED | said)
