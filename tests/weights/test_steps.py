"""Each step's inverse, and what each of them does."""

import pytest
import torch

from plait.core.kernels import reference
from plait.core.rotary import Rotary
from plait.core.stream import Call, Stream
from plait.weights.rules import halves, permute, regroup, row, split, transpose, unstack


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("step", "theirs", "ours"),
    [
        (transpose, (3, 5), [(5, 3)]),
        (transpose, (5,), [(5,)]),
        (split(), (9, 4), [(2, 4), (3, 4), (4, 4)]),
        (split(1), (4, 9), [(4, 2), (4, 7)]),
        (unstack(), (3, 4, 5), [(4, 5)] * 3),
        (unstack(2), (4, 5, 2), [(4, 5)] * 2),
        (permute(2, 0, 1), (3, 4, 5), [(5, 3, 4)]),
        (halves(6), (12, 5), [(12, 5)]),
        (halves(4), (8,), [(8,)]),
        (regroup((-1, 3, 2), (1, 0, 2)), (12, 5), [(12, 5)]),
        (regroup((2, -1, 2, 1), (2, 3, 0, 1)), (12,), [(12,)]),
        (row, (1, 7), [(7,)]),
    ],
)
def test_a_step_undone_is_nothing_done(step, theirs, ours):
    whole = torch.arange(torch.Size(theirs).numel()).view(theirs)
    parts = step.apply([whole], ours)
    assert [tuple(t.shape) for t in parts] == ours
    (back,) = step.undo(parts)
    assert torch.equal(back, whole)
    assert sorted(torch.cat([t.flatten() for t in parts]).tolist()) == whole.flatten().tolist()


def test_what_the_steps_do():
    (turned,) = halves(4).apply([torch.arange(8)], [(8,)])
    assert turned.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]  # pairs (0, 1), (2, 3) become (0, 2), (1, 3) places
    (sorted_out,) = regroup((-1, 3, 2), (1, 0, 2)).apply([torch.arange(12)], [(12,)])
    assert sorted_out.tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]  # two heads of q, k, v: all of q, all of k, all of v
    (moved,) = permute(1, 2, 0).apply([numbers(2, 3, 4)], [(3, 4, 2)])
    assert moved[2, 3, 1] == numbers(2, 3, 4)[1, 2, 3]
    with pytest.raises(ValueError, match="no order of the axes"):
        permute(0, 2)
    with pytest.raises(ValueError, match="no order of the axes"):
        regroup((2, -1), (0, 0))
    with pytest.raises(ValueError, match="d_head=5 is odd"):
        halves(5)


def test_halves_give_the_same_attention_as_pairs():
    """Scores of queries and keys turned in pairs equal those of re-ordered weights turned in halves."""
    x, q, k = numbers(1, 5, 6).double(), numbers(8, 6, seed=1).double(), numbers(8, 6, seed=2).double()
    call = Call(Stream(x), reference)

    def scores(q, k, rotary):
        a, b = (rotary((x @ w.T).unflatten(-1, (2, 4)).transpose(1, 2), call.stream, call) for w in (q, k))
        return a @ b.transpose(-1, -2)

    (q2,), (k2,) = (halves(4).apply([w], [(8, 6)]) for w in (q, k))
    torch.testing.assert_close(scores(q2, k2, Rotary()), scores(q, k, Rotary(interleaved=True)))
