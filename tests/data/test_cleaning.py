import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.data.cleaning import clean
from plait.data.pairs import Pair
from plait.errors import InputError


def test_every_removal_is_counted_with_its_place():
    rows = [
        ("The door is open.", "Die Tür ist offen."),
        ("  The door is open. ", "Die Tür ist offen.\n"),  # the same once stripped
        ("The door is open.", "Die Türe ist offen."),  # another right answer
        ("", "x"),
        ("x", " \u3000"),
        ("\t", ""),
        ("OK", "In Ordnung"),
        ("short", "far too long " * 30),
        ("y" * 3000, "y" * 3000),
    ]
    kept, report = clean(Pair(s, t, f"f:{i}") for i, (s, t) in enumerate(rows, 1))
    assert [pair.where for pair in kept] == ["f:1", "f:3", "f:7"]
    assert {reason: f.examples for reason, f in report.dropped.items()} == {
        "duplicate": ["f:2"],
        "empty source": ["f:4"],
        "empty target": ["f:5"],
        "both sides empty": ["f:6"],
        "longer than 2000 characters": ["f:9"],
        "lengths differ more than 4 times the usual ratio": ["f:8"],
    }
    assert report.kept == 3 and report.n_dropped == 6 and "f:2" in str(report)


def test_the_ratio_needs_no_scaling_for_phonemes():
    words = ["through", "a", "strengths", "queue", "yacht"]
    kept, _ = clean([Pair(word * 3, " ".join(word * 12)) for word in words])
    assert len(kept) == len(words)


def test_switches():
    pairs = [Pair("a", "b"), Pair("a", "b"), Pair("a", "b" * 5000), Pair("c", "d")]
    assert clean(pairs, max_ratio=None, max_chars=None, drop_duplicates=False)[0] == pairs
    with pytest.raises(InputError, match=r"max_ratio=0\.5"):
        clean(pairs, max_ratio=0.5)


@given(st.lists(st.tuples(st.text(), st.text())))
def test_cleaning_what_is_clean_changes_nothing(rows):
    once, report = clean([Pair(s, t) for s, t in rows], max_ratio=None)
    assert clean(once, max_ratio=None)[0] == once
    assert report.kept + report.n_dropped == len(rows)
    for pair in once:
        assert pair.source == unicodedata.normalize("NFC", pair.source).strip() and "\n" not in pair.source + pair.target
