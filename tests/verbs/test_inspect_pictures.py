"""`plait inspect` of models that take pixels: what it records is what they compute, and lies where their pixels came from."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from plait import models
from plait.core import kernels
from plait.core.model import reset
from plait.hub import load
from plait.inspect.page import LEVELS, unpack
from plait.inspect.record import recorded
from plait.inspect.rollout import rollout
from plait.tasks.boxes import corners

VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
CUT = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}
BORDER = {**CUT, "size": {"max_height": 16, "max_width": 16}}
DETR = {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 64, "longest_edge": 100}}


def saved(folder, arch: str, task: str, preparation, labels: int, **settings):
    """A run's folder, of a model that nobody trained."""
    config = {**models.PAGES[arch].PRESETS["tiny"], "labels": labels, **settings}
    net = models.build(arch, config)
    reset(net, seed=1)
    with torch.no_grad():
        for parameter in net.parameters():  # some start at zero, which would make every weight the same
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    answers = {"id2label": {str(i): f"kind {i}" for i in range(labels)}}
    said = {"format": 1, "plait": "0.1.0", "task": task, "arch": arch, "config": config, "max_length": None, "answers": answers}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(said))
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base = tmp_path_factory.mktemp("pictures")
    return {
        "vit": saved(base / "vit", "vit", "classify", VIT, 3, head="taught", distilled=True),
        "registers": saved(base / "registers", "dinov2", "classify", CUT, 3, registers=2),
        "modern": saved(base / "modern", "modern-vision", "classify", BORDER, 3),
        "tubes": saved(base / "tubes", "modern-video", "classify", BORDER, 2),
        "detr": saved(base / "detr", "detr", "detect", DETR, 5),
        "clips": saved(
            base / "clips", "timesformer", "classify", {"image_processor_type": "VideoMAEImageProcessor", "size": 8, "crop_size": 8}, 2
        ),
    }


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "a picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)).save(path)
    return path


def page_of(path) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.S)
    return json.loads(text)


def views_of(plait, run, picture, tmp_path, *more):
    code, out, err = plait("inspect", run, picture, "--out", tmp_path / "page.html", *more)
    assert code == 0, err
    return {view["kind"]: view for view in page_of(tmp_path / "page.html")["views"]}, json.loads(out)


def weights_of(view) -> np.ndarray:
    return unpack(view["roots"], (view["layers"], view["heads"], len(view["queries"]), len(view["keys"])))


@pytest.mark.parametrize("name", ["vit", "registers", "modern", "detr"])
def test_recording_changes_no_bit(runs, picture, name):
    model = load(runs[name])
    [(pixels, _)] = model.batches([picture])
    given: dict[str, Any] = {"encoder": pixels} | ({"decoder": torch.arange(7)[None]} if name == "detr" else {})
    with torch.inference_mode():
        plain = model.net(**given)
    seen, watched = recorded(model.net, "**", **given)
    assert seen and all(torch.equal(plain[tower].x, watched[tower].x) for tower in plain)


def test_the_page_of_an_encoder_has_its_weights_and_rollout(plait, runs, picture, tmp_path):
    views, said = views_of(plait, runs["vit"], picture, tmp_path)
    assert list(views) == ["patches over patches", "rollout", "gradient x input", "lens"]
    assert re.match(r"kind \d 0\.\d{3}, ", said["answer"])
    model = load(runs["vit"])
    model.net.kernel = kernels.reference
    [(pixels, _)] = model.batches([picture])
    expected = recorded(model.net, encoder=pixels)[0].stacked("**.pattern")[:, 0].numpy()
    found = weights_of(views["patches over patches"])
    assert found.shape == (2, 4, 18, 18) and np.abs(found - expected).max() <= 1 / LEVELS + 1e-6
    assert np.abs(weights_of(views["rollout"])[:, 0] - rollout(expected)).max() <= 1 / LEVELS + 1e-6
    assert views["rollout"]["queries"][:3] == ["class", "distillation", "0,0"]


def test_without_a_class_token_rollout_begins_with_the_mean(plait, runs, picture, tmp_path):
    views, _ = views_of(plait, runs["modern"], picture, tmp_path)
    weights, rolled = weights_of(views["patches over patches"]), weights_of(views["rollout"])[:, 0]
    assert views["rollout"]["queries"][:2] == ["mean of entries", "0,0"] and rolled.shape == (2, 17, 16)
    assert np.abs(rolled[:, 0] - rollout(weights).mean(1)).max() < 2 / LEVELS


