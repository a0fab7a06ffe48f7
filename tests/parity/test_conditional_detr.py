"""Conditional DETR against the reference implementation: tiny models with random weights, every option that changes what is computed."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

import plait as library
from plait.core.stream import Stream, Watcher
from plait.data.picture_feed import BoxBatch
from plait.inspect.record import record
from plait.models import conditional_detr as page
from plait.tasks.detecting import Detecting, answers, outputs, readable
from plait.tasks.matching import Weights
from plait.weights import config as keys
from plait.weights import rules as table
from plait.weights.opening import open_source

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
modeling = pytest.importorskip("transformers.models.conditional_detr.modeling_conditional_detr")

BACKBONE = dict(embedding_size=8, hidden_sizes=[16, 16, 24, 32], depths=[1, 1, 2, 1], out_features=["stage4"])
SIZES = dict(d_model=16, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2)
SIZES |= dict(encoder_ffn_dim=24, decoder_ffn_dim=24, num_queries=5, num_labels=3)
LAYERS = dict(n_heads=2, n_decoder_heads=2, n_layers=2, n_decoder_layers=3, d_ff=24, d_decoder_ff=24)
OURS = page.Config(n_queries=5, labels=3, d_model=16, **LAYERS, names="transformers", stem=8, widths=(16, 16, 24, 32), depths=(1, 1, 2, 1))
ATOL = 1e-9  # scores and vectors are of the order of 1 to 10


@pytest.fixture
def precise(monkeypatch):
    """The reference makes the rates of its queries' sines in float32, whatever the model's type: here in float64, as all else."""
    made, arange = modeling.encode_sinusoidal_position_embedding, torch.arange

    def encoded(*args, **kwargs):
        with monkeypatch.context() as inside:
            inside.setattr(torch, "arange", lambda *given, **how: arange(*given, **{**how, "dtype": torch.float64}))
            return made(*args, **kwargs)

    monkeypatch.setattr(modeling, "encode_sinusoidal_position_embedding", encoded)


def drawn(net: nn.Module) -> None:
    """Random weights, and statistics that do something."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, dtype=torch.float64) * (0.3 if p.dim() < 4 else (2 / p[0].numel()) ** 0.5) + 0.5 * (p.dim() == 1))
        for name, b in net.named_buffers():
            b.copy_(torch.rand(b.shape, dtype=torch.float64) + (0.5 if "var" in name or "weight" in name else -0.5))


def reference(kind="ConditionalDetrForObjectDetection", backbone=None, **options):
    layers = transformers.ResNetConfig(**{**BACKBONE, **(backbone or {})})
    config = transformers.ConditionalDetrConfig(
        **{**SIZES, **options}, use_timm_backbone=False, backbone_config=layers, attn_implementation="eager"
    )
    net = getattr(transformers, kind)(config).double().eval()
    drawn(net)
    return net


def opened(folder):
    """(the model that a saved folder describes, its settings, what its load proved)"""
    settings = page.Config(**keys.read(page.KEYS, json.loads((folder / "config.json").read_text("utf-8"))))
    with torch.device("meta"):
        net = page.build(settings)
    certificate = table.load(net, open_source(folder), page.rules(settings))
    return net.eval(), settings, certificate


def pictures(height=50, width=77):
    """Two pictures, and the pixels of the second that are real: it is smaller than the batch, and not by multiples of the stride."""
    draw = torch.Generator().manual_seed(1)
    real = torch.ones(2, height, width, dtype=torch.bool)
    real[1, height - 20 :], real[1, :, 40:] = False, False
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
        ({"kind": "ConditionalDetrModel"}, {"head": "none"}),
        ({"position_embedding_type": "learned"}, {"positions": "learned"}),
        ({"activation_function": "gelu"}, {"activation": "gelu"}),
        ({"auxiliary_loss": True}, {"renormed": True}),
        ({"num_queries": 9, "num_labels": 7}, {"n_queries": 9, "labels": 7}),
        ({"d_model": 24, "encoder_attention_heads": 3, "decoder_attention_heads": 4}, {"d_model": 24, "n_heads": 3, "n_decoder_heads": 4}),
        ({"encoder_layers": 1, "decoder_layers": 1}, {"n_layers": 1, "n_decoder_layers": 1}),
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
def test_what_is_found_is_the_reference(theirs, ours, tmp_path, precise):
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
    back = table.export(net, page.rules(settings), certificate)
    held = load_file(tmp_path / "theirs" / "model.safetensors")
    assert back.keys() == held.keys() and all(torch.equal(t, held[name]) for name, t in back.items())
    write(tmp_path / "ours", back, keys.write(page.KEYS, asdict(settings)))
    again, said = type(peer).from_pretrained(tmp_path / "ours", attn_implementation="eager", output_loading_info=True, dtype=torch.float64)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # Their own forwards differ in the last bit on some CPUs, by where the file's tensors lie in memory.
    assert_close(again.eval()(pixel_values=pixels).last_hidden_state, peer(pixel_values=pixels).last_hidden_state, rtol=0, atol=ATOL)


def write(folder, tensors, config):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


