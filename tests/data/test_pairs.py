import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.data.pairs import Pair, read_pairs
from plait.errors import InputError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def both(pairs):
    return [(pair.source, pair.target) for pair in pairs]


def faults_of(*paths):
    with pytest.raises(InputError) as caught:
        read_pairs(paths)
    return str(caught.value)


WANTED = [("The door is open.", "Die Tür ist offen."), ("a", "ä")]
TABLE = "The door is open.\tDie Tür ist offen.\na\tä\n"


def packed(text: str) -> bytes:
    """Without the time of day, which would give the workers of one test run tests of different names."""
    return gzip.compress(text.encode(), mtime=0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.tsv", TABLE.encode()),
        ("x.txt", TABLE.encode()),
        ("x", TABLE.encode()),
        ("no-end.tsv", TABLE.rstrip().encode()),
        ("crlf.tsv", TABLE.replace("\n", "\r\n").encode()),
        ("bom.tsv", b"\xef\xbb\xbf" + TABLE.encode()),
        ("utf16.tsv", TABLE.encode("utf-16")),
        ("utf16be.tsv", b"\xfe\xff" + TABLE.encode("utf-16-be")),
        ("utf32.tsv", TABLE.encode("utf-32")),
        ("packed.tsv.gz", packed(TABLE)),
        ("header.tsv", b"id\ttarget\tsource\n" + "".join(f"1\t{t}\t{s}\n" for s, t in WANTED).encode()),
        ("keys.jsonl", "".join(json.dumps({"source": s, "target": t, "id": 3}) + "\n" for s, t in WANTED).encode()),
        ("short.json", "".join(json.dumps({"tgt": t, "src": s}, ensure_ascii=False) + "\n" for s, t in WANTED).encode()),
        ("two.jsonl", "\n\n".join(json.dumps({"en": s, "de": t}) for s, t in WANTED).encode()),
        ("hf.jsonl", "\n".join(json.dumps({"id": 1, "translation": {"en": s, "de": t}}) for s, t in WANTED).encode()),
        ("array.json", json.dumps([{"en": s, "de": t} for s, t in WANTED], indent=2).encode()),
        ("packed.jsonl.gz", packed("\n".join(json.dumps({"en": s, "de": t}) for s, t in WANTED))),
    ],
)
def test_every_layout_gives_the_same_pairs(tmp_path, name, content):
    pairs, report = read_pairs([write(tmp_path / name, content)])
    assert both(pairs) == WANTED
    assert report.kept == 2 and not report.dropped
    assert pairs[0].where.startswith(f"{tmp_path / name}:")


@pytest.mark.parametrize("packed", [False, True])
def test_parallel_files(tmp_path, packed):
    pack = gzip.compress if packed else bytes
    ending = ".gz" if packed else ""
    source = write(tmp_path / f"x.en{ending}", pack("a\n\nb\u2028b\n".encode()))
    target = write(tmp_path / f"x.de{ending}", pack("ä\r\n\r\nc".encode()))
    pairs, report = read_pairs([source, target])
    assert pairs == [Pair("a", "ä", f"{source}:1"), Pair("b\u2028b", "c", f"{source}:3")]
    assert report.asdict()["dropped"] == {"blank line": {"count": 1, "examples": [f"{source}:2"]}}


def test_a_parallel_line_that_cannot_be_read_takes_its_partner_along(tmp_path):
    source = write(tmp_path / "x.en", b"".join(b"line %d\n" % i for i in range(300)))
    target = write(tmp_path / "x.de", b"".join(b"\xff\n" if i == 7 else b"zeile %d\n" % i for i in range(300)))
    pairs, report = read_pairs([source, target])
    assert len(pairs) == 299 and all(p.source.split()[1] == p.target.split()[1] for p in pairs)
    assert report.dropped["not UTF-8"].examples == [f"{target}:8"]


def test_unequal_line_counts_say_both(tmp_path):
    text = faults_of(write(tmp_path / "x.en", "a\nb\nc\n"), write(tmp_path / "x.de", "a\nb\n"))
    assert "x.en has 3 lines" in text and "x.de has 2" in text


def test_several_files_are_read_in_order(tmp_path):
    a, b = write(tmp_path / "a.tsv", "1\tx\n"), write(tmp_path / "b.jsonl", '{"en": "2", "de": "y"}')
    assert both(read_pairs([a, b])[0]) == [("1", "x"), ("2", "y")]
    c, d = write(tmp_path / "c.txt", "3\tx\n"), write(tmp_path / "d.txt", "4\ty\n")
    assert both(read_pairs([c, d])[0]) == [("3", "x"), ("4", "y")]  # two tables, not two parallel files
    assert both(read_pairs(str(a))[0]) == [("1", "x")]


