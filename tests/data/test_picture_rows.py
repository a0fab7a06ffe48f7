"""Labelled pictures of folders, tables and archives, and every fault with its place."""

import csv
import io
import json
import os
import zipfile

import numpy as np
import pytest

from plait.data.folders import Member, Tree, natural, on_disk, part_of, root_of, stamp_of
from plait.data.picture_feed import read
from plait.data.picture_rows import PictureRow, kind_of, parts_in, read_pictures
from plait.errors import InputError

Image = pytest.importorskip("PIL.Image")


def png(shade: int = 0, size: tuple[int, int] = (5, 3)) -> bytes:
    """A picture of one grey, `size` is (width, height)."""
    held = io.BytesIO()
    Image.new("RGB", size, (shade,) * 3).save(held, "png")
    return held.getvalue()


@pytest.fixture(params=["folder", "zip"])
def put(request, tmp_path):
    """Writes files {name: bytes} as a folder, or as a zip archive."""

    def write(files: dict[str, bytes], name: str = "set"):
        if request.param == "zip":
            path = tmp_path / f"{name}.zip"
            with zipfile.ZipFile(path, "w") as archive:
                for file, data in files.items():
                    archive.writestr(file, data)
            return path
        for file, data in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return tmp_path / name

    return write


def shades(rows: list[PictureRow]) -> dict[int, object]:
    """The grey of each row's picture, with its label: which picture is which, seen from the pixels."""
    return {int(read(row)[0, 0, 0]): row.label for row in rows}


CLASSES = {"cat/1.png": png(1), "cat/2.PNG": png(2), "dog/deep/10.png": png(10), "dog/9.png": png(9)}


@pytest.mark.parametrize("above", ["", "pets/", "pets/all/"])
def test_a_folder_per_class(put, above):
    path = put({above + name: data for name, data in CLASSES.items()} | {above + "readme.txt": b"x", above + "cat/.DS_Store": b"x"})
    rows, report = read_pictures([path])
    assert shades(rows) == {1: "cat", 2: "cat", 9: "dog", 10: "dog"}
    assert report.kept == 4 and report.noted["file that is no picture"].count == 1
    assert kind_of(path) == "pictures" and parts_in(path) == [] and len({row.key for row in rows}) == 4


def test_parts(put):
    path = put({"train/cat/1.png": png(1), "train/dog/2.png": png(2), "val/cat/3.png": png(3), "Test/dog/4.png": png(4)})
    assert parts_in(path) == ["train", "valid", "test"]
    found = {part: shades(read_pictures([path], part)[0]) for part in (None, "train", "valid", "test")}
    assert found == {
        None: {1: "cat", 2: "dog", 3: "cat", 4: "dog"},
        "train": {1: "cat", 2: "dog"},
        "valid": {3: "cat"},
        "test": {4: "dog"},
    }


def test_classes_that_are_called_like_parts_are_classes(put):
    path = put({"train/1.png": png(1), "bus/test_2.png": png(2), "car/train_3.png": png(3)})
    assert shades(read_pictures([path])[0]) == {1: "train", 2: "bus", 3: "car"} and parts_in(path) == []


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_table_beside_its_pictures(put, kind):
    rows = [("a/1.png", "cat"), ("a/2.png", "dog"), ("b 3.png", "cat")]
    if kind == "jsonl":
        text = "".join(json.dumps({"file_name": name, "label": label}) + "\n" for name, label in rows)
    else:
        held = io.StringIO()
        csv.writer(held, delimiter="," if kind == "csv" else "\t").writerows([("image", "class"), *rows])
        text = held.getvalue()
    path = put({f"meta/labels.{kind}": text.encode(), "meta/a/1.png": png(1), "meta/a/2.png": png(2), "meta/b 3.png": png(3)})
    found, report = read_pictures([path])
    assert shades(found) == {1: "cat", 2: "dog", 3: "cat"} and report.kept == 3
    assert found[1].where.startswith(str(path)) and found[1].where.endswith(f"labels.{kind}:{2 if kind == 'jsonl' else 3}")
    if path.is_dir():
        table = path / "meta" / f"labels.{kind}"
        assert shades(read_pictures([table])[0]) == shades(found) and kind_of(table) == "pictures"


def test_parquet_as_hugging_face_datasets_write_it(tmp_path, put):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "beside.png").write_bytes(png(3))
    images = [{"bytes": png(1), "path": "x.png"}, {"bytes": png(2), "path": None}, {"bytes": None, "path": "beside.png"}]
    table = pa.table({"image": images, "label": [1, 0, 1]})
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    path = tmp_path / "train-0.parquet"
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)
    assert shades(read_pictures([path])[0]) == {1: "dog", 2: "cat", 3: "dog"} and kind_of(path) == "pictures"
    bare = pa.table({"image": [png(7)], "label": ["x"]})
    parquet.write_table(bare, tmp_path / "bytes.parquet")
    assert shades(read_pictures([tmp_path / "bytes.parquet"])[0]) == {7: "x"}
    assert shades(read_pictures([put({"data/train-0.parquet": (tmp_path / "bytes.parquet").read_bytes()})])[0]) == {7: "x"}