@torch.no_grad()
def test_attention_looks_where_the_reference_looks(tmp_path, precise):
    """In all three kinds; padding is not looked at."""
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
    assert len(seen) == 2 + 2 * 3
    padding = ~streams["encoder"].real[1]
    assert padding.any() and not seen["decoder.blocks.2.cross_attn.pattern"][1, :, :, padding].any()


@pytest.mark.parametrize(("kind", "most"), [(torch.float32, 2e-4), (torch.float64, 2e-6)], ids=str)
@torch.no_grad()
def test_the_reference_as_it_stands_is_close(kind, most, tmp_path):
    """With its rates in float32: in float64 that is all there is between them."""
    peer = reference().to(kind)
    peer.save_pretrained(tmp_path)
    net, _, _ = opened(tmp_path)
    pixels, real = pictures()
    out = peer(pixel_values=pixels.to(kind), pixel_mask=real.long())
    scores, boxes = net.heads["detect"](fed(net, pixels.to(kind), real)["decoder"].x)
    assert_close(scores, out.logits, rtol=0, atol=most)
    assert_close(boxes, out.pred_boxes, rtol=0, atol=most)


@torch.no_grad()
def test_places_beyond_the_edge_are_the_references(tmp_path, precise):
    """Where a place's sigmoid is all but 0 or 1, a box begins at what the reference cuts it to."""
    peer = reference()
    peer.model.decoder.ref_point_head.layers[1].bias.copy_(torch.tensor([30.0, -14.0]))
    peer.save_pretrained(tmp_path)
    net, _, _ = opened(tmp_path)
    pixels, _ = pictures()
    _, boxes = net.heads["detect"](fed(net, pixels)["decoder"].x)
    assert_close(boxes, peer(pixel_values=pixels).pred_boxes, rtol=1e-9, atol=1e-12)


def test_gradients_are_theirs(tmp_path, precise):
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
    grads = page.build(settings).double()
    silent = set()
    for (name, p), into in zip(net.named_parameters(), grads.parameters(), strict=True):
        assert p.grad is not None, name
        silent |= {name} - ({name} if p.grad.abs().max() > 1e-12 else set())
        into.data = p.grad
    # What the queries bring to the first layer is zero, so all of its values are one; and a bias of keys moves no softmax.
    first = {f"decoder.blocks.0.self_attn.{name}" for name in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "v_proj.weight")}
    first |= {f"decoder.blocks.0.self_attn.pos.{name}" for name in ("q_proj.weight", "q_proj.bias", "k_proj.weight")}
    assert silent == first | {name for name in silent if name.endswith("k_proj.bias")}
    theirs = {name: p.grad for name, p in peer.named_parameters()}
    compared = 0
    for name, grad in table.export(grads, page.rules(settings)).items():
        name = name.replace("conv_encoder.", "").replace("out_proj", "o_proj").replace(".fc", ".mlp.fc")
        for old, new in {"sa_": "self_attn.", "ca_": "encoder_attn."}.items():
            name = name.replace(f".{old}", f".{new}").replace(f"{new}qpos", f"{new}q_pos").replace(f"{new}kpos", f"{new}k_pos")
            name = name.replace(f"{new}qcontent", f"{new}q_content").replace(f"{new}kcontent", f"{new}k_content")
        if name in theirs:  # the others are statistics
            assert_close(grad, theirs[name], rtol=1e-9, atol=1e-9)
            compared += 1
    assert compared == len(theirs) == sum(1 for _ in net.parameters())


# ---- objects, and how they are learned ----


def test_answers_are_the_references():
    """All pairs of a query and a class compete, so a box may have several labels."""
    pytest.importorskip("PIL", reason="Pillow is not installed (pip install 'plait[vision]')")
    processor = transformers.ConditionalDetrImageProcessorPil()
    draw = torch.Generator().manual_seed(4)
    scores, boxes = 2 * torch.randn(3, 40, 5, generator=draw), torch.rand(3, 40, 4, generator=draw)
    sizes = torch.tensor([[480, 640], [31, 17], [100, 2000]])
    net = SimpleNamespace(heads={"detect": SimpleNamespace(apart=True)})
    for threshold, least in ((0.0, 100), (0.4, 20)):
        given = SimpleNamespace(logits=scores, pred_boxes=boxes)
        theirs = processor.post_process_object_detection(given, threshold=threshold, target_sizes=sizes)
        for mine, one in zip(answers(*readable(net, scores, boxes), sizes, threshold=threshold), theirs, strict=True):
            assert len(mine.labels) >= least and len({tuple(box) for box in mine.boxes.tolist()}) < len(mine.boxes)
            assert mine.labels.tolist() == one["labels"].tolist()
            assert_close(torch.from_numpy(mine.scores), one["scores"], rtol=1e-5, atol=0)
            assert_close(torch.from_numpy(mine.boxes), one["boxes"], rtol=1e-5, atol=1e-3)