def test_a_list_of_targets_is_several_right_answers(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"source": "read", "target": ["R IY D", "R EH D"]}\n')
    assert read_pairs([path])[0] == [Pair("read", "R IY D", f"{path}:1"), Pair("read", "R EH D", f"{path}:1")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.tsv", b"", "is empty"),
        ("empty.jsonl", b"", "is empty"),
        ("blank.tsv", b"\n \n", "2 lines, all of them blank"),
        ("one.tsv", b"a\tb\nonly this\n", "one.tsv:2: one column only: no tab in 'only this'; expected source TAB target"),
        ("three.tsv", b"a\tb\tc\n", "three.tsv:1: more than two columns: 3 of them"),
        ("mac.tsv", b"a\tb\rc\td\r", "bare carriage return"),
        ("latin.tsv", "a\tb\nx\tgr\xfcn\n".encode("latin-1"), "latin.tsv:2: not UTF-8: byte 0xfc at byte 8 of the file"),
        ("nul.tsv", b"a\tb\nx\0\ty\n", "nul.tsv:2: holds a NUL byte: at byte 5"),
        ("utf16-no-mark.tsv", TABLE.encode("utf-16-le"), "UTF-16"),
        ("half.tsv", b"\xff\xfea", "UTF-16"),
        ("bad.jsonl", b'{"source": "a", "target": "b"}\n{"source": "a",\n', "bad.jsonl:2: invalid JSON"),
        ("other.jsonl", b'{"a": "x", "b": "y", "c": "z"}\n', "keys 'a', 'b', 'c'; expected source and target"),
        ("changing.jsonl", b'{"en": "x", "de": "y"}\n{"en": "x", "fr": "y"}\n', "changing.jsonl:2: unusable JSON record: no 'de'"),
        ("number.jsonl", b'{"source": 3, "target": "y"}\n', "'source' is a int"),
        ("deep.jsonl", b"[" * 100_000, "JSON array"),
        ("nested.jsonl", b'{"a":' * 100_000, "invalid JSON"),
        ("half.jsonl", b'{"source": "\\ud800", "target": "y"}\n', "surrogate"),
        ("text.tsv.gz", b"a\tb\n", "does not hold gzip data"),
        ("cut.tsv.gz", packed(TABLE * 1000)[:-30], "breaks off before its end"),
        ("damaged.tsv.gz", packed(TABLE)[:20] + b"\0\0\0\0" + packed(TABLE)[24:], "gzip data"),
    ],
)
def test_each_bad_file_is_one_clear_error(tmp_path, name, content, said):
    assert said in faults_of(write(tmp_path / name, content))


def test_all_faults_of_all_files_come_at_once(tmp_path):
    (tmp_path / "folder").mkdir()
    text = faults_of(tmp_path / "gone.tsv", tmp_path / "folder", write(tmp_path / "one.tsv", "x\ny\n"), tmp_path / "no" / "dir.tsv")
    assert all(said in text for said in ("gone.tsv: no such file", "folder: is a directory", "one.tsv:1", "one.tsv:2", "no directory"))
    with pytest.raises(InputError, match="no data file"):
        read_pairs([])


def test_few_bad_lines_are_dropped_and_counted_many_are_an_error(tmp_path):
    good = b"".join(b"%d\tx\n" % i for i in range(199))
    pairs, report = read_pairs([write(tmp_path / "few.tsv", good + b"\xe4\ty\n" + b"one\n" + good)])
    assert len(pairs) == 398 and report.n_dropped == 2
    assert report.dropped["not UTF-8"].examples == [f"{tmp_path / 'few.tsv'}:200"]
    assert "one column only: 1" in str(report)
    assert "many.tsv:200" in faults_of(write(tmp_path / "many.tsv", good + b"\xe4\ty\n" * 3))


def test_a_file_of_bad_lines_only_stays_readable(tmp_path):
    text = faults_of(write(tmp_path / "x.tsv", "no tab\n" * 5000))
    assert text.count("\n") < 30 and len(text) < 4000


def test_unreadable_file(tmp_path):
    path = write(tmp_path / "x.tsv", TABLE)
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        assert "Permission denied" in faults_of(path)
    else:
        pytest.skip("this user may read every file (root)")


clean_text = st.text(st.characters(exclude_characters="\t\n\r\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(rows=st.lists(st.tuples(clean_text, clean_text), min_size=1, max_size=8))
def test_what_is_written_is_what_is_read(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    if any(name in (tuple(c.strip().lower() for c in rows[0])) for name in ("source", "src")):
        return
    body = "".join(f"{s}\t{t}\n" for s, t in rows)
    assert both(read_pairs([write(folder / "x.tsv", b"\xef\xbb\xbf" + body.encode())])[0]) == rows
    body = "".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in rows)
    assert both(read_pairs([write(folder / "x.jsonl", body)])[0]) == rows
