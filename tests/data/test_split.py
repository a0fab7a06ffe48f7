import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.data.pairs import Pair
from plait.data.split import answers, check_disjoint, split_by_source
from plait.errors import InputError

sources = st.lists(st.text("abcdeF é", min_size=1, max_size=3).filter(str.strip), min_size=1, max_size=60)


@given(sources, st.one_of(st.floats(0.01, 0.99), st.integers(1, 5)), st.integers(0, 3))
def test_disjoint_complete_and_stable(names, valid, seed):
    pairs = [Pair(name, str(i)) for i, name in enumerate(names)]
    try:
        train, held = split_by_source(pairs, valid, seed)
    except InputError:
        n = len({" ".join(name.casefold().split()) for name in names})
        assert n < 2 or (isinstance(valid, int) and valid >= n)
        return
    assert train and held
    assert sorted(train + held, key=lambda p: int(p.target)) == pairs
    assert check_disjoint(train, held) == 0
    shuffled = random.Random(seed).sample(pairs, len(pairs))
    assert set(split_by_source(shuffled, valid, seed)[1]) == set(held)


def test_added_rows_move_no_other():
    old = [Pair(f"sentence {i}", "x") for i in range(5000)]
    new = [Pair(f"added {i}", "x") for i in range(5000)]
    train, held = split_by_source(old, 0.02)
    more_train, more_held = split_by_source(new + old, 0.02)
    assert set(train) <= set(more_train) and set(held) <= set(more_held)
    assert 60 < len(held) < 140  # 100 expected, standard deviation 10
    assert set(split_by_source(old, 0.02, seed=1)[1]) != set(held)


def test_a_count_is_kept_exactly():
    pairs = [Pair(f"s{i % 50}", str(i)) for i in range(200)]
    train, held = split_by_source(pairs, 7)
    assert len({p.source for p in held}) == 7 and len(held) == 28 and len(train) == 172


@pytest.mark.parametrize("pairs", [[], [Pair("a", "b")], [Pair("a", "b"), Pair("A ", "c")]])
def test_too_few_sources(pairs):
    with pytest.raises(InputError, match="at least 2 distinct sources"):
        split_by_source(pairs)


@pytest.mark.parametrize("valid", [0, -1, 1.0, 1.5, 0.0, float("nan"), 2, 9])
def test_impossible_sizes(valid):
    with pytest.raises(InputError, match="valid="):
        split_by_source([Pair("a", "x"), Pair("b", "y")], valid)


def test_overlap_and_answers():
    assert check_disjoint([Pair("The  door", "x"), Pair("b", "y")], [Pair("the door", "z"), Pair("c", "z")]) == 1
    assert answers([Pair("b", "2"), Pair("a", "1"), Pair("b", "1"), Pair("b", "2")]) == {"b": ["2", "1"], "a": ["1"]}
