"""Pictures changed by chance: boxes go with their pixels, seeds say all, shares and sizes are those of the papers."""

import colorsys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.errors import InputError
from plait.media.augment import PRESETS, Augmentation, RandAugment, Sometimes, mixed
from plait.media.boxes import area
from plait.media.colours import OPERATIONS, Erase, Jitter, turned
from plait.media.geometry import Affine, Crop, Flip, PaddedCrop, ResizedCrop, ShortestEdge, image_of

pytest.importorskip("PIL")
SEEDS, SIDES = st.integers(0, 2**32), st.integers(1, 60)


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def bright(picture: np.ndarray) -> list[int]:
    """x0 y0 x1 y1 of what is brighter than half."""
    rows, columns = np.nonzero(picture[..., 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else []


# ---- boxes go with their pixels ----


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, height=SIDES, width=SIDES, data=st.data())
def test_a_marked_pixel_is_where_its_box_is(seed, height, width, data):
    """Steps that move whole pixels: to the pixel, and dropped exactly when it left."""
    steps = (Flip(0.5, 0.5, 0.5), PaddedCrop(3), Flip(0.5, 0.5, 0.5), Crop(5, 40))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    picture = np.zeros((height, width, 3), np.uint8)
    picture[y, x] = 255
    if height * width < 9 or min(height, width) == 1:  # the mark would be half of the border, and colour what comes in
        steps = (steps[0], steps[3])
    after, boxes, kept = Augmentation(steps)(picture, np.random.default_rng(seed), np.array([[x, y, x + 1, y + 1]], np.float32))
    assert boxes.tolist() == ([bright(after)] if bright(after) else []) and kept.tolist() == [0] * len(boxes)


STEPS = {
    "resized crop": (ResizedCrop((90, 70)), 2.5),
    "resized crop, own size": (ResizedCrop(), 2.5),
    "shortest edge": (ShortestEdge((40, 100, 160), 200), 2.5),
    "shift and zoom": (Affine(shift=0.3, zoom=(0.5, 1.5)), 1.5),
    "all of RandAugment but colours": (RandAugment(1, 10), 1.5),
    "detr": (Augmentation.named("boxes", 96).steps[1], 2.5),
}


@pytest.mark.parametrize("name", STEPS)
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, height=st.integers(30, 120), width=st.integers(30, 120), data=st.data())
def test_a_marked_block_is_in_its_box(name, seed, height, width, data):
    """Steps that interpolate: the block's bright pixels and its box agree within the smear of the interpolation (pixels of the result)."""
    step, near = STEPS[name]
    w, h = (data.draw(st.integers(side // 6, side // 3)) for side in (width, height))
    x, y = data.draw(st.integers(1, width - w - 1)), data.draw(st.integers(1, height - h - 1))
    picture = np.zeros((height, width, 3), np.uint8)
    picture[y : y + h, x : x + w] = 255
    box = np.array([[x, y, x + w, y + h]], np.float32)
    after, boxes, kept = Augmentation((step,), least=0.0)(picture, np.random.default_rng(seed), box)
    if not step(picture, np.random.default_rng(seed))[1]:  # a colour, or nothing
        assert boxes.tolist() == box.tolist()
        return
    found = bright(after)
    if len(kept) and found:
        smear = near * max(1, after.shape[0] / height, after.shape[1] / width, 3 if "crop" in name or name == "detr" else 1)
        (low, high), size = np.split(boxes[0], 2), np.array(after.shape[1::-1])
        assert (low - found[:2] <= smear).all() and (found[2:] - high <= smear).all(), (boxes, found)
        if not isinstance(step, RandAugment) or ((low > 0).all() and (high < size).all()):  # of a turned block the border cuts a corner off
            assert np.abs(boxes[0] - found).max() <= smear, (boxes, found)
    else:  # the one was dropped, or too little of it is left to be bright; so little must be left of the other
        assert not len(kept) or area(boxes)[0] <= 30
        assert not found or (found[2] - found[0]) * (found[3] - found[1]) <= 30


def test_a_turned_block_touches_all_four_sides_of_its_box():
    picture = np.zeros((120, 120, 3), np.uint8)
    picture[50:70, 40:80] = 255
    widths = []
    for seed in range(40):
        after, boxes, _ = Augmentation((Affine(degrees=40, shear=0.3),))(
            picture, np.random.default_rng(seed), np.array([[40, 50, 80, 70.0]])
        )
        assert np.abs(boxes[0] - bright(after)).max() <= 1.5
        widths.append(boxes[0, 3] - boxes[0, 1])
    assert max(widths) > 35 and min(widths) >= 19  # they were turned


def test_boxes_and_labels_stay_in_step():
    """Each box of many, all of different colours, still has its own colour in its middle."""
    size, cells = 180, [(x, y) for x in range(6) for y in range(6)]
    picture, boxes = (
        np.zeros((size, size, 3), np.uint8),
        np.array([[30 * x, 30 * y, 30 * x + 30, 30 * y + 30] for x, y in cells], np.float32),
    )
    for x, y in cells:
        picture[30 * y : 30 * y + 30, 30 * x : 30 * x + 30] = 40 * x + 20, 40 * y + 20, 128
    fewer = 0
    for name in ("photographs", "boxes", "overhead"):
        steps = tuple(step for step in Augmentation.named(name, 150).steps if not isinstance(step, Jitter))
        for seed in range(20):
            after, found, kept = Augmentation(steps)(picture, np.random.default_rng(seed), boxes)
            assert (np.diff(kept) > 0).all() and len(kept) == len(found)
            fewer += len(found) < len(cells)
            for box, at in zip(found, kept):
                x, y = ((box[:2] + box[2:]) / 2).astype(int)
                if min(box[2:] - box[:2]) > 6:
                    assert np.abs(after[y, x].astype(int) - picture[30 * cells[at][1] + 15, 30 * cells[at][0] + 15]).max() <= 6
    assert 20 < fewer < 60


def test_boxes_are_clipped_whatever_is_drawn():
    boxes = np.array([[-2, 3, 10, 25], [18, 0, 50, 10], [4, 4, 4, 9]], np.float32)
    after, found, kept = Augmentation()(noise(0, 20, 20), np.random.default_rng(0), boxes)
    assert np.array_equal(after, noise(0, 20, 20)) and found.tolist() == [[0, 3, 10, 20]] and kept.tolist() == [0]


# ---- seeds and sizes ----


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (3, 2), (64, 48)])
def test_any_picture_with_and_without_boxes(name, height, width):
    augmentation, picture = Augmentation.named(name, 32), noise(0, height, width)
    before, whole = picture.copy(), np.array([[0, 0, width, height]], np.float32)
    for seed in range(12):
        one = augmentation(picture, np.random.default_rng(seed), whole)
        again, bare = augmentation(picture, np.random.default_rng(seed), whole), augmentation(picture, np.random.default_rng(seed))
        assert all(np.array_equal(a, b) for a, b in zip(one, again)) and np.array_equal(bare.picture, one.picture)
        empty = augmentation(picture, np.random.default_rng(seed), np.zeros((0, 4), np.float32))
        for answer, most in ((one, 1), (bare, 0), (empty, 0)):
            assert answer.picture.dtype == np.uint8 and answer.picture.ndim == 3 and answer.picture.flags.c_contiguous
            assert answer.boxes.dtype == np.float32 and answer.boxes.shape == (len(answer.kept), 4) and len(answer.kept) <= most
        assert min(one.picture.shape) >= 1 and (area(one.boxes) > 0).all()
        assert (one.boxes >= 0).all() and (one.boxes <= [*one.picture.shape[1::-1]] * 2).all()
        assert not augmentation.sized or name not in ("photographs", "strong") or one.picture.shape == (32, 32, 3)
    assert np.array_equal(picture, before)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "none"])
