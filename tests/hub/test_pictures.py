"""Released checkpoints of pictures, as the reference library saves them: the same labels, boxes and vectors on the same picture."""

import json

import numpy as np
import pytest
import torch

import plait as library
from plait.cli import main

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (pip install 'plait[vision]')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
SIZES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40)
NAMES = {0: "cat", 1: "dog", 2: "owl"}
HALF = dict(image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5], do_resize=True, resample=2)


def drawn(net):
    torch.manual_seed(0)
    for name, p in net.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in name and name.endswith("weight")), std=0.2)
    return net.eval()


def saved(net, folder, **processor):
    net.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two PNG files of several sizes."""
    folder, draw, paths = tmp_path_factory.mktemp("files"), np.random.default_rng(0), []
    for i, (height, width) in enumerate(((40, 52), (33, 30))):
        paths.append(folder / f"{i}.png")
        coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), np.uint8))
        coarse.resize((width, height), 3).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    config = transformers.ViTConfig(**SIZES, image_size=16, patch_size=4, id2label=NAMES, label2id={v: k for k, v in NAMES.items()})
    net = drawn(transformers.ViTForImageClassification(config))
    processor = dict(image_processor_type="ViTImageProcessor", size={"height": 16, "width": 16}, **HALF)
    return net, saved(net, tmp_path_factory.mktemp("vit"), **processor), processor


@pytest.fixture(scope="module")
def detr(tmp_path_factory):
    backbone = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"])
    sizes = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
    sizes |= dict(encoder_ffn_dim=40, decoder_ffn_dim=40, num_queries=6, id2label=NAMES, label2id={v: k for k, v in NAMES.items()})
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, use_pretrained_backbone=False, backbone=None, **sizes
    )
    net = drawn(transformers.DetrForObjectDetection(config))
    processor = dict(image_processor_type="DetrImageProcessor", size={"shortest_edge": 48, "longest_edge": 80})
    return net, saved(net, tmp_path_factory.mktemp("detr"), **processor), processor


def test_labels_of_a_released_classifier(vit, pictures):
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    net, folder, processor = vit
    model = library.load(folder)
    read = [Image.open(path) for path in pictures]
    with torch.no_grad():
        given = ViTImageProcessorPil(**{k: v for k, v in processor.items() if k != "image_processor_type"})(read, return_tensors="pt")
        right = net(**given).logits
    answers = model(pictures)
    assert [one.label for one in answers] == [NAMES[int(i)] for i in right.argmax(-1)]
    for one, row in zip(answers, right.softmax(-1), strict=True):
        assert [one.scores[name] for name in NAMES.values()] == pytest.approx(row.tolist(), abs=2e-3)  # a grey level of a resized pixel
    assert np.abs(model.logits(given["pixel_values"].numpy()) - right.numpy()).max() < 1e-4


def test_objects_of_a_released_detector(detr, pictures):
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    net, folder, processor = detr
    model, theirs = library.load(folder), DetrImageProcessorPil(size=processor["size"])
    read = [Image.open(path) for path in pictures]
    with torch.no_grad():
        given = theirs(read, return_tensors="pt")
        right = theirs.post_process_object_detection(net(**given), 0.0, [image.size[::-1] for image in read])
    for found, wanted in zip(model(pictures, threshold=0.0), right, strict=True):
        order = wanted["scores"].argsort(descending=True, stable=True)
        assert [one.label for one in found] == [NAMES[int(i)] for i in wanted["labels"][order]]
        assert [one.score for one in found] == pytest.approx(wanted["scores"][order].tolist(), abs=2e-3)
        assert np.abs(np.array([one.box for one in found]) - wanted["boxes"][order].numpy()).max() < 0.1  # pixels
    best = model(pictures[0], threshold=0.0)
    middle = (best[0].score + best[-1].score) / 2
    assert model(pictures[0], threshold=middle) == [one for one in best if one.score >= middle]


def test_boxes_on_a_jpeg_that_is_read_smaller_are_in_pixels_of_its_file(detr, tmp_path, monkeypatch):
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)).resize((512, 384), 3)
    coarse.save(tmp_path / "large.jpg", quality=95)
    model = library.load(detr[1])
    whole = model(tmp_path / "large.jpg", threshold=0.0)
    monkeypatch.setattr("plait.media.pictures.PIXELS", 512 * 384 - 1)
    assert model.read(tmp_path / "large.jpg").shape == (192, 256, 3)
    reduced = model(tmp_path / "large.jpg", threshold=0.0)
    by_score = [sorted(found, key=lambda one: (one.label, one.box[0])) for found in (whole, reduced)]
    for a, b in zip(*by_score, strict=True):
        assert a.label == b.label and a.box == pytest.approx(b.box, abs=3)
    image = model.drawn(tmp_path / "large.jpg", reduced[:1])
    (x0, _, _, y1), plain = reduced[0].box, model.drawn(tmp_path / "large.jpg", [])
    changed = np.argwhere((image != plain).any(-1))  # lines of the box, and its name above or inside
    assert image.shape == plain.shape
    scale = image.shape[1] / 512
    assert abs(changed[:, 1].min() - x0 * scale) < 4 and abs(changed[:, 0].max() - y1 * scale) < 4


def test_labels_of_a_released_model_of_clips(tmp_path):
    config = transformers.TimesformerConfig(**SIZES, image_size=16, patch_size=4, num_frames=3, id2label=NAMES)
    net = drawn(transformers.TimesformerForVideoClassification(config))
    processor = dict(image_processor_type="VideoMAEImageProcessor", size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    model = library.load(saved(net, tmp_path / "model", **processor, **HALF, do_center_crop=True))
    clip = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)
    np.save(tmp_path / "clip.npy", clip)
    pixels = torch.from_numpy(clip).float().movedim(-1, 1)[None] / 127.5 - 1
    with torch.no_grad():
        right = net(pixels).logits
    answer = model(tmp_path / "clip.npy")
    assert answer == model(clip) and answer.label == NAMES[int(right.argmax())]
    assert np.abs(model.logits(pixels.numpy()) - right.numpy()).max() < 1e-4


def test_vectors_and_the_nearest_pictures(tmp_path, pictures, capsys):
    net = drawn(
        transformers.Dinov2Model(
            transformers.Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=16, patch_size=4)
        )
    )
    processor = dict(image_processor_type="BitImageProcessor", size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    model = library.load(saved(net, tmp_path / "model", **processor, **HALF, do_center_crop=True))
    pixels, _ = model.prepare.batch([model.read(path) for path in pictures])
    with torch.no_grad():
        right = net(torch.from_numpy(pixels)).last_hidden_state[:, 0].numpy()
    vectors = model(pictures)
    assert vectors.dtype == np.float32 and np.abs(vectors - right).max() < 1e-4
    assert [one.text for one in model.similar(pictures[1], pictures)] == [str(pictures[1]), str(pictures[0])]
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in pictures))
    assert main(["run", str(tmp_path / "model"), str(pictures[1]), "--similar", str(tmp_path / "list.txt"), "--n-best", "1"]) == 0
    assert capsys.readouterr().out == f"1.0000\t{pictures[1]}\n"


def test_the_certificate_tells_what_is_done_to_pictures(vit, detr, capsys):
    for (_, folder, _), task in ((vit, "classify"), (detr, "detect")):
        assert main(["check", str(folder)]) == 0
        said = capsys.readouterr().out
        assert task in said and "resample" in said


def test_eight_bits_answer_nearly_the_same(vit, detr, pictures, tmp_path, capsys):
    for _, folder, _ in (vit, detr):
        exact, small = library.load(folder), library.load(folder, bits=8)
        pixels, _ = exact.prepare.batch([exact.read(pictures[0])])
        whole, rounded = (
            np.concatenate([np.ravel(x) for x in said]) if isinstance(said := m.logits(pixels), tuple) else said for m in (exact, small)
        )
        assert 0 < np.abs(whole - rounded).max() < 0.1 * np.abs(whole).max()
    out = tmp_path / "small"
    assert main(["convert", str(vit[1]), "--to", "plait", "--bits", "8", "--out", str(out)]) == 0
    capsys.readouterr()
    assert library.load(out)(pictures[0]) == library.load(vit[1], bits=8)(pictures[0])


def test_a_folder_without_its_preparation_takes_pixels_alone(vit, tmp_path, pictures):
    vit[0].save_pretrained(tmp_path)
    model = library.load(tmp_path)
    assert model.logits(np.zeros((1, 3, 16, 16))).shape == (1, 3)
    with pytest.raises(library.InputError, match="preprocessor_config"):
        model(pictures[0])


def test_a_preparation_that_does_not_fit_the_model(vit, tmp_path, pictures):
    net, _, processor = vit
    model = library.load(saved(net, tmp_path, **{**processor, "size": {"height": 18, "width": 18}}))
    with pytest.raises(library.InputError, match="multiples of 4"):
        model(pictures)


def test_graphs_of_pictures_are_refused_by_name(vit, tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install 'plait[onnx]')")
    assert main(["convert", str(vit[1]), "--to", "onnx", "--out", str(tmp_path / "graphs")]) == 2
    assert "a model of pixels" in capsys.readouterr().err
