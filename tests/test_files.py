"""The rules of the house for files: how long one may be, what it may be called, what none may say."""

import re
import subprocess
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LONG, TOO_LONG = 300, 400
VAGUE = re.compile(r"(utils?|common|helpers?|misc)(\.py)?")
# Put together from halves, or this file would break the rule.
ADDRESSES = re.compile(
    "|".join(["pypi" + r"\.org/simple", "files" + r"\.pythonhosted", "download" + r"\.pytorch\.org", "registry" + r"\.npmjs"])
)
MACHINE = re.compile(r"(?<![\w.:/-])/" + r"(work|root|home/\w+)/")
SCRATCH = re.compile(r"(?<![\w.:/-])/" + r"tmp\b")


def files() -> list[Path]:
    """What is or would be in the repository; without git (an unpacked archive), everything but hidden and built folders."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
        ).stdout.decode("utf-8")
        found = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        skipped = {"build", "dist", "runs", "__pycache__"}
        found = [path for path in ROOT.rglob("*") if not any(p.startswith(".") or p in skipped for p in path.relative_to(ROOT).parts)]
    return sorted(path for path in found if path.is_file() and ".venv" not in path.relative_to(ROOT).parts)


def too_long(lengths: Iterable[tuple[str, int]]) -> tuple[list[str], list[str]]:
    """(those that fail, those that are only shown)."""
    lengths = list(lengths)
    failing = [f"{name}: {lines} lines, more than {TOO_LONG}: split it" for name, lines in lengths if lines > TOO_LONG]
    return failing, [f"{name}: {lines} lines" for name, lines in lengths if LONG < lines <= TOO_LONG]


@pytest.mark.filterwarnings("default::UserWarning")
def test_files_are_short():
    python = [path for path in files() if path.suffix == ".py"]
    failing, shown = too_long((path.relative_to(ROOT).as_posix(), len(path.read_text("utf-8").splitlines())) for path in python)
    if shown:
        warnings.warn(f"longer than {LONG} lines: " + ", ".join(shown), UserWarning, stacklevel=1)
    assert not failing, "\n".join(failing)


def test_a_long_file_is_found():
    assert too_long([("a.py", 300), ("b.py", 301), ("c.py", 400), ("d.py", 401)]) == (
        ["d.py: 401 lines, more than 400: split it"],
        ["b.py: 301 lines", "c.py: 400 lines"],
    )


def vague(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if path.endswith(".py") and any(VAGUE.fullmatch(part) for part in path.split("/"))]


def test_no_module_is_called_utils():
    found = vague(path.relative_to(ROOT).as_posix() for path in files())
    assert not found, f"name these after what they do: {found}"


def test_a_vague_name_is_found():
    paths = ["src/plait/utils.py", "src/plait/core/common.py", "src/plait/helpers/beam.py", "tests/util.py"]
    assert vague([*paths, "src/plait/data/utility_bills.py", "docs/common.md"]) == paths


def address_faults(path: str, text: str) -> list[str]:
    rules = [(ADDRESSES, "an address of a registry: installs go by package name"), (MACHINE, "a path of one machine")]
    if path.startswith("src/"):
        rules.append((SCRATCH, "a path of one system: use tempfile"))
    found = [(text.count("\n", 0, match.start()) + 1, match[0], why) for rule, why in rules for match in rule.finditer(text)]
    return [f"{path}:{line}: {match!r} is {why}" for line, match, why in sorted(found)]


def test_no_file_names_a_registry_or_a_path_of_this_machine():
    faults = []
    for path in files():
        try:
            faults += address_faults(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
        except UnicodeDecodeError:
            continue  # no text
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("README.md", "pip install -i https://" + "pypi" + ".org/simple plait"),
        ("docs/a.md", "see https://" + "files" + ".pythonhosted.org/x.whl"),
        ("dev.py", "--index-url https://" + "download" + ".pytorch.org/whl/cpu"),
        ("tests/test_x.py", 'open("/' + 'work/shared/x")'),
        ("src/plait/x.py", 'open("/' + 'tmp/x")'),
        ("src/plait/x.py", "CACHE = '/" + "root/.cache'"),
    ],
)
def test_an_address_or_a_machine_path_is_found(path, text):
    assert address_faults(path, "first\n" + text)[0].startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("README.md", "https://example.org/" + "work/x"),
        ("README.md", "frame" + "/" + "work/s"),
        ("tests/a.py", '"/' + 'tmp/x"'),
        ("a.md", "~/tmp/x"),
    ],
)
def test_what_only_looks_like_one_is_let_through(path, text):
    assert not address_faults(path, text)