def test_clips(put):
    pytest.importorskip("plait.media.clips")
    held = io.BytesIO()
    np.save(held, np.full((4, 3, 5, 3), 9, np.uint8))
    frames = {f"up/one/{n}.png": png(n) for n in range(12)}
    path = put(frames | {"down/a.npy": held.getvalue()}, "clips")
    rows, report = read_pictures([path], clips=True)
    assert sorted((row.label, len(read(row, 4))) for row in rows) == [("down", 4), ("up", 4)] and report.unit == "clips"
    up = read(next(row for row in rows if row.label == "up"), 12)
    assert up.shape == (12, 3, 5, 3) and up[:, 0, 0, 0].tolist() == list(range(12))  # 2 before 10
    assert kind_of(put({"down/a.npy": held.getvalue()}, "arrays")) == "clips"
    with pytest.raises(InputError, match="single picture"):
        read_pictures([put({"up/1.jpg": png(1), "down/2.jpg": png(2)}, "stills")], clips=True)


def test_all_faults_at_once(put, tmp_path):
    bad = put({"cat/1.png": png(1)[:20], "cat/2.png": b"", "dog/3.png": b"no picture", "4.png": png(4), "dog/5.png": png(5)})
    table = tmp_path / "t.csv"
    table.write_text("image,label\nnone.png,cat\n../../etc,dog\n", "utf-8")
    with pytest.raises(InputError) as caught:
        read_pictures([bad, table, tmp_path / "nowhere", tmp_path / "t.csv.zip"])
    text = "\n".join(caught.value.faults)
    for phrase in ("1.png", "2.png", "3.png", "4.png: in no class's folder", "t.csv:2: no such file: 'none.png'", "t.csv:3", "nowhere"):
        assert phrase in text, phrase
    assert "5.png" not in text and str(bad) in text


def test_few_bad_pictures_are_dropped_and_counted(put):
    files = {f"{'cat' if n % 2 else 'dog'}/{n}.png": png(n) for n in range(150)}
    rows, report = read_pictures([put(files | {"cat/bad.png": b"x"})])
    assert len(rows) == report.kept == 150 and report.dropped["cannot be used"].count == 1
    with pytest.raises(InputError, match=r"bad\.png"):  # three of 151 are more than a hundredth
        read_pictures([put(files | {"cat/bad.png": b"x", "cat/1.png": b"y", "dog/2.png": b""}, "more")])


def test_nothing_there(put, tmp_path):
    for path, phrase in ((put({"a.txt": b"x"}), "no pictures in it"), (tmp_path / "x.zip", "no such file")):
        with pytest.raises(InputError, match=phrase):
            read_pictures([path])
        assert kind_of(path) is None
    (tmp_path / "x.zip").write_bytes(b"PK\3\4 and then nothing")
    with pytest.raises(InputError, match="whole zip archive"):
        read_pictures([tmp_path / "x.zip"])
    (tmp_path / "one.png").write_bytes(png())
    with pytest.raises(InputError, match="single file"):
        read_pictures([tmp_path / "one.png"])
    with pytest.raises(InputError, match="no pictures were given"):
        read_pictures([])


def test_a_damaged_member_is_named(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", png(1, (200, 200)))
    data = bytearray(path.read_bytes())
    data[60:80] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"cat/1\.png: cannot be unpacked"):
        Member(path, "cat/1.png").read()
    with pytest.raises(InputError, match=r"cat/1\.png"):
        read_pictures([path])


def test_names():
    assert sorted(["f10", "f2", "f1b", "a"], key=natural) == ["a", "f1b", "f2", "f10"]
    assert root_of(["a/b/c/1", "a/b/cd/2"]) == "a/b/" and root_of(["a/1", "2"]) == "" and root_of([]) == "" and root_of(["a/b/1"]) == "a/b/"
    assert part_of("x/val2017/000.jpg") == "valid" and part_of("annotations/instances_train2017.json") == "train"
    assert part_of("cat/train_1.jpg") is None and part_of("contest/1.jpg") is None


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights there")
def test_links_are_followed_and_loops_end(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "1.png").write_bytes(png())
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "far")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    assert Tree(tmp_path / "set").names == ["cat/1.png"]


def test_sources_become_files_and_stamps_tell_of_their_content(put):
    path = put({"cat/1.png": png(1), "dog/2.png": png(2, (50, 50))})
    sources = [row.source for row in read_pictures([path])[0]] + [png(3)]
    for source in sources:
        with on_disk(source) as file:
            assert file.read_bytes() in (png(1), png(2, (50, 50)), png(3))
    before = [stamp_of(source) for source in sources]
    put({"cat/1.png": png(1), "dog/2.png": png(2, (51, 50))})
    assert [stamp_of(source) == then for source, then in zip(sources, before)] == [True, False, True]