@pytest.mark.parametrize(
    ("name", "corner", "cell"),  # of a picture of 60 x 40
    [
        ("vit", (0, 0), (0.25, 0.25)),  # squeezed into the square
        ("registers", (7 / 30, 2 / 20), (4 / 30, 4 / 20)),  # made 30 x 20, the 16 x 16 in the middle
        ("modern", (0, -3 / 10), (4 / 16, 4 / 10)),  # made 16 x 10, with 3 black rows above and below
        ("detr", (0, 0), (32 / 96, 32 / 64)),  # made 96 x 64, by a backbone that halves five times
    ],
)
def test_patches_lie_where_their_pixels_came_from(plait, runs, picture, tmp_path, name, corner, cell):
    views, _ = views_of(plait, runs[name], picture, tmp_path)
    places = [place for place in views["patches over patches"]["on"]["k"]["places"] if place is not None]
    (x, y), (w, h) = corner, cell
    assert places[0] == pytest.approx([x, y, x + w, y + h], abs=1e-4)
    columns = 3 if name == "detr" else 4
    assert places[columns + 1] == pytest.approx([x + w, y + h, x + 2 * w, y + 2 * h], abs=1e-4)
    assert places[-1][2:] == pytest.approx([x + columns * w, y + len(places) // columns * h], abs=1e-4)
    before = {"vit": ["class", "distillation"], "registers": ["class", "register 0", "register 1"]}.get(name, [])
    assert views["patches over patches"]["keys"][: len(before) + 1] == [*before, "0,0"]


def test_a_bright_patch_is_where_the_picture_was_changed(runs, picture, plait, tmp_path):
    """Pixels that a patch's place names are those that its entry is made of: another picture there changes that entry alone."""
    model = load(runs["registers"])
    views, _ = views_of(plait, runs["registers"], picture, tmp_path)
    pixels = model.read(picture)
    x0, y0, x1, y1 = views["patches over patches"]["on"]["k"]["places"][3 + 6]
    other = pixels.copy()
    other[round(y0 * 40) + 2 : round(y1 * 40) - 2, round(x0 * 60) + 2 : round(x1 * 60) - 2] //= 4
    embed = model.net.get_submodule("encoder").embed.patches
    with torch.inference_mode():
        first, second = (embed(next(iter(model.batches([one])))[0]).x[0] for one in (pixels, other))
    assert (first - second).abs().amax(-1).argmax() == 6


def test_object_queries_bring_their_boxes(plait, runs, picture, tmp_path):
    views, _ = views_of(plait, runs["detr"], picture, tmp_path, "--kind", "decoder")
    assert next(iter(views)) == "objects over objects"  # what was asked for comes first
    model = load(runs["detr"])
    [(pixels, _)] = model.batches([picture])
    scores, boxes = model.said(pixels)
    cross = views["objects over patches"]
    assert np.allclose(cross["on"]["q"]["places"], corners(torch.from_numpy(boxes[0])), atol=1e-4)
    odds = torch.from_numpy(scores[0]).softmax(-1)[:, :-1]
    assert cross["queries"] == [f"kind {int(row.argmax())} {float(row.max()):.2f}" for row in odds]
    assert cross["start"] == int(odds.amax(-1).argmax())
    expected = recorded(model.net, encoder=pixels, decoder=torch.arange(7)[None])[0].stacked("**.cross_attn.pattern")[:, 0].numpy()
    assert np.abs(weights_of(cross) - expected).max() <= 1 / LEVELS


def test_only_objects_as_sure_as_asked_are_marked(plait, runs, picture, tmp_path):
    views, _ = views_of(plait, runs["detr"], picture, tmp_path, "--threshold", "0")
    cross = views["objects over patches"]
    sure = sorted((float(name.split()[-1]) for name in cross["queries"]), reverse=True)
    assert len(cross["on"]["q"]["offered"]) == len(cross["queries"]) == 7
    views, said = views_of(plait, runs["detr"], picture, tmp_path, "--threshold", sure[2] - 0.005)
    offered = views["objects over patches"]["on"]["q"]["offered"]
    assert [float(cross["queries"][i].split()[-1]) for i in offered] == [one for one in sure if one >= sure[2]]
    assert sum(int(part.split()[0]) for part in said["answer"].split(", ")) == len(offered)


@pytest.mark.parametrize(
    ("name", "more"), [("vit", ["--kind", "rollout"]), ("detr", ["--query", "2", "--layer", "0"]), ("modern", ["--head", "1"])]
)
def test_a_png_is_written(plait, runs, picture, tmp_path, name, more):
    pytest.importorskip("matplotlib")
    code, _, err = plait("inspect", runs[name], picture, "--out", tmp_path / "new" / "a.png", *more)
    assert code == 0, err
    assert (tmp_path / "new" / "a.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("name", "words", "phrases"),
    [
        ("vit", ["--layer", "2", "--query", "18"], ["--layer 2: this model has layers 0 to 1", "--query 18:", "queries 0 to 17"]),
        ("vit", ["--kind", "cross"], ["--kind cross", "encoder", "rollout"]),
        ("detr", ["--answer", "cats"], ["--answer"]),
        ("detr", ["--kind", "lens"], ["--kind lens", "cross"]),
        ("vit", ["--threshold", "0.5"], ["--threshold: is for models that detect objects"]),
        ("detr", ["--threshold", "2"], ["--threshold 2.0: expected a chance"]),
    ],
)
def test_what_is_refused(refused, runs, picture, tmp_path, name, words, phrases):
    refused(["inspect", runs[name], picture, "--out", tmp_path / "a.html", *words], *phrases)
    assert not (tmp_path / "a.html").exists()


def test_a_broken_picture_is_named(refused, runs, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    refused(["inspect", runs["vit"], tmp_path / "broken.jpg", "--out", tmp_path / "a.html"], "broken.jpg")


def test_a_clip_is_a_sheet_of_frames(plait, runs, tmp_path):
    clip = np.random.default_rng(3).integers(0, 256, (3, 10, 12, 3)).astype(np.uint8)
    np.save(tmp_path / "clip.npy", clip)
    views, said = views_of(plait, runs["clips"], tmp_path / "clip.npy", tmp_path)
    assert list(views) == ["frames over frames", "frame 0", "frame 1", "frame 2", "gradient x input", "lens"]
    assert page_of(tmp_path / "page.html")["picture"]["width"] == 2 * 12 * 8 and said["answer"].startswith("kind ")
    last, first = views["frame 2"], views["frame 0"]
    assert first["keys"][:2] == ["class", "0:0,0"] and last["keys"][1] == "2:0,0"
    assert last["on"]["k"]["places"][0] is None
    assert first["on"]["k"]["places"][1][:2] == [0, 0] and last["on"]["k"]["places"][1][:2] == [0, 0.5]  # 2 beside, 1 below
    model = load(runs["clips"])
    [(pixels, _)] = model.batches([clip])
    seen, _ = recorded(model.net, encoder=pixels)
    assert np.abs(weights_of(last) - seen.stacked("**.self_attn.pattern")[:, 2].numpy()).max() <= 1 / LEVELS
    times = seen.stacked("**.time_attn.pattern").mean(1).numpy()
    assert np.abs(weights_of(views["frames over frames"]) - times).max() <= 1 / LEVELS


def test_entries_of_two_frames_lie_on_one_of_them(plait, runs, tmp_path):
    clip = np.random.default_rng(3).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    np.save(tmp_path / "clip.npy", clip)
    views, _ = views_of(plait, runs["tubes"], tmp_path / "clip.npy", tmp_path)
    picture, whole = page_of(tmp_path / "page.html")["picture"], next(iter(views.values()))
    assert (picture["width"], picture["height"]) == (2 * 96, 96)  # the second frame and the fourth, enlarged
    assert whole["keys"][0] == "0:0,0" and whole["keys"][-1] == "1:1,1" and len(whole["keys"]) == 8
    assert whole["on"]["k"]["places"][4] == [0.5, 0, 0.75, 0.5]
    model = load(runs["tubes"])
    [(pixels, _)] = model.batches([clip])
    seen, _ = recorded(model.net, encoder=pixels)
    assert np.abs(weights_of(whole) - seen.stacked("**.self_attn.pattern")[:, 0].numpy()).max() <= 1 / LEVELS


def test_gradients_of_a_class_are_shares_of_all_patches(plait, runs, picture, tmp_path):
    views, said = views_of(plait, runs["vit"], picture, tmp_path, "--kind", "integrated")
    assert next(iter(views)) == "integrated gradients"
    for kind in ("integrated gradients", "gradient x input"):
        whole, ahead, against = weights_of(views[kind])[0]
        assert whole.shape == (3, 18) and np.abs(whole.sum(-1) - 1).max() < 0.02
        assert np.abs(ahead + against - whole).max() <= 2 / LEVELS
    assert views["integrated gradients"]["queries"][0] == said["answer"].split(" 0.")[0]
    lens = views["lens"]
    chances = weights_of(lens)[0, 0]
    assert chances.shape == (2, 3) and np.abs(chances.sum(-1) - 1).max() < 0.01
    scores = load(runs["vit"]).classify([picture])[0].scores
    assert np.abs(chances[-1] - [scores[name] for name in lens["keys"]]).max() <= 1 / LEVELS
