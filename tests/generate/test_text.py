"""Stop strings over token borders: against a search of all that is there, for texts and stop strings that hypothesis makes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from plait.generate.text import texts_of

words = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(tokens=st.lists(st.text("ab", min_size=1, max_size=3), max_size=8), stop=words)
def test_a_stream_ends_before_the_first_stop_string(tokens, stop):
    asked = []

    def ids():
        for i in range(len(tokens)):
            asked.append(i)
            yield i

    pieces = list(texts_of(ids(), lambda seen: "".join(tokens[i] for i in seen), stop))
    met = next((n for n in range(len(tokens) + 1) if any(word in "".join(tokens[:n]) for word in stop)), len(tokens))
    there = "".join(tokens[:met])
    assert "".join(pieces) == there[: min((at for word in stop if (at := there.find(word)) >= 0), default=len(there))] and all(pieces)
    assert len(asked) == met  # nothing more is computed


def test_only_what_may_become_a_stop_string_is_held_back():
    said = []
    for piece in texts_of(range(6), lambda seen: "Hello U!User"[: 2 * len(seen)], ["User:", "!?"]):
        said.append(piece)
    assert said == ["He", "ll", "o ", "U", "!", "User"]  # at the end no colon came
