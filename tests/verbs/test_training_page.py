"""docs/training.md: every command on the page runs as it stands but for its budget, on small files of the kinds that it names."""

import json
import re
import shlex
from pathlib import Path

import pytest

from plait import cli

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
BLOCKS = re.findall(r"^```\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
LINES = [line for block in BLOCKS for line in block.splitlines()]
WORDS = "the cat sat on a mat and saw two dogs run past an old red barn in the rain".split()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    texts = [" ".join(WORDS[(i * 7 + k * k) % len(WORDS)] for k in range(12)) for i in range(80)]
    (folder / "novel.txt").write_text("\n".join(texts), encoding="utf-8")
    rows = [f"{text} {'win a prize' if i % 2 else 'see you soon'},{'spam' if i % 2 else 'ham'}" for i, text in enumerate(texts)]
    (folder / "mails.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return folder


def short(words: list[str]) -> list[str]:
    """The command with a budget of a few steps and the smallest model in the place of its own."""
    if "--minutes" in words:
        at = words.index("--minutes")
        size = ["--preset", "gpt2-tiny" if "language-model" in words else "bert-tiny"] if "--model" not in words else []
        words = [*words[:at], "--steps", "2", "--context", "16", "--evaluations", "1", *size, *words[at + 2 :]]
    return words


def test_the_commands_of_the_page(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert len(LINES) >= 8
    for line in LINES:
        words = shlex.split(line)
        assert words[0] == "plait"
        words = ["runs/mails" if word == "minilm" else word for word in words[1:]]
        over = "--resume" in words  # by then that run is finished, and says so
        code = cli.main(short(words))
        said = capsys.readouterr()
        if over:
            assert code == 2 and "this run is finished" in said.err
        elif words[0] != "doctor" and "--check" not in words:  # two steps on eighty rows are no healthy run
            assert code == 0, f"{line}\n{said.err}"
        if words[0] == "eval":
            assert json.loads(said.out)["metrics"]["accuracy"] >= 0
