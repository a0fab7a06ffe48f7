"""Contracts: what every model of `PAGES` gets for free, and must keep. Tiny presets in float64, weights drawn so that nothing is zero.

A test of a capability says which: `@pytest.mark.capability("generate")`. Models x capabilities is the matrix, docs/matrix.md, written by

    python -m pytest tests/contracts tests/parity tests/headers --matrix

and in every other run each of these tests fails where the page says otherwise.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from plait.core.heads import pooled
from plait.core.model import Model
from plait.core.stream import Stream
from plait.models import PAGES, build, vocabulary

VOCAB = 29


def config(arch: str) -> dict:
    """The page's tiny preset over a tiny vocabulary, without dropout (which is no part of what a model computes)."""
    page = PAGES[arch]
    known = {f.name for f in fields(page.Config)}
    wanted = {**page.PRESETS["tiny"], **vocabulary(arch, VOCAB, VOCAB), "n_queries": VOCAB, "dropout": 0.0}
    return {name: value for name, value in wanted.items() if name in known}


@cache
def made(arch: str) -> Model:
    torch.manual_seed(0)
    net = build(arch, config(arch)).double()
    for p in net.parameters():  # zero-started projections would hide what flows through them
        nn.init.normal_(p, mean=float(p.dim() == 1), std=0.3)
    return net


class Ends:
    """How a model is fed and read, whatever its towers: tests give a source and a target, and a model of one tower takes the target.

    `source` and `target` make such inputs: ids, or where the first tower takes them pictures or clips, of the size that the page has.
    """

    def __init__(self, net: Model, config: dict):
        self.two, self.last = len(net.towers) > 1, net.towers[-1]
        self.takes, self.config = net.takes(net.towers[0]), config
        mask = net.get_submodule(f"{self.last}.blocks.0.self_attn").mask
        self.causal = mask is not None
        self.head = next(iter(net.heads))
        self.shifts = tuple(name for name, _ in net.named_parameters() if name.endswith("pos.k_proj.bias"))
        embed: Any = net.get_submodule(self.last).embed
        self.empty = embed.takes == "ids" and not bool(embed(Stream(torch.zeros(1, 1, dtype=torch.long))).x.any())

    @property
    def blind(self) -> tuple[str, ...]:
        """How names of parameters begin that cannot learn: DETR's queries begin without content, so whom they attend to at first makes
        no difference; and where keys of places are made apart, their bias shifts all scores of a query alike."""
        first = "decoder.blocks.0.self_attn."
        empty = (f"{first}q_proj", f"{first}k_proj", f"{first}v_proj.weight", f"{first}pos.") if self.empty else ()
        return (*empty, *self.shifts)

    @property
    def seen(self) -> bool:
        """Whether the first tower takes pixels."""
        return self.takes != "ids"

    def first(self, rows: int, length: int, seed: int = 0) -> torch.Tensor:
        draw = torch.Generator().manual_seed(seed)
        if not self.seen:
            return torch.randint(0, VOCAB, (rows, length), generator=draw)
        side, frames = self.config.get("image_size", 96), [self.config["frames"]] if self.takes == "clips" else []
        return torch.randn(rows, *frames, 3, side, side, generator=draw, dtype=torch.float64)

    def source(self, rows: int, length: int, seed: int = 0) -> torch.Tensor:
        return self.first(rows, length, seed)

    def target(self, rows: int, length: int, seed: int = 1) -> torch.Tensor:
        if self.seen and not self.two:
            return self.first(rows, length, seed)
        return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))

    def feed(self, source: Any, target: Any) -> dict[str, Any]:
        return {"encoder": source, "decoder": target} if self.two else {self.last: target}

    def out(self, net: Model, source: Any, target: Any) -> torch.Tensor:
        """The last tower's hidden vectors [B, L, D]."""
        return net(**self.feed(source, target))[self.last].x

    def scores(self, net: Model, source: Any, target: Any) -> torch.Tensor:
        """All that the head says, [B, L, any], or of a head that reads a whole picture [B, any]."""
        head, stream = net.heads[self.head], net(**self.feed(source, target))[self.last]
        if not self.seen:
            return head(stream.x)
        return torch.cat(head(stream.x), -1) if self.two else head(pooled(head, stream))

    def memories(self, net: Model, source: Any) -> dict[str, Any]:
        return {"encoder": net.run("encoder", source)} if self.two else {}

    def need(self, causal: bool = False, two: bool = False) -> None:
        """Where the structure forbids a capability, the test says so and ends."""
        if causal and not self.causal:
            pytest.skip("not applicable: every entry sees the whole text, so nothing is generated from left to right")
        if two and not self.two:
            pytest.skip("not applicable: one tower, no source beside the text")


