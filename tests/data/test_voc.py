"""Pascal VOC's XML, and the blood cells in it."""

import zipfile
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import pytest

from plait.data.box_rows import read_boxes
from plait.data.builtin import written
from plait.data.builtin_pictures import BCCD
from plait.data.picture_rows import parts_in
from plait.errors import InputError
from plait.places import cache_dir

Image = pytest.importorskip("PIL.Image")


def xml(name: str, objects: str, size: tuple[int, int] = (40, 30)) -> str:
    width, height = size
    return f"<annotation><filename>{name}</filename><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"


def thing(name: str, *corners: object, difficult: int = 0) -> str:
    inside = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{inside}</bndbox></object>"


@pytest.fixture(params=["folder", "zip"])
def put(request, tmp_path):
    def write(files: dict[str, str | bytes]):
        held = BytesIO()
        Image.new("L", (40, 30)).save(held, "jpeg")
        place = tmp_path / "set"
        for name, data in files.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(held.getvalue() if data == "jpeg" else data if isinstance(data, bytes) else data.encode())
        if request.param == "folder":
            return place
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for file in sorted(place.rglob("*.*")):
                archive.write(file, file.relative_to(tmp_path).as_posix())
        return tmp_path / "set.zip"

    return write


def test_corners_count_from_one(put):
    text = xml("a.jpg", thing("dog", 1, 1, 40, 30) + thing("cat", 5, 6, 5.0, 9, difficult=1) + thing("cat", 5, 6, 7, 8, difficult=1))
    rest = {f"Annotations/{n}.xml": xml(f"{n}.jpg", thing("dog", 1, 1, 3, 3) * 100) for n in range(2)}
    path = put({"Annotations/a.xml": text, "JPEGImages/a.jpg": "jpeg", **rest, "JPEGImages/0.jpg": "jpeg", "JPEGImages/1.jpg": "jpeg"})
    rows, report = read_boxes([path])
    row = next(row for row in rows if row.where.endswith("a.xml"))
    assert row.boxes.tolist() == [[0, 0, 40, 30], [4, 5, 7, 8]] and row.labels == ("dog", "cat")
    assert report.noted["object marked difficult, kept"].count == 1 and report.dropped["box: has no area"].count == 1


def test_lists_and_folders_of_parts(put):
    files = {f"Annotations/{n}.xml": xml("wrong name", thing("dog", 1, 1, 3, 3)) for n in "abc"}
    files |= {f"JPEGImages/{n}.jpg": "jpeg" for n in "abc"}
    lists = {"train": "a\n", "val": "b 1\n", "test": "c\n", "trainval": "a\nb\n"}
    path = put(files | {f"ImageSets/Main/{name}.txt": text for name, text in lists.items()})
    assert parts_in(path) == ["train", "valid", "test"]
    assert [[Path(r.where).stem for r in read_boxes([path], p)[0]] for p in ("train", "valid", "test")] == [["a"], ["b"], ["c"]]


def test_folders_of_parts_with_pictures_beside(put):
    files = {f"{part}/{part}.xml": xml(f"{part}.jpg", thing("dog", 1, 1, 3, 3)) for part in ("train", "valid")}
    path = put(files | {"train/train.jpg": "jpeg", "valid/valid.jpg": "jpeg"})
    assert parts_in(path) == ["train", "valid"]
    assert [len(read_boxes([path], part)[0]) for part in (None, "train", "valid")] == [2, 1, 1]


def test_all_faults_at_once(put):
    texts = {
        "a": xml(
            "a.jpg", thing("dog", 1, 1, 50, 3) + thing("", 1, 1, 3, 3) + thing("dog", 1, "x", 3, 3) + "<object><name>dog</name></object>"
        ),
        "b": "<annotation><broken",
        "c": xml("c.jpg", ""),
        "d": xml("d.jpg", thing("dog", 1, 1, 3, 3), (30, 40)),
    }
    path = put({f"{name}.xml": text for name, text in texts.items()} | {"a.jpg": "jpeg", "d.jpg": "jpeg", "other.xml": "<project/>"})
    with pytest.raises(InputError) as caught:
        read_boxes([path])
    text = "\n".join(caught.value.faults)
    for phrase in (
        "a.xml object 1: reaches out of the picture: 0, 0, 50, 3",
        "a.xml object 2: has no name",
        "a.xml object 3: is not four numbers",
        "a.xml object 4: is not four numbers",
        "b.xml: is not XML",
        "c.xml: no picture of this name: 'c.jpg'",
        "d.xml: another size: 30 x 40 where it is listed, 40 x 30 in the file",
    ):
        assert phrase in text, f"{phrase} is not in\n{text}"
    assert "other.xml" not in text


def test_an_xml_bomb_is_a_fault(put):
    bomb = (
        '<!DOCTYPE a [<!ENTITY b "'
        + "x" * 1000
        + '">'
        + "".join(f'<!ENTITY {chr(c + 1)} "{f"&{chr(c)};" * 50}">' for c in range(ord("b"), ord("h")))
    )
    with pytest.raises(InputError, match="is not XML"):
        read_boxes([put({"a.xml": bomb + "]><annotation>&h;</annotation>", "a.jpg": "jpeg"})])


def test_blood_cells(tmp_path, monkeypatch):
    places = (cache_dir() / BCCD, Path(__file__).resolve().parents[3] / "shared" / "data" / BCCD)
    place = next((path for path in places if path.is_file()), None)
    if place is None:
        pytest.skip(f"{BCCD} is not here")
    with zipfile.ZipFile(place) as files:  # counted in another way
        trees = [ElementTree.fromstring(files.read(name)) for name in files.namelist() if name.endswith(".xml")]
        test = set(files.read("BCCD/ImageSets/Main/test.txt").decode().split())
    names = [str(one.findtext("name")) for tree in trees for one in tree.iter("object")]
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=BCCD):
        written("blood-cells", "train")
    (tmp_path / BCCD).write_bytes(place.read_bytes())
    sides, labels, dropped = dict[str, set[str]](), list[str](), 0
    for part in ("train", "test"):
        data, suffix, n = written("blood-cells", part)  # type: ignore[arg-type]
        (tmp_path / f"cells{suffix}").write_bytes(data)
        rows, report = read_boxes([tmp_path / f"cells{suffix}"])
        sides[part] = {Path(row.where).stem for row in rows}
        assert len(rows) == n == len(sides[part])
        labels, dropped = labels + [label for row in rows for label in row.labels], dropped + report.n_dropped
    assert sides["test"] == test and not sides["train"] & test and sum(map(len, sides.values())) == len(trees)
    assert sorted(set(labels)) == sorted(set(names)) and len(labels) + dropped == len(names) and dropped == 2  # two clicks without a size
