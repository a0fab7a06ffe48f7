"""COCO's JSON and JSON lines of boxes; the COCO reader against pycocotools."""

import json
import zipfile
from contextlib import redirect_stdout
from io import BytesIO, StringIO

import numpy as np
import pytest

from plait.data.box_rows import read_boxes
from plait.data.folders import suffix_of
from plait.data.picture_feed import read
from plait.data.picture_rows import classes_of, parts_in
from plait.errors import InputError

Image = pytest.importorskip("PIL.Image")


def picture(shade: int, width: int = 40, height: int = 30, orientation: int | None = None) -> bytes:
    held, image = BytesIO(), Image.new("L", (width, height), shade)
    exif = image.getexif()
    if orientation:
        exif[0x0112] = orientation
    image.save(held, "jpeg", exif=exif)
    return held.getvalue()


@pytest.fixture
def put(tmp_path):
    def write(name: str, data: bytes | str | dict | list):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else (data if isinstance(data, str) else json.dumps(data)).encode())
        return path

    return write


def coco(n: int = 3, **changes) -> dict:
    """`n` pictures 40 x 30, a box on each but the last, two on the first; ids with gaps."""
    boxes = [(1, 10 * i + 5, 7, [2 + i % 9, 3, 10, 8.5]) for i in range(n - 1)] + [(2, 5, 90, [0, 0, 40, 30])]
    held = {
        "images": [{"id": 10 * i + 5, "file_name": f"p{i}.jpg", "width": 40, "height": 30} for i in range(n)],
        "categories": [{"id": 7, "name": "cell"}, {"id": 90, "name": "background"}, {"id": 91, "name": "never"}],
        "annotations": [
            {"id": 100 + at, "image_id": image, "category_id": c, "bbox": box, "iscrowd": 0, "segmentation": [[1, 2, 3]]}
            for at, (_, image, c, box) in enumerate(boxes)
        ],
    }
    return held | changes


