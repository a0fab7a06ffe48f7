import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.data.pairs import Pair
from plait.data.split import answers, check_disjoint, held_out, split_by_source
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


# ---- strata ----


def test_of_each_stratum_a_share_is_held_out_and_a_key_is_on_one_side():
    keys = [f"text {i % 150}" for i in range(300)]
    strata = ["rare" if i % 150 < 10 else "often" for i in range(300)]
    held = held_out(keys, strata, 0.1, seed=3)
    sides: dict[str, set[bool]] = {}
    for key, out in zip(keys, held, strict=True):
        sides.setdefault(key, set()).add(out)
    assert all(len(side) == 1 for side in sides.values())
    out = {key for key, side in sides.items() if True in side}
    assert len(out & {f"text {i}" for i in range(10)}) == 1 and len(out) == 15
    more = held_out([*keys, "new text"], [*strata, "often"], 0.1, seed=3)
    assert sum(a != b for a, b in zip(held, more, strict=False)) <= 2
    assert held_out(keys, strata, 0.1, seed=4) != held
    assert len({key for key, o in zip(keys, held_out(keys, strata, 0.1, 3, most=5), strict=True) if o}) in (5, 6)


def test_what_has_a_single_key_is_learned_from():
    assert held_out(["a", "A ", "b", "c", "d"], ["x", "x", "y", "y", "y"], 0.1, 0).count(True) == 1
    held = held_out(["a", "A ", "b"], ["x", "x", "y"], 0.1)
    assert sorted(set(zip(["a", "a", "b"], held, strict=True)))[0][1] != sorted(set(zip(["a", "a", "b"], held, strict=True)))[1][1]


def test_a_key_with_two_strata_counts_to_that_of_its_first_row():
    for seed in range(20):
        assert not held_out(["a", "a", "c", "b"], ["x", "y", "x", "y"], 0.1, seed)[3]
