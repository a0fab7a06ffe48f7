"""Packed rows are the separate documents; every token is predicted once an epoch; batches are a function of (seed, epoch, position)."""

import threading

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from plait.data.ahead import Ahead, ahead
from plait.data.batches import BatchOrder
from plait.data.corpus import Flat
from plait.data.examples import IGNORED
from plait.data.feed import RowFeed
from plait.data.packing import Documents, PackedFeed
from plait.models import PAGES, build
from plait.tasks.language import NextToken

VOCAB = 23
DRAW = np.random.default_rng(0)
ROWS = [DRAW.integers(1, VOCAB, n).tolist() for n in (5, 3, 9, 2, 1, 40, 17, 4, 6, 2, 33, 8)]


def documents(rows=ROWS, scored=None) -> Documents:
    return Documents(Flat.of(rows), scored)


def net_of(arch: str):
    torch.manual_seed(0)
    more = {"max_length": 64} if arch == "gpt2" else {"ngrams": 3, "ngram_rows": 50} if arch == "modern-decoder" else {}
    net = build(arch, {**PAGES[arch].PRESETS["tiny"], "vocab_size": VOCAB, "dropout": 0.0, **more} if arch != "llama" else
                {**PAGES[arch].PRESETS["tiny"], "vocab_size": VOCAB}).double()  # fmt: skip
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.dim() == 1), std=0.3)
    return net.eval()


@pytest.mark.parametrize("arch", ["modern-decoder", "gpt2", "llama"])
@torch.no_grad()
def test_packed_is_each_document_alone(arch):
    net, objective = net_of(arch), NextToken()
    short = [row for row in ROWS if len(row) <= 16]
    feed = PackedFeed(documents(short), 16, 2)
    packed, total, count = dict[tuple, torch.Tensor](), 0.0, 0
    shared = 0
    for _, _, batch in take(feed, 0):
        loss = objective.loss(net, batch)
        total, count = total + float(loss.plain), count + loss.count
        hidden = objective.hidden(net, batch)
        segments = batch.segment if batch.segment is not None else torch.where(batch.real, 0, -1)
        for row, segment in zip(range(len(batch)), segments, strict=True):
            for number in segment[segment >= 0].unique():
                at = segment == number
                packed[tuple(batch.ids[row, at].tolist())] = hidden[row, at]
            shared += int(segment.max() > 0)
    assert shared  # rows that hold several documents are what is tested
    alone = 0.0
    for row in short:
        ids = torch.tensor([row])
        if len(row) < 2:
            continue
        hidden = net.run("decoder", ids[:, :-1]).x
        assert_close(packed[tuple(row[:-1])], hidden[0], rtol=1e-10, atol=1e-10)
        alone += float(torch.nn.functional.cross_entropy(net.heads["lm"](hidden)[0], ids[0, 1:], reduction="sum"))
    assert count == sum(len(row) - 1 for row in short)
    assert total == pytest.approx(alone, rel=1e-12)


def take(feed, epoch: int) -> list:
    stream = feed.stream(epoch, 0)
    return [next(stream) for _ in range(feed.batches(epoch))]


def numbered(rows=ROWS) -> Documents:
    """Each token another id, so that it is known by it."""
    lengths = [len(row) for row in rows]
    return Documents(Flat(np.arange(sum(lengths), dtype=np.int32), np.concatenate([[0], np.cumsum(lengths)])))


@pytest.mark.parametrize("context", [1, 7, 16, 64])
def test_every_token_is_predicted_once_an_epoch(context):
    feed = PackedFeed(numbered(), context, 3, seed=5)
    firsts = {int(x) for x in feed.documents.texts.offsets[:-1]}
    for epoch in (0, 1):
        answers = torch.cat([batch.answers[batch.answers != IGNORED] for _, _, batch in take(feed, epoch)]).tolist()
        assert sorted(answers) == [i for i in range(len(feed.documents.texts.ids)) if i not in firsts]
        for _, _, batch in take(feed, epoch):
            assert batch.ids.shape[1] <= context and len(batch) <= 3
            assert bool(((batch.answers == batch.ids + 1) | (batch.answers == IGNORED)).all())
    assert sorted(torch.cat([b.answers[b.answers != IGNORED] for b in feed.all()]).tolist()) == sorted(answers)


def test_another_epoch_is_cut_elsewhere():
    feed = PackedFeed(numbered([[0] * 200]), 16, 2, seed=1)
    starts = [{int(i) for _, _, batch in take(feed, epoch) for i in batch.ids[:, 0]} for epoch in (0, 1, 0)]
    assert starts[0] != starts[1] and starts[0] == starts[2]


def test_prompts_are_read_and_not_learned():
    scored = np.concatenate([[False] * 3 + [True] * (len(row) - 3) if len(row) > 3 else [True] * len(row) for row in ROWS])
    feed = PackedFeed(Documents(numbered().texts, scored), 8, 2)
    learned = {int(i) for _, _, batch in take(feed, 0) for i in batch.answers[batch.answers != IGNORED]}
    read = {int(i) for _, _, batch in take(feed, 0) for i in batch.ids[batch.real]}
    firsts = {int(x) for x in feed.documents.texts.offsets[:-1]}
    assert learned == {i for i in np.flatnonzero(scored) if i not in firsts}
    assert set(np.flatnonzero(~scored)) <= read


def test_fullness_is_the_share_of_real_entries():
    feed = PackedFeed(documents(), 16, 2)
    batches = take(feed, 0)
    assert feed.fullness == sum(int(b.real.sum()) for *_, b in batches) / (16 * sum(len(b) for *_, b in batches))


# ---- ahead of their turn ----


def same(one, two) -> bool:
    return one[:2] == two[:2] and all(torch.equal(a, b) for a, b in [(one[2].ids, two[2].ids), (one[2].answers, two[2].answers)])


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("place", [(0, 0), (0, 3), (2, 5)])
def test_ahead_is_plain(workers, place):
    feed = PackedFeed(documents(), 8, 1)
    plain, made = feed.stream(*place), ahead(feed, workers).stream(*place)
    assert all(same(next(plain), next(made)) for _ in range(3 * feed.batches(0)))
    assert ahead(feed, workers).batches(1) == feed.batches(1) and ahead(feed, 0) is feed
    made.close()


def test_ahead_raises_in_its_turn_and_ends():
    def batch(rows, epoch):
        if 3 in rows:
            raise ValueError("row 3 is broken")
        return rows

    feed = RowFeed(BatchOrder(np.ones((10, 2), np.int64), 2, 0), batch)
    order = [rows.tolist() for rows in feed.order.batches(0)]
    stream = Ahead(feed, 2).stream(0, 0)
    assert [next(stream)[2].tolist() for _ in range(order.index([3]))] == order[: order.index([3])]
    with pytest.raises(ValueError, match="row 3 is broken"):
        next(stream)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("plait-batches")]
    again = Ahead(PackedFeed(documents(), 8, 1), 2).stream(0, 0)
    next(again)
    again.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("plait-batches")]