def test_other_seeds_give_other_pictures_and_what_comes_out_can_be_written(name):
    augmentation, picture = Augmentation.named(name), noise(1, 48, 48)
    results = [augmentation(picture, np.random.default_rng(seed)).picture for seed in range(12)]
    assert len({result.tobytes() for result in results}) >= 10
    assert name == "small" or all(result.flags.writeable for result in results)  # torch warns of arrays that are not


def test_a_clip_is_changed_alike_in_every_frame():
    clip = np.repeat(noise(2, 32, 40)[None], 4, axis=0)
    clip[2] = noise(3, 32, 40)
    for name in PRESETS:
        rng = np.random.default_rng(5)
        after, boxes, kept = Augmentation.named(name, 24)(clip, rng, np.array([[4, 4, 20, 20.0]]))
        alone = Augmentation.named(name, 24)(clip[0], np.random.default_rng(5), np.array([[4, 4, 20, 20.0]]))
        assert after.shape[0] == 4 and np.array_equal(after[0], after[1]) and np.array_equal(after[0], after[3])
        assert not np.array_equal(after[0], after[2]) and np.array_equal(after[0], alone.picture) and np.array_equal(boxes, alone.boxes)
        assert after.shape[1:] == alone.picture.shape and len(kept) == len(boxes)
    again = Augmentation.named("digits")(clip, rng)  # the generator has gone on
    assert not np.array_equal(again.picture, Augmentation.named("digits")(clip, np.random.default_rng(5)).picture)


