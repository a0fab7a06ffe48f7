"""Pictures with boxes from files to a trained detector, as a user gives them on the command line."""

import json

import numpy as np
import pytest
import torch

import plait as library
from plait.data.picture_feed import BoxBatch
from plait.tasks.detecting import Detecting
from plait.train import picture_symptoms
from plait.train.patient import Looked, Patient
from plait.train.seen import seen_in

pytest.importorskip("PIL", reason="Pillow is not installed (pip install 'plait[vision]')")
TINY = ["--preset", "detr-tiny", "--size", "32", "--batch-tokens", "32", "--evaluations", "1", "--save-seconds", "1000"]
NAMES = ["green", "red"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """coco/ (boxes.json beside its pictures) and voc/ of the same 12 pictures: red and green rectangles on grey."""
    from PIL import Image

    root, draw = tmp_path_factory.mktemp("boxes"), np.random.default_rng(0)
    for folder in ("coco", "voc/Annotations", "voc/JPEGImages"):
        (root / folder).mkdir(parents=True)
    images, found = [], []
    for i in range(12):
        h, w = ((32, 40), (40, 32), (32, 32))[i % 3]
        picture = np.full((h, w, 3), 30, np.uint8) + draw.integers(0, 20, (h, w, 3)).astype(np.uint8)
        images.append({"id": i, "file_name": f"{i}.png", "height": h, "width": w})
        said = ""
        for kind in range(1 + i % 2):
            bw, bh = map(int, draw.integers(8, 14, 2))
            x, y = int(draw.integers(0, w - bw)), int(draw.integers(0, h - bh))
            picture[y : y + bh, x : x + bw] = ((40, 250, 40), (250, 40, 40))[kind]
            found.append({"id": len(found) + 1, "image_id": i, "category_id": kind + 1, "bbox": [x, y, bw, bh]})
            edges = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + bw}</xmax><ymax>{y + bh}</ymax>"
            said += f"<object><name>{NAMES[kind]}</name><bndbox>{edges}</bndbox></object>"
        for folder in ("coco", "voc/JPEGImages"):
            Image.fromarray(picture).save(root / folder / f"{i}.png")
        size = f"<size><width>{w}</width><height>{h}</height><depth>3</depth></size>"
        (root / f"voc/Annotations/{i}.xml").write_text(f"<annotation><filename>{i}.png</filename>{size}{said}</annotation>")
    kinds = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    (root / "coco/boxes.json").write_text(json.dumps({"images": images, "annotations": found, "categories": kinds}))
    return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    from plait import cli

    out = tmp_path_factory.mktemp("runs") / "boxes"
    assert cli.main(["train", "detect", "--data", str(data / "coco"), "--out", str(out), "--steps", "3", "--quiet", *TINY]) == 0
    return out


def test_voc_trains(plait, data, tmp_path):
    code, _, err = plait("train", "detect", "--data", data / "voc", "--out", tmp_path / "run", "--steps", "2", *TINY)
    assert code == 0 and "boxes: green" in err, err
    assert library.load(tmp_path / "run").labels == NAMES


def test_what_is_taken_where_nobody_says(plait, data, tmp_path):
    """A page that learns from scratch, of a size that finds something, without dropout (docs/log.md), for pictures of any size."""
    options = ["--size", "37", "--steps", "1", "--evaluations", "1", "--batch-tokens", "32"]
    code, _, err = plait("train", "detect", "--data", data / "coco", "--out", tmp_path / "run", *options)
    said = json.loads((tmp_path / "run/config.json").read_text())
    assert code == 0 and said["arch"] == "modern-detector" and said["config"]["dropout"] == 0.0, err
    found = library.load(tmp_path / "run")(str(data / "coco/0.png"), threshold=0.0)
    assert len(found) == 100 and {one.label for one in found} <= set(NAMES)


def test_objects_of_files_and_pictures_with_boxes_on_them(plait, data, trained, tmp_path):
    from PIL import Image

    files = [data / "coco/0.png", data / "coco/none.png", data / "coco/1.png"]
    code, out, err = plait("run", trained, *files, "--threshold", "0", "--draw", tmp_path / "drawn", "--json")
    first, second, third = (json.loads(line) for line in out.splitlines())
    assert code == 2 and "none.png: no such file" in err and "Traceback" not in err
    assert len(first["objects"]) == len(third["objects"]) == 7 and "none.png" in second["error"]
    assert [one["score"] for one in first["objects"]] == sorted((one["score"] for one in first["objects"]), reverse=True)
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert drawn == ["0001-0.png", "0003-1.png"]
    assert np.asarray(Image.open(tmp_path / "drawn" / drawn[0])).std() > np.asarray(Image.open(files[0])).std() / 2
    alone = library.load(trained)(str(data / "coco/0.png"), threshold=0.0)
    assert [one.label for one in alone] == [one["label"] for one in first["objects"]]
    assert np.allclose([one.box for one in alone], [one["box"] for one in first["objects"]], atol=1e-3)


def test_average_precision_of_a_detector(plait, data, trained):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed (pip install 'plait[vision]')")
    code, out, err = plait("eval", trained, "--data", data / "voc")
    said = json.loads(out)
    assert code == 0 and said["task"] == "detect" and said["n"] == 12, err
    assert {"ap", "ap50", "ar"} <= said["metrics"].keys()
    assert {name: one["boxes"] for name, one in said["classes"].items()} == {"green": 12, "red": 6}


