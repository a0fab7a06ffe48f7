"""docs/generating.md: every block of code runs as it stands, with a tiny model in the place of smollm2; the first ones with smollm2 too."""

import io
import re
import shlex
from pathlib import Path

import pytest

from plait import cli, hub
from plait.data.packages import find
from plait.hub.zoo import ZOO

PAGE = Path(__file__).parents[2] / "docs" / "generating.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(params=["tiny", "smollm2"])
def blocks(request, monkeypatch):
    pytest.importorskip("llguidance")
    pytest.importorskip("jinja2")
    if request.param == "tiny":
        folder, place = request.getfixturevalue("gpt2"), hub.place
        monkeypatch.setattr(hub, "place", lambda name: folder if name == "smollm2" else place(name))
    elif find(ZOO["smollm2"].package) is None:
        pytest.skip("smollm2 is not in the cache (`plait run smollm2 ...` brings it)")
    return BLOCKS if request.param == "tiny" else BLOCKS[:2]


def test_python(blocks, capsys):
    names: dict = {}
    for kind, code in blocks:
        if kind == "python":
            exec(compile(code, str(PAGE), "exec"), names)
    said = capsys.readouterr().out
    assert said.strip() and (blocks is BLOCKS or "Paris" in said)


def test_command_lines(blocks, monkeypatch, capsys):
    for line in (line for kind, code in blocks if not kind for line in code.splitlines()):
        before, _, command = line.rpartition(" | ")
        if before:
            given = shlex.split(before)
            assert given[0] == "printf"
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given[1].replace("\\n", "\n").encode()), encoding="utf-8"))
        words = shlex.split(command)
        assert words[0] == "plait" and cli.main(words[1:]) == 0, line
        said = capsys.readouterr().out
        assert said.strip() and (blocks is BLOCKS or "capital" not in line or "Paris" in said)


def test_there_is_code_on_the_page():
    assert len(BLOCKS) == 7 and {kind for kind, _ in BLOCKS} == {"", "python"}