def test_objects_of_a_saved_detector(tmp_path):
    """`plait.load` and the reference's processor on the same picture files."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (pip install 'plait[vision]')")
    names = {0: "cat", 1: "dog", 2: "owl"}
    peer = reference(id2label=names, label2id={v: k for k, v in names.items()}).float()
    for name, p in peer.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in name and name.endswith("weight")), std=0.2)
    peer.save_pretrained(tmp_path)
    said = {"feature_extractor_type": "ConditionalDetrFeatureExtractor", "size": 48, "max_size": 80, "format": "coco_detection"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said), "utf-8")
    processor = transformers.ConditionalDetrImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 80})
    draw, paths = np.random.default_rng(0), []
    for i, (height, width) in enumerate(((40, 52), (33, 30))):
        paths.append(tmp_path / f"{i}.png")
        image.fromarray(draw.integers(0, 256, (6, 6, 3), np.uint8)).resize((width, height), 3).save(paths[-1])
    read = [image.open(path) for path in paths]
    with torch.no_grad():
        given = processor(read, return_tensors="pt")
        out = peer(**given)
        right = processor.post_process_object_detection(out, 0.0, [one.size[::-1] for one in read])
    model = library.load(tmp_path)
    for found, wanted in zip(model(paths, threshold=0.0), right, strict=True):
        assert len(found) == 5 * 3 == len(wanted["scores"])
        assert [one.score for one in found] == pytest.approx(wanted["scores"].tolist(), abs=2e-3)  # a grey level of a resized pixel
        theirs = sorted((int(n), *box.tolist()) for n, box in zip(wanted["labels"], wanted["boxes"], strict=True))
        for mine, (label, *box) in zip(sorted(found, key=lambda one: (one.label, one.box)), theirs, strict=True):
            assert mine.label == names[label] and mine.box == pytest.approx(box, abs=0.1)  # pixels
    scores, boxes = model.logits(given["pixel_values"][:1].numpy())
    with torch.no_grad():
        alone = peer(pixel_values=given["pixel_values"][:1])
    assert np.abs(scores - alone.logits.numpy()).max() < 1e-4 and np.abs(boxes - alone.pred_boxes.numpy()).max() < 1e-4


def boxes_of(n_classes, counts=(2, 0)):
    draw = torch.Generator().manual_seed(2)
    boxes = [0.1 + 0.4 * torch.rand(n, 4, generator=draw, dtype=torch.float64) for n in counts]
    return boxes, [torch.randint(n_classes, (n,), generator=draw) for n in counts]


@pytest.mark.parametrize("auxiliary", [False, True])
@torch.no_grad()
def test_the_loss_is_the_references(auxiliary, tmp_path, precise):
    """The reference weighs classes by 2 in its costs and by 1 in its loss, whatever its config says: here by 1 in both."""
    pytest.importorskip("scipy", reason="scipy is not installed (pip install 'plait[vision]')")
    peer = reference(class_cost=1)
    peer.save_pretrained(tmp_path)
    net, _, _ = opened(tmp_path)
    pixels, real = pictures()
    boxes, labels = boxes_of(3)
    wanted = [{"class_labels": c, "boxes": b} for b, c in zip(boxes, labels, strict=True)]
    rows = BoxBatch(pixels, real, boxes, labels, torch.tensor([[50, 77]] * 2), 2, 2)
    loss = Detecting(5, auxiliary, weights=Weights(label=1.0)).loss(net, rows)
    if not auxiliary:
        theirs = peer(pixel_values=pixels, pixel_mask=real.long(), labels=wanted).loss
    else:  # with auxiliary losses its model computes otherwise, so its loss is given what ours answers
        scores, places = outputs(net, Stream(pixels, real=real), 5, every_layer=True)
        config = SimpleNamespace(**{**peer.config.to_dict(), "auxiliary_loss": True, "num_labels": 3})
        theirs, _, _ = peer.loss_function(scores[-1], wanted, "cpu", places[-1], config, scores, places)
    assert float(loss.total) / loss.count == pytest.approx(float(theirs), rel=1e-9)
    assert float(Detecting(5, auxiliary).loss(net, rows).total) > float(loss.total)  # the paper weighs classes by 2


def test_pictures_without_boxes_have_a_loss_and_parts_add_up():
    """Without boxes every class of every answer is absent, and a place is nobody's business."""
    pytest.importorskip("scipy", reason="scipy is not installed (pip install 'plait[vision]')")
    net, (pixels, real), sizes = page.build(replace(OURS, dropout=0.0)).double(), pictures(), torch.tensor([[50, 77]] * 2)
    rows, objective = BoxBatch(pixels, real, *boxes_of(3), sizes, 2, 2), Detecting(5)
    parts = [objective.loss(net, part).total for part in objective.parts(rows, 2)]
    assert len(parts) == 2
    assert_close(parts[0] + parts[1], objective.loss(net, rows).total, rtol=1e-9, atol=0)
    loss = objective.loss(net, BoxBatch(pixels, real, *boxes_of(3, (0, 0)), sizes, 2, 0))
    scores, _ = outputs(net, Stream(pixels, real=real), 5, every_layer=True)
    p = scores.sigmoid()
    assert p.mean() < 0.05  # as if nothing were there
    assert_close(loss.total / loss.count, 2 * (-0.75 * p**2 * (1 - p).log()).sum(), rtol=1e-9, atol=0)