def test_a_model_goes_on_at_another_size(plait, data, trained, tmp_path):
    words = ["train", "detect", "--data", data / "coco", "--out", tmp_path / "run", "--steps", "1", "--model", trained, "--size", "48"]
    code, _, err = plait(*words)
    assert code == 0 and "tensors taken" in err, err
    said = json.loads((tmp_path / "run/preprocessor_config.json").read_text())
    assert said["size"] == {"shortest_edge": 48, "longest_edge": 80}  # 1333 / 800 of it


def test_what_cannot_be_trained(refused, data, trained, tmp_path):
    raw = json.loads((data / "coco/boxes.json").read_text())
    (tmp_path / "in").mkdir()
    raw["annotations"] = [{**raw["annotations"][0], "id": i, "bbox": [i, 0, 5, 5]} for i in range(8)]
    raw["images"] = [{**one, "file_name": str(data / "coco" / one["file_name"])} for one in raw["images"]]
    (tmp_path / "in/many.json").write_text(json.dumps(raw))
    start = ["train", "detect", "--out", tmp_path / "run", "--steps", "1", *TINY, "--data"]
    refused([*start, tmp_path / "in/many.json"], "8 boxes", "7 queries")
    raw["annotations"][0]["bbox"], raw["annotations"][1]["bbox"] = [0, 0, 900, 5], [3, 3, 0, 0]
    (tmp_path / "in/many.json").write_text(json.dumps(raw))
    refused([*start, tmp_path / "in/many.json"], "reaches out of the picture", "has no area")
    (tmp_path / "in/many.json").write_text("{}")
    refused([*start, tmp_path / "in/many.json"], "many.json")


# ---- the doctor ----


def test_the_doctor_leaves_a_healthy_detector_in_peace(plait, data):
    code, out, err = plait("doctor", "detect", "--data", data / "coco", "--seconds", "12", *TINY)
    assert code == 0 and not [line for line in out.splitlines() if line.startswith("fault")], out + err
    assert "ok       overfits one batch" in out and "ok       boxes: " in out and "v_proj.weight, whose input is 0" in out


def batch(boxes, labels, fill: float | None = 0.0, declared: bool = True) -> BoxBatch:
    """Two pictures of noise, the second padded on the right with `fill`."""
    draw = torch.Generator().manual_seed(0)
    pixels, real = torch.randn(2, 3, 16, 16, generator=draw), torch.ones(2, 16, 16, dtype=torch.bool)
    if fill is not None:
        pixels[:, :, :, 10:], real[:, :, 10:] = fill, False
    rows = [torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)] * 2
    kinds = [torch.tensor(labels, dtype=torch.int64)] * 2
    sizes = torch.tensor([[16, 16]] * 2)
    return BoxBatch(pixels, real if declared and fill is not None else None, rows, kinds, sizes, 2, 2 * len(labels))


BOX = [0.5, 0.5, 0.2, 0.2]
WELL = batch([BOX] * 3, [0, 1, 2])


def found(train: BoxBatch, valid: BoxBatch = WELL) -> list[str]:
    net = torch.nn.Module()
    patient = Patient(net, Detecting(7), None, [], None)  # type: ignore[arg-type]
    patient.outputs = 4  # type: ignore[misc]
    patient.train, patient.held_out = (Looked(pictures=list(seen_in(one)) * 2) for one in (train, valid))  # type: ignore[misc]
    made = [one for check in picture_symptoms.CHECKS for one in check(patient)]
    return [str(one) for one in made if one.level != "ok"]


def test_healthy_boxes_are_left_in_peace():
    assert found(WELL) == []


@pytest.mark.parametrize(
    ("train", "name", "told"),
    [
        (batch([], []), "boxes", "none on 4 training pictures"),
        (batch([[8.0, 8, 3, 3], BOX, BOX], [0, 1, 2]), "boxes", "reach out of their picture"),
        (batch([[0.5, 0.5, 0, 0.2], BOX, BOX], [0, 1, 2]), "boxes", "have no area"),
        (batch([[0.5, 0.5, 1, 1]] * 3, [0, 1, 2]), "boxes", "are the whole picture"),
        (batch([BOX] * 3, [1, 2, 3]), "classes", "they seem to be counted from 1"),
        (batch([BOX] * 2, [1, 2]), "classes", "labels are counted from 1"),
        (batch([BOX] * 2, [0, 1]), "classes", "occur in validation only"),
        (batch([BOX] * 3, [0, 1, 2], fill=-1.0), "padding of pictures", "-1 in training and 0 in validation"),
        (batch([BOX] * 3, [0, 1, 2], declared=False), "padding of pictures", "not declared"),
    ],
)
def test_each_fault_of_boxes_is_named(train, name, told):
    assert any(f" {name}: " in one and told in one for one in found(train))


def test_padding_on_one_side_alone():
    made = found(batch([BOX] * 3, [0, 1, 2], declared=False), batch([BOX] * 3, [0, 1, 2], fill=None))
    assert len(made) == 1 and "padded on one side alone" in made[0]
