"""ViT and DeiT against the reference implementation: tiny models with random weights, exchanged through saved files, every option."""

from dataclasses import asdict, replace

import pytest
import torch
from torch.testing import assert_close

from plait.core.heads import pooled
from plait.core.stream import Stream
from plait.errors import InputError
from plait.hub.checkpoints import open_net
from plait.models import vit
from plait.weights import config as keys
from plait.weights import rules as table
from plait.weights.safetensors_writer import write_safetensors

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

SIZES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=12, patch_size=4)
OURS = vit.Config(image_size=12, patch=4, d_model=24, n_heads=3, n_layers=2, d_ff=40)
CLASSES = {
    "ViTForImageClassification": dict(head="classify"),
    "ViTModel": dict(head="pool", d_pooled=24),
    "DeiTForImageClassification": dict(head="classify", distilled=True),
    "DeiTForImageClassificationWithTeacher": dict(head="taught", distilled=True),
    "DeiTModel": dict(head="pool", d_pooled=24, distilled=True),
}


def reference(name="ViTForImageClassification", more=None, **options):
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    net = kind(kind.config_class(**{**SIZES, **options}), **(more or {})).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    return net.double()


def pixels(height=12, width=12, channels=3):
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def answered(net, x):
    """(hidden vectors, what the head makes of them)"""
    s = net(encoder=Stream(x))["encoder"]
    (head,) = net.heads.values() or [None]
    return s.x, None if head is None else head(pooled(head, s))


def theirs_of(peer, x, **options):
    out = peer(pixel_values=x, output_hidden_states=True, **options)
    base = getattr(peer, peer.base_model_prefix, peer)
    hidden = out.last_hidden_state if hasattr(out, "last_hidden_state") else base(pixel_values=x, **options).last_hidden_state
    return hidden, out.logits if hasattr(out, "logits") else out.pooler_output


OPTIONS = [
    ({"hidden_act": "relu"}, {"activation": "relu"}),
    ({"hidden_act": "gelu_new"}, {"activation": "gelu_tanh"}),
    ({"layer_norm_eps": 1e-3}, {"norm_eps": 1e-3}),
    ({"qkv_bias": False}, {"qkv_bias": False}),
    ({"num_channels": 1}, {"channels": 1}),
    ({"num_labels": 5}, {"labels": 5}),
    ({"image_size": 20, "patch_size": 5}, {"image_size": 20, "patch": 5}),
    ({"pooler_output_size": 7, "pooler_act": "relu"}, {"d_pooled": 7, "pooling": "relu"}),
    ({"encoder_stride": 4}, {}),
]
ALL = tuple({key: value for pair in OPTIONS for key, value in pair[side].items()} for side in (0, 1))
CASES = [(name, *options) for name in CLASSES for options in (({}, {}), ALL)] + [("ViTForImageClassification", *one) for one in OPTIONS]


@pytest.mark.parametrize(("name", "theirs", "ours"), CASES)
@torch.no_grad()
def test_a_saved_model_gives_the_same_numbers_and_is_written_back(name, theirs, ours, tmp_path):
    peer = reference(name, **theirs)
    peer.save_pretrained(tmp_path)
    net, certificate, settings, raw = open_net(tmp_path)
    wanted = replace(OURS, **{**CLASSES[name], **ours})
    if settings.head != "pool":
        assert replace(settings, d_pooled=wanted.d_pooled, pooling=wanted.pooling) == replace(wanted, labels=settings.labels)
    else:
        assert settings == replace(wanted, labels=settings.labels)
    x = pixels(settings.image_size, settings.image_size, settings.channels)
    hidden, scores = answered(net, x)
    their_hidden, their_scores = theirs_of(peer, x)
    assert_close(hidden, their_hidden, rtol=0, atol=1e-9)
    assert_close(scores, their_scores, rtol=0, atol=1e-9)
    back = tmp_path / "back"
    back.mkdir()
    peer.config.__class__(**keys.write(vit.KEYS, asdict(settings), raw)).save_pretrained(back)
    write_safetensors(back / "model.safetensors", table.export(net, vit.rules(settings), certificate))
    again = type(peer).from_pretrained(back, dtype=torch.float64).eval()
    assert all(torch.equal(t, again.state_dict()[key]) for key, t in peer.state_dict().items())