def test_sizes_are_those_of_detr():
    """Carion et al. 2020, section 4: a shorter side of 480 to 800 in steps of 32, a longer one of at most 1333, and smaller parts."""
    flip, crop, edge, _ = Augmentation.named("boxes").steps
    assert isinstance(flip, Flip) and isinstance(crop, Sometimes) and isinstance(edge, ShortestEdge)
    assert edge.sizes == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800) and edge.longest == 1333
    assert crop.share == 0.5 and crop.steps[0] == ShortestEdge((400, 500, 600), 1333) and crop.steps[1] == Crop(384, 600)
    picture, seen = noise(0, 12, 16), Counter()
    small = Augmentation.named("boxes", 20)
    assert small.sized and small.steps[2] == ShortestEdge(tuple(round(n / 40) for n in edge.sizes), 33)
    for seed in range(120):
        after = small(picture, np.random.default_rng(seed)).picture
        assert max(after.shape[:2]) <= 33
        seen[min(after.shape[:2])] += 1
    assert set(seen) == set(small.steps[2].sizes)  # type: ignore[union-attr]
    long, moves = ShortestEdge((100,), 150)(noise(0, 10, 100), np.random.default_rng(0))
    assert long.shape == (15, 150, 3) and (moves[0].height, moves[0].width) == (15, 150)


def test_crops_have_the_areas_and_shapes_asked_for():
    shares, ratios = [], []
    for seed in range(400):
        _, (crop, size) = ResizedCrop((8, 8), scale=(0.2, 0.6), ratio=(0.5, 2.0))(
            np.zeros((100, 120, 3), np.uint8), np.random.default_rng(seed)
        )
        shares.append(crop.height * crop.width / 12000)
        ratios.append(np.log2(crop.width / crop.height))
        assert 0 <= -crop.matrix[0, 2] <= 120 - crop.width and 0 <= -crop.matrix[1, 2] <= 100 - crop.height
        assert (size.height, size.width) == (8, 8)
    assert 0.19 < min(shares) < 0.23 and 0.57 < max(shares) < 0.61 and abs(np.mean(shares) - 0.4) < 5 * 0.4 / 12**0.5 / 20
    assert -1.05 < min(ratios) < -0.9 and 0.9 < max(ratios) < 1.05 and abs(np.mean(ratios)) < 5 * 2 / 12**0.5 / 20
    _, moves = ResizedCrop((8, 8), scale=(0.9, 1.0))(np.zeros((10, 100, 3), np.uint8), np.random.default_rng(0))
    assert (moves[0].height, moves[0].width, moves[0].matrix[0, 2]) == (10, 13, -43)  # nothing fits: the middle, 4 to 3


# ---- colours ----


def test_hues_are_turned_as_colorsys_turns_them():
    colours = noise(4, 1, 300)
    after = np.asarray(turned(image_of(colours), 0.3))
    for before, now in zip(colours[0] / 255, after[0]):
        h, s, v = colorsys.rgb_to_hsv(*before)
        assert np.abs(np.array(colorsys.hsv_to_rgb((h + 0.3) % 1, s, v)) * 255 - now).max() <= 8  # Pillow's HSV has bytes


def test_jitter_is_brightness_contrast_and_saturation():
    """Each alone, at a factor that is found again from the pixels by the formula of its blend."""
    picture = noise(5, 40, 40) // 2 + 64  # nothing is cut off
    grey = np.round(picture @ [0.299, 0.587, 0.114])[..., None]  # ITU-R BT.601
    for what, ground in (("brightness", np.zeros(1)), ("contrast", np.round(grey.mean())), ("saturation", grey)):
        factors = []
        for seed in range(60):
            after, moves = Jitter(**{what: 0.3})(picture, np.random.default_rng(seed))
            apart = picture - ground
            factors.append(np.sum((after - ground) * apart) / np.sum(apart**2))
            assert not moves and np.abs(ground + factors[-1] * apart - after).max() <= 2
        assert 0.69 < min(factors) < 0.8 and 1.2 < max(factors) < 1.31
    still, _ = Jitter()(picture, np.random.default_rng(0))
    assert np.array_equal(still, picture)


