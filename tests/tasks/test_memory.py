"""The translation memory against cosines computed one by one."""

import math
from collections import Counter

import pytest

from plait.tasks.memory import SEPARATOR, TranslationMemory, grams

SOURCES = ["open the door", "close the door", "open the window", "turn on the light", "open the door", "a", "xyz"]


def vector(text, idf):
    framed = f"\x02{text}\x03"
    counts = Counter(framed[i:j] for i in range(len(framed)) for j in range(i + 3, min(i + 5, len(framed)) + 1))
    return {gram: (1 + math.log(n)) * idf[gram] for gram, n in counts.items() if gram in idf}


def cosines(query, sources):
    bags = [{f"\x02{s}\x03"[i:j] for i in range(len(s) + 2) for j in range(i + 3, min(i + 5, len(s) + 2) + 1)} for s in sources]
    df = Counter(gram for bag in bags for gram in bag)
    idf = {gram: math.log((1 + len(sources)) / (1 + n)) for gram, n in df.items()}
    q = vector(query, idf)
    out = []
    for source in sources:
        s = vector(source, idf)
        norms = math.sqrt(sum(w * w for w in q.values()) * sum(w * w for w in s.values()))
        out.append(sum(q[g] * s.get(g, 0.0) for g in q) / norms if norms else 0.0)
    return out


@pytest.mark.parametrize("query", ["open the doors", "light", "the", "xy", "a", "turn the window", "open the door"])
def test_nearest_is_the_largest_cosine(query):
    memory, wanted = TranslationMemory(SOURCES, SOURCES), cosines(query, SOURCES)
    found = memory.nearest(query, len(SOURCES))
    assert [score for score, _ in found] == pytest.approx(sorted(wanted, reverse=True), abs=1e-12)
    assert all(score == pytest.approx(wanted[i], abs=1e-12) for score, i in found)
    assert memory.nearest(query)[0] == found[0]


def test_equals_come_in_the_order_they_stand_in():
    memory = TranslationMemory(SOURCES, ["first", "", "", "", "second", "", ""])
    assert [i for _, i in memory.nearest("open the door", 2)] == [0, 4]
    assert memory.answer("open the door") == "first"
    assert memory.nearest("open the door")[0][0] == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 99])
def test_what_is_left_out_does_not_count(n):
    found = TranslationMemory(SOURCES, SOURCES).nearest("open the door", n, leave_out="open the door")
    assert len(found) == min(n, 5) and not {i for _, i in found} & {0, 4}
    assert found[0][1] == 1 and found[0][0] == pytest.approx(max(c for c in cosines("open the door", SOURCES) if c < 0.999), abs=1e-12)
    assert TranslationMemory(SOURCES, SOURCES).nearest("open the door", n, leave_out="not there")[0][1] == 0


def test_without_anything_in_common_the_source_is_the_answer():
    memory = TranslationMemory(["abc"], ["answer"])
    assert memory.answer("abc") == "answer"
    assert TranslationMemory([], []).answer("abc") == "abc"
    assert TranslationMemory([], []).nearest("abc", 3) == []


def test_grams_mark_the_borders():
    assert grams("ab", 1, 2) == Counter(["\x02", "a", "b", "\x03", "\x02a", "ab", "b\x03"])
    assert sum(grams("hello").values()) == 5 + 4 + 3


def test_a_source_is_extended_by_what_a_similar_one_became(tmp_path):
    memory = TranslationMemory(SOURCES, [s.upper() for s in SOURCES])
    assert memory.extended("open the doors") == f"open the doors {SEPARATOR} OPEN THE DOOR"
    assert memory.extended("zzz") == "zzz"
    assert "OPEN THE DOOR" not in memory.extended("open the door", leave_out="open the door")
    memory.save(tmp_path / "new" / "memory.json.gz")
    again = TranslationMemory.load(tmp_path / "new" / "memory.json.gz")
    assert (again.sources, again.targets) == (memory.sources, memory.targets)
    assert again.nearest("turn the window", 7) == memory.nearest("turn the window", 7)