@pytest.mark.parametrize("name", ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher"])
@pytest.mark.parametrize("size", [(8, 8), (20, 24), (12, 16)])
@torch.no_grad()
def test_other_image_sizes_get_interpolated_positions(name, size, tmp_path):
    peer = reference(name)
    peer.save_pretrained(tmp_path)
    net = open_net(tmp_path)[0]
    x = pixels(*size)
    hidden, scores = answered(net, x)
    their_hidden, their_scores = theirs_of(peer, x, interpolate_pos_encoding=True)
    assert_close(hidden, their_hidden, rtol=0, atol=1e-9)
    assert_close(scores, their_scores, rtol=0, atol=1e-9)


@torch.no_grad()
def test_plain_float32_is_close(tmp_path):
    peer = reference()
    peer.float().save_pretrained(tmp_path)
    x = pixels().float()
    assert_close(answered(open_net(tmp_path)[0], x)[1], peer(pixel_values=x).logits, rtol=0, atol=5e-5)


@torch.no_grad()
def test_a_bare_model_without_its_pooler(tmp_path):
    peer = reference("ViTModel", more=dict(add_pooling_layer=False, use_mask_token=True))
    peer.save_pretrained(tmp_path)
    net, certificate, settings, _ = open_net(tmp_path)
    assert settings.head == "none"
    assert "embeddings.mask_token" in certificate.dropped
    assert_close(answered(net, pixels())[0], peer(pixel_values=pixels()).last_hidden_state, rtol=0, atol=1e-9)


@torch.no_grad()
def test_the_pooler_that_a_classifier_does_not_read_is_dropped_by_name(tmp_path):
    peer, bare = reference(), reference("ViTModel")
    state = peer.state_dict()
    peer.save_pretrained(tmp_path, state_dict={**state, **{f"vit.{k}": t for k, t in bare.state_dict().items() if "pooler" in k}})
    certificate = open_net(tmp_path)[1]
    assert set(certificate.dropped) == {"vit.pooler.dense.weight", "vit.pooler.dense.bias"}


@pytest.mark.parametrize("name", CLASSES)
def test_the_config_is_read_and_written(name):
    options = dict(layer_norm_eps=1e-5, hidden_act="relu", qkv_bias=False, num_channels=2, num_labels=4, pooler_output_size=8)
    peer = reference(name, **options)
    raw = {**peer.config.to_dict(), "architectures": [name]}
    read = vit.Config(**keys.read(vit.KEYS, raw))
    back = keys.write(vit.KEYS, asdict(read))
    again = {**peer.config.__class__(**back).to_dict(), "architectures": back["architectures"]}
    assert vit.Config(**keys.read(vit.KEYS, again)) == vit.Config(**keys.read(vit.KEYS, back)) == read
    wanted = replace(OURS, norm_eps=1e-5, activation="relu", qkv_bias=False, channels=2, labels=4, **{**CLASSES[name], "d_pooled": 8})
    assert read == wanted


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"image_size": [8, 12]}, r"image_size=\[8, 12\] .* only squares"),
        ({"patch_size": [4, 2]}, "patch_size"),
        ({"image_size": "12"}, "image_size='12'"),
        ({"hidden_act": "odd"}, "hidden_act='odd'"),
        ({"pooler_act": "odd"}, "pooler_act='odd'"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "ViTForMaskedImageModeling"),
        ({"new": 1}, "new=1"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(said, match):
    with pytest.raises(InputError, match=match):
        keys.read(vit.KEYS, {**reference().config.to_dict(), **said})


def test_sizes_in_pairs_are_read():
    assert keys.read(vit.KEYS, {**reference().config.to_dict(), "image_size": [8, 8], "patch_size": (2, 2)})["patch"] == 2


def test_what_no_file_can_say():
    mean = replace(OURS, pool="mean")
    with pytest.raises(InputError, match="pool='mean'"):
        keys.write(vit.KEYS, asdict(mean))
    with pytest.raises(ValueError, match="pool='mean'"):
        vit.rules(mean)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(image_size=13), "image_size=13 is no multiple of patch=4"),
        (dict(pool="mean", distilled=True), "no class token"),
        (dict(pool="mean", head="pool"), "no class token"),
        (dict(head="taught"), "distilled=True"),
    ],
)
def test_settings_that_contradict_each_other(change, match):
    with pytest.raises(ValueError, match=match):
        vit.build(replace(OURS, **change))


@torch.no_grad()
def test_the_mean_of_the_patches():
    """Without a class token: the scores are those of the mean entry, and padding is no part of it."""
    torch.manual_seed(0)
    net = vit.build(replace(OURS, pool="mean")).double().eval()
    x = pixels()
    hidden, scores = answered(net, x)
    assert hidden.shape == (2, 9, 24)
    assert_close(scores, net.heads["classify"].scores(hidden.mean(1)), rtol=0, atol=1e-12)
    real = torch.zeros(2, 12, 12, dtype=torch.bool)
    real[:, :8] = True
    s = net(encoder=Stream(x, real=real))["encoder"]
    assert_close(pooled(net.heads["classify"], s), s.x[:, :6].mean(1), rtol=0, atol=1e-12)