def test_randaugment_draws_14_operations_that_grow_from_nothing():
    picture = noise(6, 24, 24)
    picture[0, :2] = [[0], [255]]  # so that no contrast is left to take
    for name, operation in OPERATIONS.items():
        unchanged = np.array_equal(np.asarray(operation(image_of(picture), 0.0)), picture)
        assert unchanged == (name != "equalize")
        for strength in (-1.0, 1.0):
            assert (np.asarray(operation(image_of(picture // 2 + 30), strength)) != picture // 2 + 30).any() or name == "identity"
    assert np.array_equal(np.asarray(OPERATIONS["solarize"](image_of(picture), -1.0)), 255 - picture)
    assert np.array_equal(np.asarray(OPERATIONS["posterize"](image_of(picture), 1.0)), picture & 0xF0)
    still = Augmentation((RandAugment(1, 0),))
    changed = sum(not np.array_equal(still(picture, np.random.default_rng(seed)).picture, picture) for seed in range(560))
    assert abs(changed - 560 * 1 / 14) < 5 * (560 / 14) ** 0.5  # only equalize changes noise: 1 of 14
    assert sum(len(RandAugment(1, 9)(picture, np.random.default_rng(seed))[1]) for seed in range(560)) == pytest.approx(
        200, abs=5 * 11.4
    )  # 5 of 14


def test_erasing_takes_the_share_asked_for():
    picture, shares = np.zeros((60, 80, 3), np.uint8), []
    for seed in range(400):
        after, moves = Erase(0.5, scale=(0.1, 0.3))(picture, np.random.default_rng(seed))
        rows, columns = np.nonzero(after.any(axis=2))
        if len(rows):
            shares.append((np.ptp(rows) + 1) * (np.ptp(columns) + 1) / 4800)
        assert not moves and not picture.any()
    assert abs(len(shares) - 200) < 50 and 0.09 < min(shares) < 0.13 and 0.27 < max(shares) < 0.31


def test_an_unknown_name_is_refused():
    with pytest.raises(
        InputError, match="no augmentation is called 'bold': choose none, digits, small, photographs, strong, boxes or overhead"
    ):
        Augmentation.named("bold")


# ---- mixing ----


def levels(rows: int, *shape: int) -> np.ndarray:
    """Pixels [rows, *shape] whose value is the row's number."""
    return np.broadcast_to(np.arange(rows, dtype=np.float32).reshape(-1, *[1] * len(shape)), (rows, *shape)).copy()


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, rows=st.integers(1, 6), height=SIDES, width=SIDES, clip=st.booleans(), cutting=st.booleans(), alpha=st.floats(0.1, 3))
def test_soft_answers_are_the_shares_of_the_pixels(seed, rows, height, width, clip, cutting, alpha):
    """The mean of pixels that all have their row's number is the same mixture as the answers of rows that are their own class."""
    pixels, how = levels(rows, *([2] * clip), 3, height, width), {"cutmix": alpha, "mixup": 0} if cutting else {"cutmix": 0, "mixup": alpha}
    before = pixels.copy()
    after, soft = mixed(pixels, np.arange(rows), np.random.default_rng(seed), rows, **how)
    assert after.dtype == np.float32 and after.shape == pixels.shape and soft.dtype == np.float32 and soft.shape == (rows, rows)
    assert np.array_equal(pixels, before) and (soft >= 0).all()
    np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(after.reshape(rows, -1).mean(axis=1, dtype=np.float64), soft @ np.arange(rows), atol=1e-5)
    if cutting:
        assert (after == np.rint(after)).all() and all(len(np.unique(row)) <= 2 for row in after)
    again = mixed(pixels, np.arange(rows), np.random.default_rng(seed), rows, **how)
    assert np.array_equal(after, again[0]) and np.array_equal(soft, again[1])


def test_mixing_in_half_of_the_batches_each_and_soft_answers_go_through():
    pixels, answers = levels(16, 3, 32, 32), np.random.default_rng(0).dirichlet(np.ones(5), 16).astype(np.float32)
    cut, share = 0, []
    for seed in range(200):
        after, soft = mixed(pixels, answers, np.random.default_rng(seed), 5)
        cut += bool((after == np.rint(after)).all())
        np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-5)
        _, soft = mixed(pixels, np.arange(16), np.random.default_rng(seed), 16, mixup=1.0, cutmix=0.0)
        share += [soft[i, i] for i in range(16) if soft[i, i] < 1]
    assert abs(cut - 100) < 5 * 50**0.5
    assert abs(np.mean(share) - 0.5) < 5 * 12**-0.5 / len(share) ** 0.5  # Beta(1, 1) is uniform
    same, soft = mixed(pixels, np.arange(16), np.random.default_rng(0), 16, mixup=0, cutmix=0)
    assert np.array_equal(same, pixels) and np.array_equal(soft, np.eye(16))
