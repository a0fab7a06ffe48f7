"""TimeSformer against the reference implementation: tiny models with random weights, through files, in float64.

The reference orders the places of a clip by place and then by frame, here it is by frame and then by place: `places` turns one into
the other. It has no clip in `space_only`: each frame is a row of its own, and gets scores of its own.
"""

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from plait.core import kernels
from plait.core.heads import pooled
from plait.core.residual import Rule
from plait.core.stream import Stream
from plait.errors import InputError
from plait.hub.checkpoints import open_net
from plait.inspect.record import recorded
from plait.models import timesformer
from plait.weights import config as keys
from plait.weights import rules as table
from plait.weights.safetensors_writer import write_model

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

SIZES = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40, image_size=12, patch_size=4, num_frames=3)
OURS = timesformer.Config(image_size=12, patch=4, frames=3, d_model=24, n_heads=3, n_layers=3, d_ff=40)
KINDS = ("divided_space_time", "joint_space_time", "space_only")
CLASSES = {"classify": "TimesformerForVideoClassification", "none": "TimesformerModel"}
ATOL = 1e-10


def reference(head="classify", **options):
    torch.manual_seed(0)
    settings = transformers.TimesformerConfig(**{**SIZES, **options}, attn_implementation="eager")
    net = getattr(transformers, CLASSES[head])(settings).double().eval()
    for p in net.parameters():
        nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    return net


def loaded(peer, folder):
    """The reference's model through its files, and back again: the same bits under the same names."""
    peer.save_pretrained(folder / "theirs")
    net, certificate, settings, _ = open_net(folder / "theirs")
    again, state = table.export(net, timesformer.rules(settings), certificate), peer.state_dict()
    assert set(again) == set(state)
    assert all(torch.equal(again[name], state[name]) for name in state)
    return net, settings