def test_against_pycocotools(put):
    tool = pytest.importorskip("pycocotools.coco")
    whole = coco(4)
    whole["annotations"].append({"id": 999, "image_id": 15, "category_id": 7, "bbox": [0, 0, 4, 4], "iscrowd": 1, "segmentation": {}})
    path = put("set/instances.json", whole)
    for i in range(4):
        put(f"set/p{i}.jpg", picture(i))
    rows, report = read_boxes([path])
    with redirect_stdout(StringIO()):
        theirs = tool.COCO(str(path))
    assert len(rows) == len(theirs.getImgIds())
    for row, number in zip(rows, theirs.getImgIds()):
        marks = theirs.loadAnns(theirs.getAnnIds(number, iscrowd=False))
        corners = np.array([m["bbox"] for m in marks], np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        np.testing.assert_allclose(row.boxes, corners)
        assert row.labels == tuple(theirs.loadCats(m["category_id"])[0]["name"] for m in marks)
        assert row.size == (30, 40) and row.boxes.dtype == np.float32 and row.boxes.shape == (len(marks), 4)
        crowds = theirs.loadAnns(theirs.getAnnIds(number, iscrowd=True))
        assert [(name, box.tolist()) for name, box in row.crowds] == [("cell", [0, 0, 4, 4])] * len(crowds)
    assert report.noted["crowd, not learned"].count == report.noted["category without a box"].count == 1
    assert report.noted["picture without boxes"].count == 1 and classes_of(rows) == ["background", "cell"]


@pytest.mark.parametrize(
    ("lists", "pictures"),
    [
        ({"train": "train/_annotations.coco.json", "valid": "valid/_annotations.coco.json"}, {"train": "train/", "valid": "valid/"}),
        (
            {"train": "annotations/instances_train2017.json", "valid": "annotations/instances_val2017.json"},
            {"train": "train2017/", "valid": "val2017/"},
        ),
        ({"train": "train.json", "valid": "valid.json"}, {"train": "images/", "valid": "images/"}),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_layouts(put, tmp_path, lists, pictures, packed):
    for part, shade in (("train", 10), ("valid", 200)):
        whole = coco(2)
        for i, image in enumerate(whole["images"]):
            image["file_name"] = f"{part}{i}.jpg"
            put(f"set/{pictures[part]}{part}{i}.jpg", picture(shade))
        put(f"set/{lists[part]}", whole)
    path = tmp_path / "set"
    if packed:
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted((tmp_path / "set").rglob("*.*")):
                archive.write(file, file.relative_to(tmp_path).as_posix())
    assert parts_in(path) == ["train", "valid"]
    for part, shade in (("train", 10), ("valid", 200)):
        rows, _ = read_boxes([path], part)
        assert [int(read(row)[0, 0, 0]) for row in rows] == [shade, shade] and [len(row.boxes) for row in rows] == [2, 0]
    assert len(read_boxes([path])[0]) == 4
    if not packed:
        assert len(read_boxes([path / lists["valid"]])[0]) == 2  # the list alone finds its pictures too


def test_all_faults_at_once(put):
    whole = coco(5)
    whole["images"][4]["id"] = 5
    whole["images"][3] |= {"width": 30, "height": 40}
    boxes = [[35, 3, 10, 8], [3, 3, 0, 5], [1, 2, 3], [1, 2, float("nan"), 4], None]
    whole["annotations"] += [{"id": 200 + i, "image_id": 5, "category_id": 7, "bbox": box} for i, box in enumerate(boxes)]
    whole["annotations"] += [
        {"id": 300, "image_id": 5, "category_id": 8, "bbox": [1, 1, 2, 2]},
        {"id": 301, "image_id": 6, "category_id": 7, "bbox": [1, 1, 2, 2]},
        {"id": 301, "image_id": 5, "category_id": 7, "bbox": [1, 1, 2, 2]},
    ]
    path = put("c.json", whole)
    for i in (0, 2, 3, 4):
        put(f"p{i}.jpg", picture(i) if i != 2 else b"broken")
    with pytest.raises(InputError) as caught:
        read_boxes([path])
    text = "\n".join(caught.value.faults)
    for phrase in (
        "two images with the same id",
        "image 15: no such file: 'p1.jpg'",
        "image 25 (p2.jpg): cannot be used",
        "image 35 (p3.jpg): another size: 30 x 40 where it is listed, 40 x 30 in the file",
        "annotation 200 (p0.jpg): reaches out of the picture: 35, 3, 45, 11 (x0, y0, x1, y1) of 40 x 30 pixels",
        "annotation 201 (p0.jpg): has no area",
        "annotation 202 (p0.jpg): is not four numbers",
        "annotation 203 (p0.jpg): is not four numbers",
        "annotation 204 (p0.jpg): is not four numbers",
        "annotation 300: of an unknown category: category_id 8; there is [7, 90, 91]",
        "annotation 301: of an unknown image: image_id 6",
        "annotation 301: two annotations with the same id",
    ):
        assert phrase in text, f"{phrase} is not in\n{text}"
    assert str(path) in text


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"images": []}, "lists no images"),
        ({"annotations": []}, "lists no annotations"),
        ({"annotations": [3]}, "annotations: expected a list of objects"),
        ({"categories": []}, "there are none"),
        ({"categories": [{"id": 7, "name": "a"}, {"id": 7, "name": "b"}]}, "two categories with the id 7"),
        ({"categories": [{"id": 7, "name": "a"}, {"id": 8, "name": "a"}]}, "two categories with the name a"),
        ({"categories": [{"id": [], "name": "a"}]}, "expected an id and a name"),
        ({"images": [{"id": {}, "file_name": 3}]}, "image without an id"),
    ],
)
def test_lists_that_cannot_be_used(put, change, phrase):
    with pytest.raises(InputError, match=phrase):
        read_boxes([put("c.json", coco(1, **change))])


