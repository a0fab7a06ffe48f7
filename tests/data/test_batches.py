from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data.batches import BatchOrder, collate
from plait.data.corpus import Corpus
from plait.data.pairs import Pair
from plait.errors import InputError

rows = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=80)
orders = st.builds(
    lambda lengths, budget, seed, pool: BatchOrder(np.array(lengths), budget, seed, pool),
    rows, st.integers(1, 300), st.integers(0, 2**64 - 1), st.integers(1, 100),
)  # fmt: skip


@given(orders, st.integers(0, 5))
def test_every_row_once_and_the_budget_kept(order, epoch):
    batches = order.batches(epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(order)))
    for batch in batches:
        longest = order.lengths[batch].max(axis=0).sum()
        assert len(batch) == 1 or len(batch) * longest <= order.tokens_per_batch


@given(orders, st.integers(0, 3), st.data())
@settings(max_examples=50)
def test_the_stream_resumes_anywhere(order, epoch, data):
    steps = [(e, p, list(rows)) for e, p, rows in islice(order.stream(epoch), 3 * len(order.batches(epoch)))]
    at = data.draw(st.integers(0, len(steps) - 1))
    again = BatchOrder(order.lengths.copy(), order.tokens_per_batch, order.seed, order.pool)
    stored = steps[at]
    resumed = again.stream(stored[0], stored[1] + 1)
    assert [(e, p, list(rows)) for e, p, rows in islice(resumed, len(steps) - at - 1)] == steps[at + 1 :]
    assert list(next(again.stream(*stored[:2]))[2]) == stored[2]
    assert again.fingerprint == order.fingerprint


def greedy(lengths, budget):
    """The cut said plainly, one row at a time."""
    batches, widest = [[]], np.zeros(2, int)
    for i, row in enumerate(lengths):
        wider = np.maximum(widest, row)
        if batches[-1] and (len(batches[-1]) + 1) * wider.sum() > budget:
            batches.append([])
            wider = row
        batches[-1].append(i)
        widest = wider
    return batches


@given(rows, st.integers(1, 300))
def test_the_cut_is_the_greedy_one(lengths, budget):
    lengths = np.array(sorted(lengths, key=lambda row: (max(row), sum(row))))
    order = BatchOrder(lengths, budget)
    assert [sorted(map(tuple, lengths[b])) for b in order._cut(np.arange(len(lengths)))] == [
        sorted(map(tuple, lengths[b])) for b in greedy(lengths, budget)
    ]


def test_epochs_and_seeds_differ_and_the_order_is_pinned():
    lengths = np.stack([np.arange(200) % 17 + 1, np.arange(200) % 13 + 1], axis=1)
    order = BatchOrder(lengths, 300, seed=3)
    first, second = order.batches(0), order.batches(1)
    assert [list(b) for b in first] != [list(b) for b in second]
    assert [list(b) for b in first] != [list(b) for b in BatchOrder(lengths, 300, seed=4).batches(0)]
    assert order.fingerprint != BatchOrder(lengths, 301, seed=3).fingerprint
    # A place stored in a checkpoint must mean the same rows in every later version: the shuffle is Philox's raw stream.
    bits = np.random.Philox(key=np.array([3, 0], np.uint64)).random_raw(200)
    whole = BatchOrder(np.ones((200, 2), int), 10**6, seed=3).batches(0)
    assert len(whole) == 1 and list(whole[0]) == list(np.argsort(bits, kind="stable"))


def test_sorting_pays():
    rng = np.random.default_rng(0)
    lengths = rng.geometric(0.05, (4000, 1)) + rng.integers(1, 6, (4000, 2))
    order = BatchOrder(lengths, 4096)
    padded = sum(len(b) * lengths[b].max(axis=0).sum() for b in order.batches(0))
    unsorted = sum(len(b) * lengths[b].max(axis=0).sum() for b in np.array_split(np.arange(4000), len(order.batches(0))))
    assert lengths.sum() / padded > 0.85 > 0.5 > lengths.sum() / unsorted


