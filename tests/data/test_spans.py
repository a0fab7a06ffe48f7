"""Hidden spans: the paper's example, every way to cut as likely, and no token lost."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from plait.data.corpus import Flat
from plait.data.packing import Documents
from plait.data.spans import Corruption, SpanFeed

SENTINELS = np.arange(999, 899, -1)
X, Y, Z = "<X>", "<Y>", "<Z>"
WORDS = "Thank you for inviting me to your party last week .".split()
FIGURE = Corruption(np.array([100, 101, 102]), share=3 / 11, mean=1.5)  # three words in two spans


def as_words(ids) -> str:
    return " ".join({100: X, 101: Y, 102: Z}.get(int(id)) or WORDS[int(id)] for id in ids)


def test_figure_2_of_the_paper_and_every_other_way_to_cut():
    """Raffel et al. 2020, figure 2. 2 ways to part 3 words in 2 spans, 9 over 2 to lay 8 words before, between and behind them."""
    n, seen = 7200, Counter[tuple[str, str]]()
    for row in range(n):
        read, written = FIGURE.parted(np.arange(11), 0, 0, row)
        seen[as_words(read), as_words(written)] += 1
    assert ("Thank you <X> me to your party <Y> week .", "<X> for inviting <Y> last <Z>") in seen
    assert len(seen) == 2 * 36
    squares = sum((count - n / 72) ** 2 / (n / 72) for count in seen.values())
    assert squares < 71 + 5 * (2 * 71) ** 0.5  # five standard deviations of chi-square with 71 degrees of freedom


def restored(read, written, sentinels) -> list[int]:
    """The text, by the literal rule: each sentinel that is read is what is written behind it, up to the next sentinel."""
    spans, current = dict[int, list[int]](), -1
    for id in map(int, written):
        if id in sentinels:
            current = id
            assert current not in spans
            spans[current] = []
        else:
            spans[current].append(id)
    last = current
    assert spans.pop(last) == [] and last not in read
    return [one for id in map(int, read) for one in (spans[id] if id in sentinels else [id])]


def test_every_token_stands_once_in_what_is_read_or_written():
    corruption, special = Corruption(SENTINELS), set(SENTINELS.tolist())
    hidden = spans = total = 0
    for length in [*range(1, 40), 100, 253, 512]:
        ids = np.arange(length, dtype=np.int32)
        for row in range(20):
            read, written = corruption.parted(ids, 3, 1, row)
            assert restored(read, written, special) == ids.tolist()
            n_hidden, n_spans = (int(n[0]) for n in corruption.sizes(np.array([length])))
            assert (len(read), len(written)) == (length - n_hidden + n_spans, n_hidden + n_spans + 1)
            assert [id for id in read if id in special] == SENTINELS[:n_spans].tolist()
            assert not any(a in special and b in special for a, b in pairwise(read))  # two spans side by side would be one
            if length >= 100:
                hidden, spans, total = hidden + n_hidden, spans + n_spans, total + length
    assert hidden / total == pytest.approx(0.15, abs=0.002) and hidden / spans == pytest.approx(3.0, abs=0.05)


def test_few_sentinels_mean_longer_spans():
    read, written = Corruption(SENTINELS[:3]).parted(np.arange(200), 0, 0, 0)
    assert restored(read, written, set(SENTINELS[:3].tolist())) == list(range(200))
    assert len(written) == 30 + 3 and (np.sort(read)[-2:] == [998, 999]).all()


def test_spans_are_a_function_of_seed_epoch_and_row():
    one = Corruption(SENTINELS).parted(np.arange(60), 3, 2, 1)
    assert all(map(np.array_equal, one, Corruption(SENTINELS).parted(np.arange(60), 3, 2, 1)))
    for other in ((4, 2, 1), (3, 1, 1), (3, 2, 0)):
        assert not np.array_equal(one[0], Corruption(SENTINELS).parted(np.arange(60), *other)[0])


def test_batches_hold_each_text_between_start_and_end():
    lengths = [3, 30, 1, 17, 9, 9]
    texts = Flat.of([list(range(10 + 100 * i, 10 + 100 * i + n)) for i, n in enumerate(lengths)])
    feed = SpanFeed(Documents(texts), Corruption(SENTINELS), 12, 60, start=5, end=6, pad=5, seed=1)
    stream, special, firsts = feed.stream(0, 0), set(SENTINELS.tolist()), []
    for epoch in (0, 1):
        told = []
        for _ in range(feed.batches(epoch)):
            _, position, batch = next(stream)
            assert batch.source.shape[1] <= 12
            # What the order reckoned with is what was made: the padded area stays within the budget.
            assert len(batch) == 1 or len(batch) * (batch.source.shape[1] + batch.target_out.shape[1]) <= 60
            for row in range(len(batch)):
                read, written = batch.source[row][batch.source_real[row]], batch.target_out[row][batch.target_real[row]]
                assert read[-1] == written[-1] == 6
                begun = batch.target_in[row][batch.target_real[row]]
                assert begun[0] == 5 and torch.equal(begun[1:], written[:-1])
                text = restored(read[:-1].tolist(), written[:-1].tolist(), special)
                document, at = (text[0] - 10) // 100, (text[0] - 10) % 100
                assert feed.where(epoch, position, row) == f"document {document} from token {at} on"
                told += text
        assert sorted(told) == sorted(texts.ids.tolist())
        firsts.append(feed.made(np.arange(len(feed.order)), epoch).source)
    assert firsts[0].shape != firsts[1].shape or not torch.equal(*firsts)
    other = SpanFeed(Documents(texts), Corruption(SENTINELS, mean=2.0), 12, 60, start=5, end=6, pad=5, seed=1)
    assert other.fingerprint != feed.fingerprint
