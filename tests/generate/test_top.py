"""The quick top-k against torch's."""

import pytest
import torch

from plait.generate.top import BLOCK, CHUNK, log_normaliser, top


@pytest.mark.parametrize(("v", "k"), [(5, 8), (5, 2), (4 * BLOCK * 2, 2), (8 * BLOCK + 17, 2), (20 * BLOCK + 1, 5), (40 * BLOCK, 8)])
@pytest.mark.parametrize("columns", [False, True])
def test_top_is_topk(v, k, columns):
    x = torch.randn(3, v, generator=torch.Generator().manual_seed(v + k))
    x = x.t().contiguous().t() if columns else x
    x[0, -1], x[1, 0], x[2, v // 2] = 9.0, 9.0, 9.0  # also in the last, shorter block
    x[0, : v // 2] = float("-inf")
    values, at = top(x, k)
    wanted = x.topk(min(k, v), dim=1).values
    assert torch.equal(values, wanted) and torch.equal(x.gather(1, at), wanted)
    assert all(len(set(row.tolist())) == min(k, v) for row in at)


def test_equal_values_are_each_taken_once():
    _, at = top(torch.zeros(2, 30 * BLOCK), 6)
    assert all(len(set(row.tolist())) == 6 for row in at)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("n", [1, 3, 40])
@pytest.mark.parametrize("v", [7, CHUNK // 3 + 5])
def test_log_normaliser_is_logsumexp(n, v, columns):
    """Against float64, with large scores, forbidden ones, and a row where everything is forbidden."""
    x = 50 * torch.randn(n, v, generator=torch.Generator().manual_seed(v + n))
    x[:, 0], x[-1] = float("-inf"), float("-inf") if n > 1 else x[-1]
    x = x.t().contiguous().t() if columns else x
    before = x.clone()
    found = log_normaliser(x)
    assert found.shape == (n, 1) and torch.equal(x, before)
    torch.testing.assert_close(found.double(), x.double().logsumexp(1, keepdim=True), rtol=1e-6, atol=1e-6)
