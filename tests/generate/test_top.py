"""The quick top-k against torch's."""

import pytest
import torch

from plait.generate.top import BLOCK, top


@pytest.mark.parametrize(("v", "k"), [(5, 8), (5, 2), (4 * BLOCK * 2, 2), (8 * BLOCK + 17, 2), (20 * BLOCK + 1, 5), (40 * BLOCK, 8)])
def test_top_is_topk(v, k):
    x = torch.randn(3, v, generator=torch.Generator().manual_seed(v + k))
    x[0, -1], x[1, 0], x[2, v // 2] = 9.0, 9.0, 9.0  # also in the last, shorter block
    x[0, : v // 2] = float("-inf")
    values, at = top(x, k)
    wanted = x.topk(min(k, v), dim=1).values
    assert torch.equal(values, wanted) and torch.equal(x.gather(1, at), wanted)
    assert all(len(set(row.tolist())) == min(k, v) for row in at)


def test_equal_values_are_each_taken_once():
    _, at = top(torch.zeros(2, 30 * BLOCK), 6)
    assert all(len(set(row.tolist())) == 6 for row in at)
