"""Hidden tokens: how many, how, and always the same ones at the same (seed, epoch, row)."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from plait.data.corpus import Flat
from plait.data.examples import IGNORED
from plait.data.masking import MaskedRows, Masking, word_starts
from plait.data.packing import Documents
from plait.errors import InputError
from plait.models import PAGES, build
from plait.tasks.masked import MaskedTokens

MASK, USUAL = 4, np.arange(5, 1005)


def test_shares_are_those_of_the_paper():
    """15 % are hidden; of these 80 % show the mask, 10 % another token, 10 % themselves (Devlin et al. 2019, section 3.1)."""
    ids, masking = np.full(200, 7), Masking(MASK, USUAL)
    n = masks = kept = 0
    others = []
    for row in range(500):
        shown, places = masking.hidden(ids, 1, 0, row)
        assert len(places) == 30 and (np.delete(shown, places) == 7).all()
        n, masks, kept = n + len(places), masks + (shown[places] == MASK).sum(), kept + (shown[places] == 7).sum()
        others += [id for id in shown[places] if id not in (MASK, 7)]
    # Five standard deviations of a binomial count of n = 15,000.
    assert abs(masks / n - 0.8) < 5 * (0.8 * 0.2 / n) ** 0.5
    assert abs(kept / n - 0.1) < 5 * (0.1 * 0.9 / n) ** 0.5
    assert min(others) >= 5 and max(others) <= 1004 and abs(np.mean(others) - 504.5) < 5 * 289 / len(others) ** 0.5
    where = np.zeros(200)
    for row in range(500):
        where[masking.hidden(ids, 1, 0, row)[1]] += 1
    assert where.min() > 75 - 5 * 8 and where.max() < 75 + 5 * 8  # each place is as likely


def test_hidden_is_a_function_of_seed_epoch_and_row():
    ids, masking = np.arange(100, 160), Masking(MASK, USUAL)
    one, again = masking.hidden(ids, 3, 2, 1), masking.hidden(ids, 3, 2, 1)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    for other in ((4, 2, 1), (3, 1, 1), (3, 2, 0)):
        assert not np.array_equal(one[1], masking.hidden(ids, *other)[1])
    assert all(len(masking.hidden(ids[:n], 0, 0, 0)[1]) == max(1, round(0.15 * n)) for n in range(1, 60))


def test_words_are_hidden_whole():
    vocabulary = {"[MASK]": 4, "un": 5, "##lik": 6, "##ely": 7, "cat": 8, "##": 9}
    begins = word_starts(vocabulary)
    assert begins[[5, 8]].all() and not begins[[6, 7]].any()
    ids = np.array([5, 6, 7, 8, 8, 5, 6, 7, 5, 6, 7, 8] * 5)
    hits = 0
    for row in range(50):
        _, places = Masking(MASK, USUAL, begins).hidden(ids, 0, 0, row)
        found = set(places.tolist())
        for at in np.flatnonzero(ids == 5):
            assert len({at, at + 1, at + 2} & found) in (0, 3)
        assert 9 <= len(found) <= 11
        hits += len(found)
    with pytest.raises(InputError, match="does not mark where words begin"):
        word_starts({"a": 0, "b": 1})


def rows_of(lengths, context, seed=0) -> MaskedRows:
    flat = Flat.of([list(range(10 + 100 * i, 10 + 100 * i + n)) for i, n in enumerate(lengths)])
    return MaskedRows(Documents(flat), Masking(MASK, USUAL), context, ([1], [2]), 0, seed)


def test_every_token_is_read_once_an_epoch_between_its_ends():
    feed = rows_of([3, 30, 1, 17], 10).feed(40)
    stream, seen, masks = feed.stream(0, 0), [], {}
    for epoch in (0, 1):
        told = []
        for _ in range(feed.batches(epoch)):
            _, position, batch = next(stream)
            assert batch.ids.shape[1] <= 10
            for number, (ids, real, answers) in enumerate(zip(batch.ids, batch.real, batch.answers, strict=True)):
                row = torch.where(answers != IGNORED, answers, ids)[real].tolist()
                assert row[0] == 1 and row[-1] == 2 and bool((ids[~real] == 0).all()) and bool((answers[~real] == IGNORED).all())
                told += row[1:-1]
                masks[epoch, row[1]] = answers.tolist()
                document, at = (row[1] - 10) // 100, (row[1] - 10) % 100
                assert feed.where(epoch, position, number) == f"document {document} from token {at} on"
        seen.append(sorted(told))
    assert seen[0] == seen[1] == sorted(np.concatenate([list(range(10 + 100 * i, 10 + 100 * i + n)) for i, n in enumerate([3, 30, 1, 17])]))
    assert any(masks[0, first] != masks[1, first] for _, first in masks)  # other tokens are hidden in another epoch


@pytest.mark.parametrize("arch", ["modern-encoder", "bert"])
@torch.no_grad()
def test_loss_is_taken_at_hidden_places_through_the_whole_head(arch):
    torch.manual_seed(0)
    net = build(arch, {**PAGES[arch].PRESETS["tiny"], "vocab_size": 1005, "dropout": 0.0}).double().eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.dim() == 1), std=0.2)
    for batch in rows_of([3, 30, 1, 17], 12).feed(60).all():
        loss = MaskedTokens().loss(net, batch)
        total, right = torch.zeros((), dtype=torch.float64), 0
        for ids, real, answers in zip(batch.ids, batch.real, batch.answers, strict=True):  # each row alone, unpadded
            scores = net.heads["mlm"](net.run("encoder", ids[None, real]).x)[0]
            asked = answers[real] != IGNORED
            total += torch.nn.functional.cross_entropy(scores[asked], answers[real][asked], reduction="sum")
            right += int((scores[asked].argmax(-1) == answers[real][asked]).sum())
        assert_close(loss.plain, total, rtol=1e-10, atol=1e-10)
        assert loss.count == int((batch.answers != IGNORED).sum())
        assert MaskedTokens().accuracy(net, [batch]) == right / loss.count
