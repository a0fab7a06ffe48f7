"""Every model of PAGES trains, goes on exactly after a stop, answers greedily from its cache, and shows what it attends to."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from plait.core.stream import Stream
from plait.data.corpus import Corpus, Flat
from plait.data.picture_feed import BoxBatch, PictureBatch, PictureSet
from plait.data.picture_rows import PictureRow
from plait.data.report import Report
from plait.generate.greedy import continued
from plait.generate.search import search
from plait.inspect.record import recorded
from plait.tasks.classifying import Classifying
from plait.tasks.detecting import Detecting
from plait.tasks.objective import Loss
from plait.tasks.translation import TeacherForcing
from plait.train.log import Reporter
from plait.train.loop import Interrupted, Trainer
from plait.train.recipes import Recipe
from plait.train.state import Budget, Settings

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


class Shown(PictureSet):
    """Pictures that are brighter the higher the number of their class is; of a detector, with a bright square in a box."""

    def __init__(self, ends):
        draw = np.random.default_rng(0)
        self.answers = draw.integers(0, 2, 48)
        self.ends, noise = ends, ends.source(48, 1, 7).float() * 0.1
        self.pixels = noise + torch.from_numpy(self.answers).float().view(-1, *[1] * (noise.dim() - 1))
        self.rows = [PictureRow(b"", str(label), f"picture {i}") for i, label in enumerate(self.answers)]
        self.preparation = self.augmentation = self.frames = self.mixed = None

    def batch(self, rows, epoch=0, seed=0):
        pixels = self.pixels[rows]
        if not self.ends.two:
            return PictureBatch(pixels, None, torch.from_numpy(self.answers[rows]))
        boxes = [torch.tensor([[0.5, 0.5, 0.25, 0.25 + 0.5 * label]]) for label in self.answers[rows]]
        labels = [torch.tensor([int(label)]) for label in self.answers[rows]]
        return BoxBatch(pixels, None, boxes, labels, torch.full((len(rows), 2), 32), len(rows), len(rows))


class NextSymbol(TeacherForcing):
    """What a model of one tower learns here: of each entry of the target, the symbol that is one further."""

    def __init__(self, ends):
        super().__init__()
        self.ends = ends

    def loss(self, net, batch):
        scores = self.ends.scores(net, None, Stream(batch.target_out, real=batch.target_real))
        answers = (batch.target_out + 1) % VOCAB
        total = torch.nn.functional.cross_entropy(scores[batch.target_real], answers[batch.target_real], reduction="sum")
        return Loss(total, total.detach(), batch.n_target)


def trainer(net, ends, folder, optimizer, schedule, accumulate=1) -> Trainer:
    data = Shown(ends) if ends.seen else corpus()
    objective = NextSymbol(ends) if not ends.two else TeacherForcing(0.1)
    if ends.seen:
        objective = Detecting(VOCAB) if ends.two else Classifying()
    return Trainer(
        net,
        objective,
        optimizer,
        schedule,
        data.feed(12 if ends.seen else 150),
        [data.batch(np.arange(20))],
        Budget(steps=STEPS),
        Settings(evaluations=1, save_seconds=1e9, accumulate=accumulate),
        folder,
        Reporter(quiet=True),
    )


@pytest.mark.capability("train", "resume")
@pytest.mark.parametrize("kind", RECIPES)
def test_it_trains_and_a_resumed_run_is_the_uninterrupted_one(kind, tiny, ends, tmp_path):
    def run(net, folder):
        return trainer(net, ends, tmp_path / folder, RECIPES[kind].optimizer, RECIPES[kind].schedule())

    torch.manual_seed(0)
    net = tiny(dropout=0.1)
    first = {name: t.clone() for name, t in net.state_dict().items()}
    whole = run(net, "whole")
    before = whole.valid_loss()
    whole.fit()
    assert whole.valid_loss() < 0.9 * before
    assert all(not torch.equal(p, first[name]) for name, p in net.named_parameters() if not name.startswith(ends.blind))

    torch.manual_seed(0)
    stopped = run(tiny(dropout=0.1), "run")
    stopped.step, real = lambda batch: (real(batch), setattr(stopped, "stop", stopped.state.step == 5))[0], stopped.step
    with pytest.raises(Interrupted):
        stopped.fit()
    torch.manual_seed(7)
    resumed = run(tiny(dropout=0.1), "run")
    resumed.resume()
    assert resumed.state.step == 5
    resumed.fit()
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in resumed.net.state_dict().items())
    assert all(torch.equal(t, whole.optimizer.state()[name]) for name, t in resumed.optimizer.state().items())


@pytest.mark.capability("accumulate")
def test_parts_of_a_batch_add_up_to_the_batch(tiny, ends, tmp_path):
    class Kept:
        """An optimizer that only looks at what it is given."""

        def step(self, factor, divide=None):
            self.grads = [p.grad / divide for p in net.parameters()]

    data, found = Shown(ends) if ends.seen else corpus(), []
    net = tiny().double()
    for parts in (1, 3, 20):
        one = trainer(net, ends, tmp_path, lambda _: Kept(), lambda step, progress: 1.0, parts)
        batch = data.batch(np.arange(20))
        if ends.seen:
            batch.pixels = batch.pixels.double()
        one.step(batch)
        found.append([one.loss_now(), *one.optimizer.grads])
    for other in found[1:]:
        assert_close(found[0], other, rtol=1e-9, atol=1e-12)


@pytest.mark.capability("generate")
@torch.no_grad()
def test_it_generates_the_likeliest_token_each_time(net, ends):
    ends.need(causal=True)
    sources = torch.randint(4, VOCAB, (3, 5), generator=torch.Generator().manual_seed(1))
    if ends.two:
        answers = [answer.ids for (answer,) in search(net, Stream(sources), start=START, end=END, max_length=6, beams=1)]
    else:
        answers = [list(continued(net, source.tolist(), 6, {END})) for source in sources]
    for source, answer in zip(sources, answers, strict=True):
        ids, begun = [], [START] if ends.two else source.tolist()
        while len(ids) < 6:
            token = int(ends.scores(net, source[None], torch.tensor([begun + ids]))[0, -1].argmax())
            if token == END:
                break
            ids.append(token)
        assert answer == ids


@pytest.mark.capability("record")
def test_it_shows_what_it_attends_to_and_is_not_changed_by_that(net, ends):
    source, target = ends.source(1, 5, 2), ends.target(1, 4, 3)
    seen, streams = recorded(net, **ends.feed(source, target))
    with torch.no_grad():
        plain = net.eval()(**ends.feed(source, target))
    assert all(torch.equal(streams[name].x, plain[name].x) for name in plain)
    lengths = {name: stream.length for name, stream in plain.items()}
    steps = [(tower, "self_attn", tower) for tower in net.towers] + [("decoder", "cross_attn", "encoder")] * ends.two
    for tower, step, keys in steps:
        weights = seen.stacked(f"{tower}.blocks.*.{step}.pattern")[:, 0]
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
        if not any("time_attn" in name for name, _ in net.named_modules()):  # there each frame has its own
            assert weights.shape[-2:] == (lengths[tower], lengths[keys])
        if ends.causal and (tower, step) == ("decoder", "self_attn"):
            assert np.triu(weights, 1).max() == 0
