"""Each mask against a Python double loop over the slots, with starts, padding and segments, alone and joined."""

import itertools

import pytest
import torch

from plait.core.masks import Blocks, Both, Causal, Prefix, Window, causal, real, same_document
from plait.core.stream import Places

TABLE = ((True, False, True, False), (True, True, False, False), (False, True, True, True), (True, False, False, True))
K_REAL = torch.tensor([[True, True, False, True, True, False, True], [False, False, True, True, True, True, True]])
K_SEGMENT = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [4, 4, 5, 5, 5, 5, 6]])

RULES = {  # mask -> the rule in words of slots (q, k), of which keys are real, of documents (dq, dk)
    "causal": (causal, lambda q, k, real, dq, dk: k <= q),
    "window": (Window(2), lambda q, k, real, dq, dk: q - 2 <= k <= q),
    "window ahead": (Window(1, 3), lambda q, k, real, dq, dk: q - 1 <= k <= q + 3),
    "prefix": (Prefix(3), lambda q, k, real, dq, dk: k < 3),
    "real": (real, lambda q, k, real, dq, dk: real),
    "documents": (same_document, lambda q, k, real, dq, dk: dq == dk),
    "blocks": (Blocks(3, TABLE), lambda q, k, real, dq, dk: TABLE[q // 3][k // 3]),
}


def looped(rule, q, k, rows=2):
    """[rows, 1, L, S] by a loop over every pair."""
    real = [[True] * k.length] * rows if k.real is None else k.real.tolist()
    apart = q.segment is not None and k.segment is not None
    dq = q.segment.tolist() if apart else [[0] * q.length] * rows
    dk = k.segment.tolist() if apart else [[0] * k.length] * rows

    def one(b, i, j):
        return rule(q.start + i, k.start + j, real[b][j], dq[b][i], dk[b][j])

    return torch.tensor([[[[one(b, i, j) for j in range(k.length)] for i in range(q.length)]] for b in range(rows)])


def full(mask, q, k):
    return mask.allows(q, k).expand(2, 1, q.length, k.length)


PLACES = {
    "together": (Places(7), Places(7)),
    "new tokens behind a cache": (Places(3, 4), Places(7)),
    "one new token": (Places(1, 6), Places(7)),
    "a later window of keys": (Places(4, 6), Places(5, 3)),
    "padding and documents": (Places(4, 3, None, K_SEGMENT[:, 3:]), Places(7, 0, K_REAL, K_SEGMENT)),
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("name", RULES)
def test_a_mask_is_its_rule(name, where):
    mask, rule = RULES[name]
    q, k = PLACES[where]
    assert torch.equal(full(mask, q, k), looped(rule, q, k))


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(RULES, 2)))
def test_masks_join(a, b, where):
    (mask_a, rule_a), (mask_b, rule_b) = RULES[a], RULES[b]
    q, k = PLACES[where]
    assert torch.equal(full(mask_a & mask_b, q, k), looped(lambda *w: rule_a(*w) and rule_b(*w), q, k))
    assert torch.equal(full(mask_a | mask_b, q, k), looped(lambda *w: rule_a(*w) or rule_b(*w), q, k))


def test_joins_nest():
    q, k = PLACES["padding and documents"]
    mask = (causal & Window(3) | Prefix(1)) & real & same_document
    rule = lambda i, j, seen, dq, dk: ((j <= i and j >= i - 3) or j < 1) and seen and dq == dk  # noqa: E731
    assert torch.equal(full(mask, q, k), looped(rule, q, k))


def test_masks_are_values():
    assert Window(3) == Window(3) != Window(3, 1)
    assert causal & Window(3) == Both(Causal(), Window(3))
    assert len({Window(3), Window(3), Prefix(3), causal & Prefix(2), causal & Prefix(2)}) == 3


def test_what_is_left_among_the_places_hides_the_same():
    """`within` takes away a window that hides nothing, and only then; in every case what is left allows what the whole allowed."""
    left = {True: 0, False: 0}
    for q_start, q_length, k_start, k_length in [(0, 6, 0, 6), (5, 1, 0, 6), (3, 4, 2, 6), (0, 4, 0, 9), (9, 2, 3, 8)]:
        q, k = Places(q_length, q_start), Places(k_length, k_start)
        for before in range(10):
            for mask in (
                Window(before),
                Window(before, 2),
                Window(before, None),
                causal & Window(before, None),
                Window(before, 9) & causal,
            ):
                found = mask.within(q, k)
                whole = mask.allows(q, k).expand(q.length, k.length)
                assert torch.equal(whole, torch.ones_like(whole) if found is None else found.allows(q, k).expand_as(whole))
                left[found is mask] += 1
    assert min(left.values()) > 20
    assert (causal & Window(5, None)).within(Places(6), Places(6)) is causal and (causal & Window(4, None)).within(
        Places(6), Places(6)
    ) is not causal