def test_wrong_numbers_are_errors():
    with pytest.raises(InputError) as caught:
        BatchOrder(np.zeros((0, 2)), 0, -1, 0)
    assert len(caught.value.faults) == 4
    order = BatchOrder(np.ones((4, 2)), 4)
    with pytest.raises(InputError, match="has 2 batches"):
        next(order.stream(0, 3))
    assert next(order.stream(0, 2))[:2] == (1, 0)


class Letters:
    """A tokenizer small enough to check by eye: a = 4, b = 5 ...; z is unknown."""

    pad_id, bos_id, eos_id, unk_id = 0, 1, 2, 3

    def encode_batch(self, texts):
        return [[3 if c == "z" else ord(c) - 93 for c in text] for text in texts]


def test_a_batch_by_eye():
    batch = collate([([4, 5, 6], [7]), ([8], [9, 10])])
    assert batch.source.tolist() == [[4, 5, 6], [8, 0, 0]]
    assert batch.source_real.tolist() == [[True, True, True], [True, False, False]]
    assert batch.target_in.tolist() == [[1, 7, 0], [1, 9, 10]]
    assert batch.target_out.tolist() == [[7, 2, 0], [9, 10, 2]]
    assert batch.target_real.tolist() == [[True, True, False], [True, True, True]]
    assert batch.n_target == 5 and len(batch) == 2 and batch.source_lengths.tolist() == [3, 1]
    assert batch.source.dtype == batch.target_out.dtype == torch.int64 and batch.source_real.dtype == torch.bool
    assert batch.to("cpu").n_target == 5


ids = st.lists(st.integers(4, 9), max_size=7)


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=9), st.data())
def test_a_corpus_gives_the_same_batch_as_its_rows(pairs, data):
    text = ["".join(chr(i + 93) for i in side) for pair in pairs for side in pair]
    corpus = Corpus.encode([Pair(s, t) for s, t in zip(text[::2], text[1::2], strict=True)], Letters(), Letters())
    assert corpus.lengths.tolist() == [[len(s), len(t) + 1] for s, t in pairs]
    chosen = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1))
    ours, plain = corpus.batch(np.array(chosen)), collate([pairs[i] for i in chosen])
    for row, i in enumerate(chosen):  # read back from the tensors
        assert ours.source[row][ours.source_real[row]].tolist() == pairs[i][0]
        assert ours.target_out[row][ours.target_real[row]].tolist() == [*pairs[i][1], 2]
        assert ours.target_in[row][ours.target_real[row]].tolist() == [1, *pairs[i][1]]
    assert all(torch.equal(getattr(ours, name), getattr(plain, name)) for name in ("source", "target_in", "target_out", "target_real"))
    assert ours.n_target == plain.n_target == int(ours.target_real.sum())
    assert (ours.target_out[~ours.target_real] == 0).all() and (ours.target_in[~ours.target_real] == 0).all()


def test_cuts_and_unknown_symbols_are_reported():
    pairs = [Pair("abcdef", "abcdef", "f:1"), Pair("az", "b", "f:2"), Pair("", "b", "f:3")]
    corpus = Corpus.encode(pairs, Letters(), Letters(), max_source=4, max_target=4)
    assert corpus.sources[0].tolist() == [4, 5, 6, 7] and corpus.targets[0].tolist() == [4, 5, 6]
    assert corpus.lengths.max(axis=0).tolist() == [4, 4]
    assert {reason: f.examples for reason, f in corpus.report.noted.items()} == {
        "source cut to 4 tokens": ["f:1"],
        "source with symbols that the tokenizer does not know": ["f:2"],
        "source without a token": ["f:3"],
        "target cut to 3 tokens": ["f:1"],
    }
    ended = Corpus.encode(pairs, Letters(), Letters(), max_source=4, source_eos=True)
    assert ended.sources[0].tolist() == [4, 5, 6, 2] and ended.sources[2].tolist() == [2]
    with pytest.raises(InputError, match="max_target=1"):
        Corpus.encode(pairs, Letters(), Letters(), max_target=1)
