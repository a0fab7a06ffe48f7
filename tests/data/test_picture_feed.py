"""Batches of pictures: a pure function of (seed, epoch, position), the boxes where their pixels are, every row once."""

from dataclasses import fields, replace
from io import BytesIO
from itertools import islice

import numpy as np
import pytest
import torch

from plait.data import picture_feed
from plait.data.ahead import ahead
from plait.data.picture_feed import BoxBatch, BoxSet, PictureBatch, PictureSet
from plait.data.picture_rows import BoxRow, PictureRow
from plait.errors import InputError
from plait.media.augment import Augmentation, Augmented, mixed
from plait.media.preparing import Exactly, Preparation, Shortest

Image = pytest.importorskip("PIL.Image")
PLAIN = Preparation(size=None, scale=1 / 255, mean=None, std=None)  # grey levels as they are
N = 23


@pytest.fixture
def rows(tmp_path):
    """Pictures of other sizes: noise, with the row's number as the grey of a box that has the picture's brightest red."""
    rng, made = np.random.default_rng(0), list[BoxRow]()
    for number in range(N):
        height, width = rng.integers(12, 40, 2)
        pixels = rng.integers(0, 100, (height, width, 3), np.uint8)
        boxes = np.zeros((number % 3, 4), np.float32)
        for at, box in enumerate(boxes):
            low = rng.integers(0, [width - 4, height - 4])
            box[:] = [*low, *(low + rng.integers(3, 5, 2))]
            x0, y0, x1, y1 = map(int, box)
            pixels[y0:y1, x0:x1] = [255, number, at]
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        names = tuple("ab"[at % 2] for at in range(len(boxes)))
        made.append(BoxRow(path, boxes, names, f"list:{number}", (int(height), int(width))))
    return made


def labelled(rows: list[BoxRow]) -> list[PictureRow]:
    return [PictureRow(row.source, str(at), row.where) for at, row in enumerate(rows)]


def pictures(rows, augmentation=None, size=16, **more) -> PictureSet:
    return PictureSet(labelled(rows), np.arange(len(rows)), replace(PLAIN, size=Exactly(size, size)), augmentation, **more)


def boxes(rows, augmentation=None, preparation=PLAIN) -> BoxSet:
    return BoxSet(rows, ["a", "b"], preparation, augmentation)


def parts_of(value) -> list[torch.Tensor]:
    return value if isinstance(value, list) else [value] if isinstance(value, torch.Tensor) else []


def same(one, other) -> bool:
    """Bit for bit, every field."""
    both = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)]
    return all(
        len(parts_of(a)) == len(parts_of(b))
        and all(torch.equal(x, y) for x, y in zip(parts_of(a), parts_of(b)))
        and (a is None) == (b is None)
        for a, b in both
    )