@pytest.fixture(scope="session")
def ends(net, arch) -> Ends:
    return Ends(net, config(arch))


@pytest.fixture(scope="session", params=list(PAGES))
def arch(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def net(arch) -> Model:
    return made(arch)


@pytest.fixture(scope="session")
def settings(arch) -> dict:
    """What `net` was built from."""
    return config(arch)


@pytest.fixture(scope="session")
def released(arch) -> ModuleType:
    """The page, if it reads and writes the files of others."""
    if not hasattr(PAGES[arch], "KEYS"):
        pytest.skip(f"not applicable: {UNRELEASED}")
    return PAGES[arch]


@pytest.fixture(scope="session")
def tiny(arch):
    """A function that builds this page anew (shapes only matter: values are as the page starts them)."""
    return lambda **changes: build(arch, {**config(arch), **changes})


# ---- the matrix ----

TESTS = Path(__file__).resolve().parents[1]
FOLDERS = [TESTS / name for name in ("contracts", "parity", "headers")]
PAGE = TESTS.parent / "docs" / "matrix.md"
WRITE = "python -m pytest tests/contracts tests/parity tests/headers --matrix"
COLUMNS = {
    "parity": "the numbers of the reference implementation, on the same weights, in float64",
    "headers": "every name and shape of the released files is claimed, and every total is the published one",
    "build": "every preset builds without memory; nothing is stored or counted twice",
    "train": "every parameter learns, and the loss falls",
    "resume": "stopped and resumed = uninterrupted, bit for bit",
    "accumulate": "a batch in parts = the whole batch",
    "generate": "cached = uncached, in uneven chunks and padded; greedy answers are the likeliest tokens",
    "batch": "alone = in a padded batch, on either side; padding and the future change nothing",
    "save": "saved = loaded, bit for bit",
    "export": "written with the names and the config.json of the reference, and read again: the same, bit for bit",
    "tune": "adapters of every method begin as nothing, learn alone, are saved, loaded, merged and taken off",
    "record": "recorded attention rows sum to 1, and recording changes nothing",
    "patch": "its own activations put in place change no bit, another input's give that input's answer; heads switched off give the bias",
    "attribute": "every entry of every tower has its share of a score, and the shares add up; what each layer and head does",
    "quantise": "8 and 4 bits, calibrated too, give nearly the same vectors",
    "prune": "heads and units taken out = silenced, layers taken out = not run, cached = uncached then, and a saved shape builds the same",
    "kernels": "every kernel = the reference kernel, gradients too",
}
UNRELEASED = "no weights of it were released in a form of others"
HEAD = f"""# The matrix

Every cell is a contract test that ran on the model's tiny preset. Written by `{WRITE}`;
in every other run a test fails where this page is not what the tests say.
"""


def cells_of(item: pytest.Item) -> Iterator[str]:
    """The cells that a test fills, as "model capability": by a contract's mark; in parity and headers by parameters, else by the file."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    if mark := item.get_closest_marker("capability"):
        yield from (f"{params['arch']} {name}" for name in mark.args)
    elif item.path.parent.name in ("parity", "headers"):
        said = [x.__name__.rpartition(".")[2] if isinstance(x, ModuleType) else str(x).lower() for x in params.values()]
        of_file = getattr(item.module, "PAGES_SHOWN", [item.path.stem.removeprefix("test_").replace("_", "-")])  # type: ignore[attr-defined]
        names = [name for name in said if name in PAGES] or of_file
        yield from (f"{name} {item.path.parent.name}" for name in names if name in PAGES)


def why_not(report: pytest.TestReport) -> str | None:
    """The reason of a skip where the structure forbids a capability."""
    said = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
    return said.partition("not applicable: ")[2] or None


def written() -> dict[str, str]:
    """The cells of the page: "yes", or the reason why not."""
    text = PAGE.read_text("utf-8") if PAGE.exists() else ""
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.M))
    (head, _, *rows) = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")] or [[], []]
    found = {f"{name} {column}": cell for name, *cells in rows for column, cell in zip(head[1:], cells, strict=True)}
    return {cell: notes[said.split()[1]] if said.startswith("no ") else said for cell, said in found.items()}


def rendered(cells: dict[str, str]) -> str:
    notes = list(dict.fromkeys(said for said in cells.values() if said not in ("yes", "FAILED", "")))
    rows = [["model", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    for name in PAGES:
        said = [cells[f"{name} {column}"] for column in COLUMNS]
        rows.append([name, *(f"no {notes.index(x) + 1}" if x in notes else x for x in said)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    columns = "\n".join(f"* **{name}**: {what}." for name, what in COLUMNS.items())
    reasons = "\n".join(f"{i}. {note}" for i, note in enumerate(notes, 1))
    return f'{HEAD}\n{table}\n\n{columns}\n\nWhere the structure forbids it, "no" has a reason:\n\n{reasons}\n'


def complete(cells: dict[str, str]) -> dict[str, str]:
    """With a cell for every model and capability; an empty one is a test that is missing."""
    whole = {cell: cells.get(cell, "") for cell in (f"{name} {column}" for name in PAGES for column in COLUMNS)}
    for name in PAGES:
        for column in ("parity", "headers"):
            if not whole[f"{name} {column}"] and not hasattr(PAGES[name], "KEYS"):
                whole[f"{name} {column}"] = UNRELEASED
    return whole


class Matrix:
    """Hears of every test, wherever it lies (hooks of this file would only hear of its folder), and writes the page or holds it true."""

    def __init__(self, write: bool):
        self.write, self.said = write, defaultdict(set)

    def pytest_collection_modifyitems(self, items):
        for item in items:  # as properties they travel with the reports of xdist's workers
            item.user_properties += [("cell", cell) for cell in cells_of(item)]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = (yield).get_result()
        if self.write or item.get_closest_marker("capability") is None or not (report.skipped or (call.when == "call" and report.passed)):
            return
        page, said = written(), why_not(report) or ("skipped" if report.skipped else "yes")
        for _, cell in item.user_properties:
            if cell in page and page[cell] != said:
                report.outcome, report.longrepr = "failed", f"{PAGE.name} says of {cell}: {page[cell]!r}; this test: {said!r}. Run {WRITE}"

    def pytest_runtest_logreport(self, report):
        if report.failed or report.skipped or report.when == "call":
            for kind, cell in report.user_properties:
                if kind == "cell":
                    self.said[cell].add("FAILED" if report.failed else why_not(report) or ("" if report.skipped else "yes"))

    def pytest_sessionfinish(self, session):
        if self.write and not hasattr(session.config, "workerinput"):
            best = {cell: next((x for x in ("FAILED", "yes") if x in said), max(said)) for cell, said in self.said.items()}
            PAGE.write_text(rendered(complete(written() | best)), "utf-8")  # cells that were not run stay


@pytest.fixture
def cells(request) -> tuple[set[str], set[str], dict[str, str], bool]:
    """(cells there must be, cells of the tests that were collected, the page's, whether all tests of the matrix were collected)"""
    if request.config.getoption("--matrix", False):
        pytest.skip("the page is being written")
    tests = {cell for item in request.session.items for kind, cell in item.user_properties if kind == "cell"}
    options = request.config.option
    given = [Path(request.config.invocation_params.dir, word.partition("::")[0]).resolve() for word in request.config.args]
    whole = all(any(folder.is_relative_to(path) for path in given) for folder in FOLDERS)
    return set(complete({})), tests, written(), whole and not (options.keyword or options.markexpr or options.ignore or options.deselect)


def pytest_addoption(parser):
    parser.addoption("--matrix", action="store_true", help="write docs/matrix.md from what the tests say")


def pytest_configure(config):
    config.addinivalue_line("markers", "capability(*names): columns of docs/matrix.md that this test of every model fills")
    config.pluginmanager.register(Matrix(config.getoption("--matrix", False)), "matrix")
