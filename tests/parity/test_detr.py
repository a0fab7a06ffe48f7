"""DETR against the reference implementation: tiny models with random weights, every option that changes what is computed."""

import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from plait.core.stream import Stream, Watcher
from plait.errors import InputError
from plait.inspect.record import record
from plait.models import detr, resnet
from plait.weights import config as keys
from plait.weights import rules as table
from plait.weights.opening import open_source

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

BACKBONE = dict(embedding_size=8, hidden_sizes=[16, 16, 24, 32], depths=[1, 1, 2, 1], out_features=["stage4"])
SIZES = dict(d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2)
SIZES |= dict(encoder_ffn_dim=24, decoder_ffn_dim=24, num_queries=5, num_labels=3)
LAYERS = dict(n_heads=2, n_decoder_heads=2, n_layers=2, n_decoder_layers=2, d_ff=24, d_decoder_ff=24)
OURS = detr.Config(n_queries=5, labels=3, d_model=16, **LAYERS, names="transformers", stem=8, widths=(16, 16, 24, 32), depths=(1, 1, 2, 1))
ATOL = 1e-9  # scores and vectors are of the order of 1 to 10


def drawn(net: nn.Module) -> None:
    """Random weights, and statistics that do something."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, dtype=torch.float64) * (0.3 if p.dim() < 4 else (2 / p[0].numel()) ** 0.5) + 0.5 * (p.dim() == 1))
        for name, b in net.named_buffers():
            b.copy_(torch.rand(b.shape, dtype=torch.float64) + (0.5 if "var" in name or "weight" in name else -0.5))


def reference(kind="DetrForObjectDetection", backbone=None, **options):
    layers = transformers.ResNetConfig(**{**BACKBONE, **(backbone or {})})
    config = transformers.DetrConfig(**{**SIZES, **options}, use_timm_backbone=False, backbone_config=layers, attn_implementation="eager")
    net = getattr(transformers, kind)(config).double().eval()
    drawn(net)
    return net


def opened(folder):
    """(the model that a saved folder describes, its settings, what its load proved)"""
    settings = detr.Config(**keys.read(detr.KEYS, json.loads((folder / "config.json").read_text("utf-8"))))
    with torch.device("meta"):
        net = detr.build(settings)
    certificate = table.load(net, open_source(folder), detr.rules(settings))
    return net.eval(), settings, certificate


def pictures(height=50, width=77):
    """Two pictures, and the pixels of the second that are real: it is smaller than the batch, and not by multiples of the stride."""
    draw = torch.Generator().manual_seed(1)
    real = torch.ones(2, height, width, dtype=torch.bool)
    real[1, height - 20 :], real[1, :, 40:] = False, False  # its 30 rows reach the second of two places, as nearest takes it
    return torch.randn(2, 3, height, width, generator=draw, dtype=torch.float64) * real[:, None], real


class Layers(Watcher):
    """Keeps what leaves each block of a tower."""

    def __init__(self, tower):
        self.tower, self.found = tower, []

    def wants(self, path):
        return len(path) == 2 and path[0] == self.tower

    def see(self, path, found):
        self.found.append(found)


def fed(net, pixels, real=None, watch=None):
    queries = torch.arange(net.decoder.embed.queries.weight.shape[0]).expand(len(pixels), -1)
    return net(encoder=Stream(pixels, real=real), decoder=queries, watch=watch)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"kind": "DetrModel"}, {"head": "none"}),
        ({"position_embedding_type": "learned"}, {"positions": "learned"}),
        ({"activation_function": "gelu"}, {"activation": "gelu"}),
        ({"auxiliary_loss": True}, {"renormed": True}),
        ({"num_queries": 9, "num_labels": 7}, {"n_queries": 9, "labels": 7}),
        ({"d_model": 24, "encoder_attention_heads": 3, "decoder_attention_heads": 4}, {"d_model": 24, "n_heads": 3, "n_decoder_heads": 4}),
        ({"encoder_layers": 1, "decoder_layers": 3}, {"n_layers": 1, "n_decoder_layers": 3}),
        ({"encoder_ffn_dim": 40, "decoder_ffn_dim": 8}, {"d_ff": 40, "d_decoder_ff": 8}),
        ({"backbone": {"layer_type": "basic"}}, {"bottleneck": False}),
        ({"backbone": {"downsample_in_first_stage": True}}, {"halved": True}),
        ({"backbone": {"downsample_in_bottleneck": True}}, {"early": True}),
        (
            {"backbone": {"depths": [2, 1], "hidden_sizes": [16, 32], "embedding_size": 16, "out_features": ["stage2"]}},
            {"depths": (2, 1), "widths": (16, 32), "stem": 16},
        ),
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()) or "plain",
)
@torch.no_grad()
def test_what_is_found_is_the_reference(theirs, ours, tmp_path):
    """Through saved folders, there and back: encoder, every layer of the decoder, scores and boxes, with padding and without."""
    peer = reference(**theirs)
    peer.save_pretrained(tmp_path / "theirs")
    net, settings, certificate = opened(tmp_path / "theirs")
    assert settings == replace(OURS, **ours)
    pixels, real = pictures()
    for mask in (None, real):
        out = peer(pixel_values=pixels, pixel_mask=None if mask is None else mask.long(), output_hidden_states=True)
        watch = Layers("decoder")
        streams = fed(net, pixels, mask, watch)
        assert_close(streams["encoder"].x, out.encoder_last_hidden_state, rtol=0, atol=ATOL)
        for found, wanted in zip(watch.found[:-1], out.decoder_hidden_states[1:-1], strict=True):
            if not settings.renormed:  # there what the reference shows is not normed yet
                assert_close(found, wanted, rtol=0, atol=ATOL)
        hidden = streams["decoder"].x
        assert_close(hidden, out.last_hidden_state, rtol=0, atol=ATOL)
        if settings.head == "detect":
            scores, boxes = net.heads["detect"](hidden)
            assert_close(scores, out.logits, rtol=0, atol=ATOL)
            assert_close(boxes, out.pred_boxes, rtol=0, atol=ATOL)
            assert boxes.std() > 0.02  # the weights are such that there is something to compare
    back = table.export(net, detr.rules(settings), certificate)
    held = load_file(tmp_path / "theirs" / "model.safetensors")
    assert back.keys() == held.keys() and all(torch.equal(t, held[name]) for name, t in back.items())
    write(tmp_path / "ours", back, keys.write(detr.KEYS, asdict(settings)))
    again, said = type(peer).from_pretrained(tmp_path / "ours", attn_implementation="eager", output_loading_info=True, dtype=torch.float64)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # Their own forwards differ in the last bit on some CPUs, by where the file's tensors lie in memory.
    assert_close(again.eval()(pixel_values=pixels).last_hidden_state, peer(pixel_values=pixels).last_hidden_state, rtol=0, atol=ATOL)


def write(folder, tensors, config):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


@torch.no_grad()
def test_attention_looks_where_the_reference_looks(tmp_path):
    """Positions join queries and keys of both, the picture's in cross-attention, and padding is not looked at."""
    peer = reference()
    peer.save_pretrained(tmp_path)
    net, _, _ = opened(tmp_path)

    pixels, real = pictures()
    out = peer(pixel_values=pixels, pixel_mask=real.long(), output_attentions=True)
    with record(net) as seen:
        streams = fed(net, pixels, real)
    shown = {"encoder self_attn": "encoder_attentions", "decoder self_attn": "decoder_attentions", "decoder cross_attn": "cross_attentions"}
    for name, weights in seen.items():
        tower, _, depth, step, _ = name.split(".")
        assert_close(weights, getattr(out, shown[f"{tower} {step}"])[int(depth)], rtol=0, atol=ATOL)
    assert len(seen) == 6
    padding = ~streams["encoder"].real[1]
    assert padding.any() and not seen["decoder.blocks.1.cross_attn.pattern"][1, :, :, padding].any()


