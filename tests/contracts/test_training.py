"""Every model of PAGES trains, goes on exactly after a stop, answers greedily from its cache, and shows what it attends to."""

import numpy as np
import pytest
import torch

from plait.core.stream import Stream
from plait.data.batches import BatchOrder
from plait.data.corpus import Corpus, Flat
from plait.data.report import Report
from plait.generate.search import search
from plait.inspect.record import record
from plait.tasks.translation import TeacherForcing
from plait.train.log import Reporter
from plait.train.loop import Budget, Interrupted, Settings, Trainer
from plait.train.recipes import Recipe

START, END, VOCAB = 1, 2, 29
RECIPES = {
    "muon": Recipe("muon", 0.02, 0.005, "linear", 3, 0.0),
    "adam": Recipe("adam", 0.003, 0.003, "inverse-sqrt", 5, 0.01),
}
STEPS = 14


def corpus() -> Corpus:
    """Each target is its source with every symbol one further."""
    draw = np.random.default_rng(0)
    rows = [draw.integers(4, 12, draw.integers(1, 6)).tolist() for _ in range(48)]
    return Corpus(Flat.of(rows), Flat.of([[v + 1 for v in row] for row in rows]), 0, 0, START, END, Report("made"))


def trainer(net, folder, recipe) -> Trainer:
    data = corpus()
    order = BatchOrder(data.lengths, 150)

    def stream(epoch, position):
        for epoch, position, rows in order.stream(epoch, position):
            yield epoch, position + 1, data.batch(rows)

    return Trainer(
        net,
        TeacherForcing(0.1),
        recipe.optimizer(net),
        recipe.schedule(),
        stream,
        lambda epoch: len(order.batches(epoch)),
        [data.batch(np.arange(20))],
        Budget(steps=STEPS),
        Settings(evaluations=1, save_seconds=1e9),
        folder,
        Reporter(quiet=True),
    )


@pytest.mark.parametrize("kind", RECIPES)
def test_it_trains_and_a_resumed_run_is_the_uninterrupted_one(kind, tiny, ends, tmp_path):
    ends.need(two=True)  # of the tasks there are, translation alone trains
    torch.manual_seed(0)
    net = tiny(dropout=0.1)
    first = {name: t.clone() for name, t in net.state_dict().items()}
    whole = trainer(net, tmp_path / "whole", RECIPES[kind])
    before = whole.valid_loss()
    whole.fit()
    assert whole.valid_loss() < 0.9 * before
    assert all(not torch.equal(t, first[name]) for name, t in net.state_dict().items())

    torch.manual_seed(0)
    stopped = trainer(tiny(dropout=0.1), tmp_path / "run", RECIPES[kind])
    stopped.step, real = lambda batch: (real(batch), setattr(stopped, "stop", stopped.state.step == 5))[0], stopped.step
    with pytest.raises(Interrupted):
        stopped.fit()
    torch.manual_seed(7)
    resumed = trainer(tiny(dropout=0.1), tmp_path / "run", RECIPES[kind])
    resumed.resume()
    assert resumed.state.step == 5
    resumed.fit()
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in resumed.net.state_dict().items())
    assert all(torch.equal(t, whole.optimizer.state()[name]) for name, t in resumed.optimizer.state().items())


@torch.no_grad()
def test_it_generates_the_likeliest_token_each_time(net, ends):
    ends.need(causal=True, two=True)  # of the searches there are, none begins without a source
    sources = torch.randint(4, VOCAB, (3, 5), generator=torch.Generator().manual_seed(1))
    found = search(net, Stream(sources), start=START, end=END, max_length=6, beams=1)
    for source, (answer,) in zip(sources, found, strict=True):
        ids: list[int] = []
        while len(ids) < 6:
            hidden = net(encoder=source[None], decoder=torch.tensor([[START, *ids]]))["decoder"].x[:, -1]
            token = int(net.heads["lm"](hidden).argmax())
            if token == END:
                break
            ids.append(token)
        assert answer.ids == ids


def test_it_shows_what_it_attends_to_and_is_not_changed_by_that(net, ends):
    source = torch.randint(4, VOCAB, (1, 5), generator=torch.Generator().manual_seed(2))
    target = torch.randint(4, VOCAB, (1, 4), generator=torch.Generator().manual_seed(3))
    seen, streams = record(net, **ends.feed(source, target))
    with torch.no_grad():
        plain = net.eval()(**ends.feed(source, target))
    assert all(torch.equal(streams[name].x, plain[name].x) for name in plain)
    lengths = {"encoder": 5 if ends.two else 4, "decoder": 4}
    steps = [(tower, "self_attn", tower) for tower in net.towers] + [("decoder", "cross_attn", "encoder")] * ends.two
    for tower, step, keys in steps:
        weights = seen.stacked(tower, step)
        assert weights is not None
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
        assert weights.shape[-2:] == (lengths[tower], lengths[keys])
        if (tower, step) == ("decoder", "self_attn"):
            assert np.triu(weights, 1).max() == 0