def test_a_box_over_the_border_by_less_than_a_pixel_is_cut(put):
    whole = coco(1)
    whole["annotations"] = [{"id": 1, "image_id": 5, "category_id": 7, "bbox": [-0.5, 3, 41, 27.9]}]
    put("p0.jpg", picture(0))
    rows, report = read_boxes([put("c.json", whole)])
    assert rows[0].boxes.tolist() == [[0, 3, 40, 30]] and report.noted["box cut at the border"].count == 1


def test_one_bad_box_in_two_hundred_is_dropped_and_its_picture_kept(put):
    whole = coco(200)
    whole["annotations"][0]["bbox"] = [50, 50, 5, 5]
    for i in range(200):
        put(f"p{i}.jpg", picture(i))
    rows, report = read_boxes([put("c.json", whole)])
    assert len(rows) == 200 and report.dropped["box: reaches out of the picture"].count == 1 and rows[0].labels == ("background",)


def test_boxes_are_of_the_picture_as_it_is_shown(put):
    whole = coco(1)
    whole["images"][0] |= {"width": 30, "height": 40}
    whole["annotations"][0]["bbox"] = [0, 0, 30, 40]
    put("p0.jpg", picture(0, orientation=6))
    row = read_boxes([put("c.json", whole)])[0][0]
    assert row.size == (40, 30) == read(row).shape[:2] and row.boxes.tolist() == [[0, 0, 30, 40]]


def test_json_lines(put):
    for i in range(2):
        put(f"in/p{i}.jpg", picture(i))
    lines = [
        {"picture": "in/p0.jpg", "boxes": [[1, 2, 3.5, 4], [0, 0, 40, 30]], "labels": ["a", 3]},
        {"image": "in/p1.jpg", "boxes": [], "labels": []},
    ]
    for name, text in (("a.jsonl", "\n".join(map(json.dumps, lines))), ("a.json", lines)):
        rows, report = read_boxes([path := put(name, text)])
        assert [row.boxes.tolist() for row in rows] == [[[1, 2, 3.5, 4], [0, 0, 40, 30]], []] and rows[0].labels == ("a", "3")
        assert [row.where for row in rows] == [f"{path}:1", f"{path}:2"] and suffix_of(rows[0].source) == ".jpg"
        assert rows[1].boxes.shape == (0, 4) and report.noted["picture without boxes"].count == 1
    lines = [
        {"picture": "in/p0.jpg", "boxes": [[1, 2, 3, 4]], "labels": []},
        {"picture": "p9.jpg", "boxes": [], "labels": []},
        {"picture": "in/p1.jpg", "boxes": [[3, 2, 1, 4], "x"], "labels": ["a", "b"]},
        {"picture": "in/p1.jpg", "boxes": "x", "labels": ["a", "b"]},
    ]
    with pytest.raises(InputError) as caught:
        read_boxes([put("b.jsonl", "\n".join(map(json.dumps, lines[:3])))])
    text = "\n".join(caught.value.faults)
    for phrase in (
        "b.jsonl:1: 1 boxes with 0 labels",
        "b.jsonl:2: no such file: 'p9.jpg'",
        "b.jsonl:3 box 1: has no area",
        "b.jsonl:3 box 2",
    ):
        assert phrase in text, phrase
    with pytest.raises(InputError, match=r"b\.jsonl:1: wrong type: 'boxes' is a string"):
        read_boxes([put("b.jsonl", json.dumps(lines[3]))])


def test_nothing_to_learn(put, tmp_path):
    put("p0.jpg", picture(0))
    with pytest.raises(InputError, match="nothing is marked"):
        read_boxes([put("a.jsonl", json.dumps({"picture": "p0.jpg", "boxes": [], "labels": []}))])
    (tmp_path / "none").mkdir()
    for path in (tmp_path / "none", tmp_path / "nowhere.json", put("x.json", "[1"), put("y.json", "{}"), put("z.xml", "<a")):
        with pytest.raises(InputError, match=path.name):
            read_boxes([path])