@torch.no_grad()
def test_plain_float32_is_close(tmp_path):
    peer = reference().float()
    peer.save_pretrained(tmp_path)
    net, _, _ = opened(tmp_path)
    pixels, real = pictures()
    out = peer(pixel_values=pixels.float(), pixel_mask=real.long())
    scores, boxes = net.heads["detect"](fed(net, pixels.float(), real)["decoder"].x)
    assert_close(scores, out.logits, rtol=0, atol=1e-4)
    assert_close(boxes, out.pred_boxes, rtol=0, atol=1e-5)


def test_gradients_are_theirs(tmp_path):
    """Of the same sum, in every parameter that is stored, the backbone's too; its statistics are none."""
    peer = reference()
    peer.save_pretrained(tmp_path)
    for p in peer.parameters():
        p.requires_grad_(True)  # the reference freezes what it takes for the first layers
    net, settings, _ = opened(tmp_path)
    pixels, real = pictures()
    out = peer(pixel_values=pixels, pixel_mask=real.long())
    (out.logits.square().sum() + out.pred_boxes.sum()).backward()
    scores, boxes = net.heads["detect"](fed(net, pixels, real)["decoder"].x)
    (scores.square().sum() + boxes.sum()).backward()
    grads = detr.build(settings).double()
    silent = set()
    for (name, p), into in zip(net.named_parameters(), grads.parameters(), strict=True):
        assert p.grad is not None
        silent |= {name} - ({name} if p.grad.abs().max() > 1e-12 else set())
        into.data = p.grad
    # What the queries bring to the first layer is zero, so all of its values are one; and a bias of keys moves no softmax.
    first = {f"decoder.blocks.0.self_attn.{name}" for name in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "v_proj.weight")}
    assert silent == first | {name for name in silent if name.endswith("k_proj.bias")}
    theirs = {name: p.grad for name, p in peer.named_parameters()}
    ours = table.export(grads, detr.rules(settings))
    compared = 0
    for name, grad in ours.items():
        now = name.replace("conv_encoder.", "").replace("out_proj", "o_proj").replace(".fc", ".mlp.fc")
        if now in theirs:  # the others are statistics
            assert_close(grad, theirs[now], rtol=1e-9, atol=1e-9)
            compared += 1
    assert compared == len(theirs) == sum(1 for _ in net.parameters())