KINDS = {
    "plain": lambda rows: pictures(rows),
    "changed": lambda rows: pictures(rows, Augmentation.named("photographs", 16)),
    "mixed": lambda rows: pictures(rows, mixed=lambda pixels, answers, rng: mixed(pixels, answers, rng, N)),
    "boxes": lambda rows: boxes(rows, Augmentation.named("boxes", 24)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_the_same_from_any_position_and_from_workers(rows, kind):
    feed = KINDS[kind](rows).feed(4, seed=7)
    n = feed.batches(0)
    whole = list(islice(feed.stream(0, 0), 2 * n))
    assert n == 6 and [(epoch, position) for epoch, position, _ in whole] == [(e, p) for e in (0, 1) for p in range(1, n + 1)]
    for begin in (0, 2, n - 1, n):
        again = KINDS[kind](rows).feed(4, seed=7)  # as another process has it
        assert all(same(a[2], b[2]) for a, b in zip(again.stream(0, begin), whole[begin:]))
    made = list(islice(ahead(KINDS[kind](rows).feed(4, seed=7), 3).stream(0, 0), 2 * n))
    assert all(same(a[2], b[2]) for a, b in zip(made, whole, strict=True))
    other = next(KINDS[kind](rows).feed(4, seed=8).stream(0, 0))[2]
    assert not same(other, whole[0][2])


def test_every_row_once_an_epoch_and_places(rows):
    feed = pictures(rows).feed(4, seed=1)
    orders = []
    for epoch in range(2):
        found = []
        for _, position, batch in islice(feed.stream(epoch, 0), feed.batches(epoch)):
            assert [feed.where(epoch, position, i) for i in range(len(batch))] == [f"list:{answer}" for answer in batch.answers.tolist()]
            found += batch.answers.tolist()
        assert sorted(found) == list(range(N)) and feed.tokens == N
        orders.append(found)
    assert orders[0] != orders[1]
    assert sorted(answer for batch in feed.all() for answer in batch.answers.tolist()) == list(range(N))
    read = feed.rereading()
    assert len(read) == 6 and all(same(a, b) and same(a, read[i]) for i, (a, b) in enumerate(zip(feed.all(), read, strict=True)))
    assert len(read[1:3]) == 2 and same(read[-1], read[5])


def test_an_epoch_changes_what_is_changed_and_nothing_else(rows):
    which = np.arange(5)
    changed, plain = KINDS["changed"](rows), KINDS["plain"](rows)
    assert not same(changed.batch(which, 0), changed.batch(which, 1)) and not same(changed.batch(which, 0), changed.batch(which, 0, seed=1))
    assert same(plain.batch(which, 0), plain.batch(which, 1, seed=1))
    # A row is changed by itself: what else is in its batch makes no difference.
    assert torch.equal(changed.batch(which, 3).pixels[4], changed.batch(np.array([4, 20]), 3).pixels[0])


@pytest.mark.parametrize("augmentation", [None, "boxes", "overhead"])
@pytest.mark.parametrize("preparation", [PLAIN, replace(PLAIN, size=Shortest(30, 50)), replace(PLAIN, size=Exactly(32, 48))])
def test_boxes_are_where_their_pixels_are(rows, augmentation, preparation):
    held = boxes(rows, augmentation and replace(Augmentation.named(augmentation, 48), least=0.95), preparation)
    seen = 0
    for epoch in range(3):
        batch = held.batch(np.arange(N), epoch)
        assert batch.all_rows == N and batch.all_boxes == sum(map(len, batch.labels)) and batch.sizes.shape == (N, 2)
        for row in range(N):
            real = torch.ones(batch.pixels.shape[2:], dtype=torch.bool) if batch.real is None else batch.real[row]
            height, width = int(real.any(1).sum()), int(real.any(0).sum())
            assert bool(real[:height, :width].all()) and not bool(batch.pixels[row, :, ~real].any())
            if augmentation is None:
                assert batch.sizes[row].tolist() == list(rows[row].size) and len(batch.labels[row]) == row % 3
            for (cx, cy, w, h), label in zip(batch.boxes[row].tolist(), batch.labels[row].tolist()):
                y, x = min(int(cy * height), height - 1), min(int(cx * width), width - 1)
                if w * width >= 3 and h * height >= 3:  # so that no pixel of the middle is blended with what is beside the box
                    red, green, which = batch.pixels[row, :, y, x].tolist()
                    clear = red > 0.75 and not [
                        1 for other in batch.boxes[row].tolist() if 0 < abs(other[0] - cx) + abs(other[1] - cy) < w + h
                    ]
                    if augmentation is None and clear and preparation.size is None:
                        assert round(green * 255) == row and round(which * 255) % 2 == label
                    assert red > 0.45, (epoch, row)
                    seen += 1
    assert seen > 20


def test_parts_hold_the_same_rows_and_the_numbers_of_all(rows):
    for batch in (boxes(rows).batch(np.arange(7)), pictures(rows).batch(np.arange(7))):
        for n in (1, 3, 7, 9):
            parts = batch.parts(n)
            assert len(parts) == min(n, 7) and {len(part) for part in parts} <= {7 // min(n, 7), 7 // min(n, 7) + 1, -(-7 // min(n, 7))}
            for f in fields(batch):
                whole, pieces = getattr(batch, f.name), [getattr(part, f.name) for part in parts]
                if isinstance(whole, torch.Tensor):
                    assert torch.equal(torch.cat(pieces), whole)
                elif isinstance(whole, list):
                    assert all(torch.equal(a, b) for a, b in zip([one for piece in pieces for one in piece], whole, strict=True))
                else:
                    assert set(pieces) == {whole}
        assert type(batch.to("cpu")) is type(batch) and same(batch.to("cpu"), batch)


def test_types(rows):
    batch = boxes(rows).batch(np.arange(4))
    assert isinstance(batch, BoxBatch) and batch.pixels.dtype == torch.float32 and batch.real is not None and batch.real.dtype == torch.bool
    assert {box.dtype for box in batch.boxes} == {torch.float32} and {label.dtype for label in batch.labels} == {torch.int64}
    assert [tuple(box.shape) for box in batch.boxes] == [(0, 4), (1, 4), (2, 4), (0, 4)]
    one = pictures(rows).batch(np.arange(4))
    assert isinstance(one, PictureBatch) and one.real is None and one.answers.dtype == torch.int64
    soft = KINDS["mixed"](rows).batch(np.arange(4))
    assert soft.answers.shape == (4, N) and torch.allclose(soft.answers.sum(1), torch.ones(4))


def test_decoded_pictures_are_kept_within_the_bound(rows, monkeypatch):
    reads = []
    monkeypatch.setattr(
        picture_feed, "read_picture", lambda source, where, read=picture_feed.read_picture: reads.append(where) or read(source, where)
    )
    sizes = [3 * row.size[0] * row.size[1] for row in rows]
    for bound, twice in ((sum(sizes), 0), (sum(sizes[:10]), None), (0, N)):
        monkeypatch.setattr(picture_feed, "KEPT", bound)
        held = pictures(rows)
        first = held.batch(np.arange(N))
        assert sum(picture.nbytes for picture in held._kept.values()) <= bound
        reads.clear()
        assert same(held.batch(np.arange(N)), first)
        assert len(reads) == twice if twice is not None else 0 < len(reads) < N


def test_fingerprints(rows, tmp_path):
    base = boxes(rows).feed(4, 1).fingerprint
    assert boxes(list(rows)).feed(4, 1).fingerprint == base
    moved = [replace(rows[1], boxes=rows[1].boxes + 1), replace(rows[1], labels=("b",))]
    others = [boxes([rows[0], one, *rows[2:]]).feed(4, 1) for one in moved] + [boxes(rows).feed(5, 1), boxes(rows).feed(4, 2)]
    others += [boxes(rows, Augmentation.named("boxes", 24)).feed(4, 1), boxes(rows, preparation=replace(PLAIN, mean=(0.5,) * 3)).feed(4, 1)]
    Image.new("L", (90, 90)).save(tmp_path / "0.png")
    others.append(boxes(rows).feed(4, 1))
    found = [base, *(other.fingerprint for other in others)]
    assert len(set(found)) == len(found)
    assert pictures(rows).fingerprint != PictureSet(labelled(rows), np.ones(N), replace(PLAIN, size=Exactly(16, 16))).fingerprint


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_breaks_later_is_named(rows, tmp_path, workers):
    feed = ahead(boxes(rows).feed(4), workers)
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:100])
    with pytest.raises(InputError, match=r"3\.png \(list:3\)"):
        list(islice(feed.stream(0, 0), feed.batches(0)))
    held = BytesIO()
    Image.new("L", (4, 4)).save(held, "png")
    with pytest.raises(InputError, match="table:9"):
        PictureSet([PictureRow(held.getvalue()[:45], "x", "table:9")], np.zeros(1), PLAIN).picture(0)


def test_what_cannot_be(rows):
    with pytest.raises(InputError, match=r"list:2: 'b'"):
        BoxSet(rows, ["a"], PLAIN)
    with pytest.raises(InputError, match="crop"):
        boxes(rows, preparation=replace(PLAIN, crop=(8, 8)))


def test_clips(tmp_path):
    made = []
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).integers(0, 256, (6, 9, 7, 3), np.uint8))
        made.append(PictureRow(tmp_path / f"{number}.npy", number, str(number)))
    held = PictureSet(made, np.arange(4), replace(PLAIN, size=Exactly(8, 8)), Augmentation.named("small"), frames=3)
    batch = held.batch(np.arange(4))
    assert batch.pixels.shape == (4, 3, 3, 8, 8) and same(batch, held.batch(np.arange(4))) and not same(batch, held.batch(np.arange(4), 1))
    (tmp_path / "2.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"2\.npy"):
        PictureSet(made, np.arange(4), PLAIN, frames=3).batch(np.array([2]))


def test_labels_stay_with_their_boxes_where_others_are_dropped(rows):
    class First:
        """Loses the first box of each picture."""

        sized = False

        def __call__(self, picture, rng, boxes):
            return Augmented(picture, boxes[1:], np.arange(len(boxes))[1:])

    batch = boxes(rows, First()).batch(np.arange(3))
    assert [label.tolist() for label in batch.labels] == [[], [], [1]] and batch.all_boxes == 1


def test_each_batch_is_mixed_in_its_own_way(rows):
    draws = []
    held = pictures(rows, mixed=lambda pixels, answers, rng: draws.append(rng.random()) or (pixels, answers))
    feed = held.feed(4, seed=3)
    list(islice(feed.stream(0, 0), 2 * feed.batches(0)))
    assert len(set(draws)) == len(draws) == 12