def clips(frames=3, height=12, width=12, channels=3):
    return torch.randn(2, frames, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def asked(peer, x):
    """(hidden, scores or None) of the reference, whose layers take the number of frames and places from its config, not from the clip."""
    config = peer.config
    own = config.num_frames, config.image_size
    config.num_frames, config.image_size = x.shape[1], x.shape[-1]
    out = peer(x, output_hidden_states=True)
    config.num_frames, config.image_size = own
    return getattr(peer, "timesformer", peer).layernorm(out.hidden_states[-1]), getattr(out, "logits", None)


def places(hidden, kind, frames):
    """The reference's entries in our order."""
    if kind == "space_only":
        by_frame = hidden.unflatten(0, (-1, frames))  # [B, T, 1 + N, D]
        return torch.cat([by_frame[:, :, 0], by_frame[:, :, 1:].flatten(1, 2)], 1)
    return torch.cat([hidden[:, :1], hidden[:, 1:].unflatten(1, (-1, frames)).transpose(1, 2).flatten(1, 2)], 1)


@torch.no_grad()
def same(peer, net, kind, x):
    hidden, logits = asked(peer, x)
    out = net(encoder=x)["encoder"]
    assert_close(out.x, places(hidden, kind, x.shape[1]), rtol=0, atol=ATOL)
    assert (logits is None) == (not net.heads)
    if logits is not None:
        head = net.heads["classify"]
        assert_close(head(pooled(head, out)), logits.unflatten(0, (2, -1)).mean(1), rtol=0, atol=ATOL)  # one row a clip, or its frames'


OPTIONS = [
    {},
    {"hidden_act": "relu"},
    {"hidden_act": "gelu_new"},
    {"layer_norm_eps": 1e-2},
    {"qkv_bias": False},
    {"num_channels": 1},
    {"num_labels": 5},
    {"patch_size": 6},
    {"num_frames": 1},
]


@pytest.mark.parametrize("head", CLASSES)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_reference_in_every_option(kind, head, tmp_path):
    for i, options in enumerate(OPTIONS):
        peer = reference(head, attention_type=kind, **options)
        net, settings = loaded(peer, tmp_path / str(i))
        assert (settings.head, settings.attention) == (head, kind)
        same(peer, net, kind, clips(settings.frames, channels=settings.channels))


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(3, 12, 12), (1, 12, 12), (2, 12, 12), (5, 12, 12), (3, 20, 20), (4, 8, 24), (7, 16, 8)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_other_numbers_of_frames_and_other_sizes(kind, frames, height, width, tmp_path):
    peer = reference(attention_type=kind)
    same(peer, loaded(peer, tmp_path)[0], kind, clips(frames, height, width))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_a_model_of_the_reference(kind, tmp_path):
    """A model that began here, in the reference's hands: the same scores."""
    config = replace(OURS, attention=kind, labels=4, norm_eps=1e-3)
    net = timesformer.build(config).double().eval()
    for p in net.parameters():
        nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    write_model(tmp_path, table.export(net, timesformer.rules(config)))
    (tmp_path / "config.json").write_text(json.dumps(keys.write(timesformer.KEYS, asdict(config))))
    peer, said = transformers.TimesformerForVideoClassification.from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    same(peer.eval(), net, kind, clips())


def test_gradients_are_the_reference(tmp_path):
    peer = reference()
    net, settings = loaded(peer, tmp_path)
    draw = torch.Generator().manual_seed(2)
    x, taste = clips(), torch.randn(2, 2, generator=draw, dtype=torch.float64)
    (peer(x).logits * taste).sum().backward()
    head = net.heads["classify"]
    (head(pooled(head, net(encoder=x)["encoder"])) * taste).sum().backward()
    for p in net.parameters():
        p.data = torch.zeros_like(p) if p.grad is None else p.grad
    back = table.export(net, timesformer.rules(settings))
    for name, p in peer.named_parameters():
        assert_close(back[name], p.grad, rtol=0, atol=1e-9, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_recorded_weights_are_the_references(kind, tmp_path):
    peer = reference(attention_type=kind)
    net, _ = loaded(peer, tmp_path)
    x = clips()
    found, streams = recorded(net, encoder=x)
    assert torch.equal(streams["encoder"].x, net(encoder=x)["encoder"].x)
    rows = []  # what the reference's attention over time reads: it gives no weights of it
    for layer in peer.timesformer.encoder.layer:
        if kind == "divided_space_time":
            layer.temporal_attention.attention.register_forward_pre_hook(lambda part, given: rows.append((part, given[0])))
    spatial = peer(x, output_attentions=True).attentions
    over_time = [part.forward(given, output_attentions=True)[1] for part, given in rows]
    for layer, wanted in enumerate(spatial):
        if kind == "joint_space_time":
            order = places(torch.arange(28.0)[None, :, None], kind, 3).flatten().long()
            wanted = wanted[:, :, order][:, :, :, order]
        assert_close(found[f"encoder.blocks.{layer}.self_attn.pattern"], wanted, rtol=0, atol=ATOL)
    for layer, wanted in enumerate(over_time):
        assert_close(found[f"encoder.blocks.{layer}.time_attn.pattern"], wanted, rtol=0, atol=ATOL)
    assert len([*found]) == len(spatial) + len(over_time)
    net.kernel = kernels.reference
    assert_close(net(encoder=x)["encoder"].x, streams["encoder"].x, rtol=0, atol=ATOL)


def test_float32_is_close(tmp_path):
    peer = reference()
    net, _ = loaded(peer, tmp_path)
    peer, net, x = peer.float(), net.float(), clips().float()
    with torch.no_grad():
        head = net.heads["classify"]
        assert_close(head(pooled(head, net(encoder=x)["encoder"])), peer(x).logits, rtol=0, atol=5e-5)


def test_the_config_is_read_and_written():
    options = dict(attention_type="joint_space_time", qkv_bias=False, num_labels=4, hidden_act="relu", layer_norm_eps=1e-5, num_channels=1)
    options |= dict(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2)
    raw = {**transformers.TimesformerConfig(**SIZES, **options).to_dict(), "architectures": [CLASSES["classify"]]}
    read = timesformer.Config(**keys.read(timesformer.KEYS, raw))
    wanted = replace(OURS, attention="joint_space_time", qkv_bias=False, labels=4, activation="relu", norm_eps=1e-5, channels=1)
    assert read == replace(wanted, dropout=0.1, attention_dropout=0.2)
    back = keys.write(timesformer.KEYS, asdict(read))
    again = {**transformers.TimesformerConfig(**back).to_dict(), "architectures": back["architectures"]}
    assert timesformer.Config(**keys.read(timesformer.KEYS, again)) == read
    deep = replace(read, drop_path=0.25)  # the reference's own class takes whole numbers only here
    assert timesformer.Config(**keys.read(timesformer.KEYS, keys.write(timesformer.KEYS, asdict(deep)))) == deep


@pytest.mark.parametrize(
    "said",
    [
        {"image_size": [12, 8]},
        {"patch_size": [4, 4]},
        {"attention_type": "axial"},
        {"drop_path_rate": 1},
        {"hidden_act": "odd"},
        {"tubelet_size": 2},
        {"architectures": ["TimesformerForPreTraining"]},
    ],
    ids=lambda said: next(iter(said)),
)
def test_what_is_not_understood_is_refused_by_name(said):
    with pytest.raises(InputError, match=next(iter(said))):
        keys.read(timesformer.KEYS, {**transformers.TimesformerConfig(**SIZES).to_dict(), **said})


def test_sizes_that_patches_do_not_fill_are_refused(tmp_path):
    """The reference cuts off what is left over."""
    peer = reference()
    peer.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "image_size": 13}))
    with pytest.raises(InputError, match="image_size=13"):
        open_net(tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        clips()[:, 0],
        Stream(clips(), real=torch.ones(2, 3, 12, 12, dtype=torch.bool)),
        clips(height=14),
        clips(channels=1),
        clips(frames=0),
    ],
    ids=["pictures", "padding", "height", "channels", "no frames"],
)
def test_what_is_no_clip_is_refused(given):
    net = timesformer.build(OURS).double()
    with pytest.raises(ValueError, match="pixels"):
        net(encoder=given)


def test_layers_are_dropped_more_often_with_depth():
    net = timesformer.build(replace(OURS, drop_path=0.4))
    assert [part.drop_path for part in net.modules() if isinstance(part, Rule)] == [0.0, 0.2, 0.4]