# ---- config.json ----


RELEASED = {  # what the config.json of facebook/detr-resnet-50 says beside training and classes, and of its DC5 kind
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "architectures": ["DetrForObjectDetection"],
    "attention_dropout": 0.0,
    "auxiliary_loss": False,
    "backbone": "resnet50",
    "classifier_dropout": 0.0,
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
    "id2label": {str(i): str(i) for i in range(91)},
    "is_encoder_decoder": True,
    "max_position_embeddings": 1024,
    "model_type": "detr",
    "num_hidden_layers": 6,
    "num_queries": 100,
    "position_embedding_type": "sine",
    "scale_embedding": False,
}
OWN_RESNET = {"backbone": None, "use_timm_backbone": False, "backbone_config": {"model_type": "resnet", "out_features": ["stage4"]}}
LATER = {"backbone_kwargs": {"output_stride": 16, "out_indices": [1, 2, 3, 4], "in_chans": 3}, "use_timm_backbone": True}


@pytest.mark.parametrize(
    ("said", "preset", "more"),
    [
        ({}, "r50", {}),
        ({"backbone": "resnet101"}, "r101", {}),
        ({"dilation": True}, "r50-dc5", {}),
        ({"dilation": True, "backbone": "resnet101", **LATER}, "r101-dc5", {}),
        (OWN_RESNET, "r50", {"names": "transformers"}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_released_configs_are_read_and_written(said, preset, more):
    """From what was released; what we write is read by the reference as the same model, and what it writes by us."""
    read = detr.Config(**keys.read(detr.KEYS, RELEASED | said))
    assert read == detr.Config(**{**detr.PRESETS[preset], **more})
    back = keys.write(detr.KEYS, asdict(read))
    theirs = transformers.DetrConfig(**back)
    again = {**theirs.to_dict(), "architectures": back["architectures"]}
    assert detr.Config(**keys.read(detr.KEYS, again)) == detr.Config(**keys.read(detr.KEYS, back)) == read
    timm = theirs.backbone_config.model_type == "timm_backbone"
    assert timm == (read.names == "timm") and (not timm or theirs.backbone_config.backbone == back["backbone"])


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"architectures": ["DetrForSegmentation"]}, "DetrForSegmentation"),
        ({"backbone": "resnet50d"}, "resnet50d"),
        ({"use_timm_backbone": False, "backbone": "microsoft/resnet-50"}, "microsoft/resnet-50"),
        ({"backbone_config": {"model_type": "swin"}}, "swin"),
        ({"backbone_config": {"model_type": "resnet", "odd": 1}}, "odd"),
        ({"backbone_config": {"model_type": "resnet", "out_features": ["stage3"]}}, "stage3"),
        ({"backbone_config": {"model_type": "resnet", "hidden_act": "gelu"}}, "hidden_act"),
        ({**OWN_RESNET, "dilation": True}, "dilation"),
        ({"position_embedding_type": "odd"}, "position_embedding_type"),
        ({"num_channels": 1}, "num_channels"),
        ({"activation_function": "odd"}, "activation_function"),
        ({"encoder_layerdrop": 0.5}, "encoder_layerdrop"),
        ({"new": 1}, "new"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_refused_by_name(said, named):
    with pytest.raises(InputError, match=named):
        keys.read(detr.KEYS, RELEASED | said)


def test_what_no_file_can_say_is_not_written():
    for settings in (detr.Config(**detr.PRESETS["small"]), detr.Config(widths=(64, 128, 256, 512))):
        with pytest.raises(InputError, match="no config"):
            keys.write(detr.KEYS, asdict(settings))


# ---- the backbone ----


@pytest.mark.parametrize("how", [{}, {"bottleneck": False}, {"early": True}], ids=str)
@pytest.mark.parametrize("size", [(64, 96), (75, 110)], ids=str)
@torch.no_grad()
def test_dilation_is_the_stride_not_taken(how, size):
    """Every second place of the map with dilation is the map with stride: convolutions in between see the same places."""
    strided, dilated = (resnet.ResNet(8, (16, 16, 24), (1, 2, 3), dilated=wide, **how).double() for wide in (False, True))
    drawn(strided)
    dilated.load_state_dict(strided.state_dict())
    pixels = Stream(torch.randn(1, 3, *size, dtype=torch.float64))
    far, near = (net(pixels) for net in (strided, dilated))
    every = near.x.unflatten(1, near.grid)[:, ::2, ::2]
    assert every.shape[1:3] == far.grid and near.grid != far.grid
    assert_close(every.flatten(1, 2), far.x, rtol=0, atol=ATOL)


@torch.no_grad()
def test_frozen_norms_are_batch_norms_in_evaluation():
    frozen, norm = resnet.FrozenBatchNorm(6).double(), nn.BatchNorm2d(6).double().eval()
    drawn(frozen)
    norm.load_state_dict(frozen.state_dict(), strict=False)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    assert_close(frozen(x), norm(x), rtol=0, atol=1e-12)


def test_statistics_never_learn_and_are_stored():
    net = detr.build(detr.Config(**detr.PRESETS["tiny"]))
    drawn(net)
    before = {name: b.clone() for name, b in net.named_buffers()}
    assert (
        len(before) % 4 == 0
        and before.keys() <= net.state_dict().keys()
        and not any("norm" in n and "backbone" in n for n, _ in net.named_parameters())
    )
    step = torch.optim.SGD(net.parameters(), lr=0.1)
    net.train()
    scores, boxes = net.heads["detect"](fed(net, pictures()[0].float())["decoder"].x)
    (scores.square().mean() + boxes.mean()).backward()
    step.step()
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())


# ---- alone, in a batch, padded ----


def made(preset):
    net = detr.build(detr.Config(**{**detr.PRESETS[preset], "dropout": 0.0})).double().eval()
    drawn(net)
    return net


def padded(picture, height, width):
    """[1, 3, H, W] padded with zeros as a batch is, and which pixels are real."""
    h, w = picture.shape[-2:]
    real = torch.zeros(1, height, width, dtype=torch.bool)
    real[:, :h, :w] = True
    return F.pad(picture, (0, width - w, 0, height - h)), real


@pytest.mark.parametrize("preset", ["tiny", "small"])
@torch.no_grad()
def test_alone_is_as_in_a_batch_of_one_size(preset):
    net, (pixels, _) = made(preset), pictures(64, 96)
    together = fed(net, pixels)["decoder"].x
    for i in range(2):
        assert_close(fed(net, pixels[i : i + 1])["decoder"].x[0], together[i], rtol=0, atol=ATOL)


@pytest.mark.parametrize("to", [(96, 128), (71, 90), (200, 65)], ids=str)
@torch.no_grad()
def test_padding_changes_nothing_where_it_is_kept_at_zero(to):
    """The page's own backbone: alone = padded, for sizes that are no multiples of the stride."""
    net, picture = made("small"), pictures(61, 50)[0][:1]
    alone = fed(net, picture)
    found = fed(net, *padded(picture, *to))
    assert alone["encoder"].grid == (4, 4) and int(found["encoder"].real.sum()) == 16
    assert_close(found["encoder"].x[found["encoder"].real], alone["encoder"].x[0], rtol=0, atol=ATOL)
    assert_close(found["decoder"].x, alone["decoder"].x, rtol=0, atol=ATOL)


@torch.no_grad()
def test_padding_changes_the_borders_of_a_released_backbone():
    """Frozen norms give padding a value, which convolutions carry over the border: what is far from it stays as it is."""
    net = resnet.ResNet(8, (16, 16), (1, 1)).double()
    drawn(net)
    picture = pictures(128, 128)[0][:1]
    alone = net(Stream(picture))
    found = net(Stream(*padded(picture, 192, 160)[:1], real=padded(picture, 192, 160)[1]))
    gap = (found.x[found.real].unflatten(0, alone.grid) - alone.x[0].unflatten(0, alone.grid)).abs().amax(-1)
    assert gap[:13, :13].max() == 0 and gap[14:].max() > 0.01  # of 16 x 16 places of 8 pixels
