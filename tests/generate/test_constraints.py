"""Rules over scores against the reference implementation's processors, on the same scores and ids."""

import pytest
import torch

from plait.generate.constraints import AtLeast, NoRepeat, NoSequence, NotAt, Repetition

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
VOCAB = 7


def drawn(seed: int):
    draw = torch.Generator().manual_seed(seed)
    length = int(torch.randint(1, 9, (1,), generator=draw))
    return torch.randn(5, VOCAB, generator=draw), torch.randint(0, VOCAB, (5, length), generator=draw)


CASES = {
    "at least": (AtLeast(5, [2, 4]), lambda t: t.MinLengthLogitsProcessor(5, [2, 4])),
    "no run of two": (NoRepeat(2), lambda t: t.NoRepeatNGramLogitsProcessor(2)),
    "no run of one": (NoRepeat(1), lambda t: t.NoRepeatNGramLogitsProcessor(1)),
    "no sequence": (NoSequence([[3, 1], [2, 0, 1], [5]]), lambda t: t.NoBadWordsLogitsProcessor([[3, 1], [2, 0, 1], [5]])),
    "repetition": (Repetition(1.7), lambda t: t.RepetitionPenaltyLogitsProcessor(1.7)),
    "not first": (NotAt(3, [1, 6]), lambda t: t.SuppressTokensAtBeginLogitsProcessor([1, 6], 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_as_the_references_processor(case):
    ours, theirs = CASES[case][0], CASES[case][1](transformers.generation)
    changed = 0
    for seed in range(60):
        scores, ids = drawn(seed)
        wanted = theirs(ids, scores.clone())
        found = scores.clone()
        ours(found, ids)
        assert torch.equal(found, wanted), (seed, ids)
        changed += not torch.equal(found, scores)
    assert changed > 0  # else nothing was compared
