"""Tables of every format give the same rows, and what cannot be used is named with its file and line."""

import csv
import gzip
import io
import json

import pytest

from plait.data.columns import Wanted, columns_of
from plait.data.report import Report
from plait.data.tables import read_rows, stream_rows
from plait.errors import InputError

ROWS = [
    ("a plain one", "ham"),
    ('says "no", twice', "spam"),
    ("two\nlines", "ham"),
    ("tab\there, comma", "x;y"),
    ("é 中 \u2028 end", "ham"),
]


def as_csv(rows, delimiter=",", header=("text", "label")) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows([header, *rows] if header else rows)
    return file.getvalue().encode()


def as_parquet(rows) -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    table = pa.table({"other": list(range(len(rows))), "label": [label for _, label in rows], "text": [text for text, _ in rows]})
    pq.write_table(table, file)
    return file.getvalue()


FORMATS = {
    "csv": as_csv,
    "jsonl": lambda rows: "".join(json.dumps({"id": 1, "text": t, "label": y}) + "\n" for t, y in rows).encode(),
    "json": lambda rows: json.dumps([{"text": t, "label": y} for t, y in rows], indent=1).encode(),
    "parquet": as_parquet,
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("ending", FORMATS)
def test_the_same_rows_out_of_every_format(ending, zipped, tmp_path):
    path, data = tmp_path / f"rows.{ending}{'.gz' if zipped else ''}", FORMATS[ending](ROWS)
    path.write_bytes(gzip.compress(data) if zipped else data)
    rows, report = read_rows([path], None, ["text", "label"])
    assert [(row.values["text"], row.values["label"]) for row in rows] == ROWS
    assert report.kept == 5 and "5 rows kept" in str(report)


def write(folder, name, text) -> str:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_lines_that_a_row_was_read_from(tmp_path):
    rows, _ = read_rows([write(tmp_path, "a.csv", as_csv(ROWS))], None, ["text", "label"])
    assert [row.where.rpartition(":")[2] for row in rows] == ["2", "3", "4", "6", "7"]  # the third goes over two lines
    rows, report = read_rows([write(tmp_path, "b.txt", "one\n\n \nfour\n")], None, ["text"])
    assert [(row.values["text"], row.where.rpartition(":")[2]) for row in rows] == [("one", "1"), ("four", "4")]
    assert report.dropped["blank line"].count == 2


@pytest.mark.parametrize("mark", ["\ufeff", ""])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "Label,Text\nham,hello\n"),  # by name, capitals aside
        ("a.csv", '"label";"sentence"\r\n"ham";"hello"\r\n'),  # a spreadsheet's, and an alias
        ("a.tsv", "hello\tham\n"),  # no header: by position
        ("a.csv", "hello,ham\n"),
        ("a.txt", "hello\tham\n"),
        ("a.jsonl", '{"sentence": "hello", "label": "ham"}\n'),
    ],
)
def test_how_columns_are_found(mark, name, text, tmp_path):
    rows, _ = read_rows([write(tmp_path, name, mark + text)], None, ["text", "label"], aliases={"text": ["sentence"]})
    assert [row.values for row in rows] == [{"text": "hello", "label": "ham"}]


def test_columns_that_the_user_names(tmp_path):
    path = write(tmp_path, "a.csv", "text,body,y\nno,hello,ham\n")
    rows, _ = read_rows([path], columns_of(["text=BODY", "label=y"]), ["text", "label"])
    assert rows[0].values == {"text": "hello", "label": "ham"}
    path = write(tmp_path, "b.csv", "3,Title,A story\n4,Other,Another\n")
    rows, _ = read_rows([path], columns_of(["text=3", "label=1"]), ["text", "label"])
    assert [row.values for row in rows] == [{"text": "A story", "label": "3"}, {"text": "Another", "label": "4"}]


def test_tabs_take_quotes_as_they_stand(tmp_path):
    rows, _ = read_rows([write(tmp_path, "a.tsv", 'text\tlabel\nsay "a\tb\n')], None, ["text", "label"])
    assert rows[0].values == {"text": 'say "a', "label": "b"}


ODD_KINDS = (
    "a.jsonl:1: wrong type: 'text' is a whole number, 3; expected a string",
    "a.jsonl:2: not an object",
    "a.jsonl:3: not an object",
)
THREE = ("a.jsonl:1: missing column: 'label'", "a.jsonl:2: half of a surrogate pair", "a.jsonl:3: invalid JSON")


@pytest.mark.parametrize(
    ("name", "content", "phrases"),
    [
        ("a.csv", "txt,label\nx,y\n", ("a.csv:1: no column 'text'; there is 'txt', 'label'", "did you mean txt?", "--columns text=COLUMN")),
        ("a.csv", "text,label\na,b\nc\nd,e,f\n", ("a.csv:3: number of columns: 1; the first line has 2", "a.csv:4: number of columns: 3")),
        ("a.csv", 'text,label\n"a"b,c\n', ("a.csv:2: broken quotes",)),
        ("a.csv", 'text,label\n"a,c\nd,e\n', ("a.csv:2: broken quotes",)),
        ("a.csv", "text,text,label\na,b,c\n", ("names 'text' more than once",)),
        ("a.csv", "", ("a.csv: is empty",)),
        ("a.csv", "text,label\n\n", ("a.csv: has no row, only a header",)),
        ("a.csv", b"text,label\nab\0c,d\n", ("a.csv:2: holds a NUL byte", "at byte 13")),
        ("a.csv", b"text,label\n\xff\xfe,d\n", ("a.csv:2: not UTF-8",)),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"}\n', ("a.jsonl:1: missing column: 'label'", "so in all 2 rows")),
        ("a.jsonl", '{"text": 3, "label": "b"}\n["c"]\nnull\n', ODD_KINDS),
        ("a.jsonl", '{"text": "a", "label": null}\n{"text": "\\ud800", "label": "b"}\n{oops\n', THREE),
        ("a.parquet", b"PAR1 and no more", ("a.parquet: is not a whole parquet file",)),
        ("a.jsonl", json.dumps({"text": "x" * 10_000_001, "label": "b"}), ("a.jsonl:1: too long a row: 10,000,002 characters",)),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(name, content, phrases, tmp_path):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    good, bad = write(tmp_path, "good.jsonl", '{"text": "a", "label": "b"}\n'), write(tmp_path, name, content)
    with pytest.raises(InputError) as caught:
        read_rows([good, bad, str(tmp_path / "absent.csv")], None, ["text", "label"])
    for phrase in (*phrases, "absent.csv: no such file"):
        assert phrase in str(caught.value)
    assert "good.jsonl" not in str(caught.value)


def test_few_bad_rows_are_dropped_and_counted(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\n" + "a,b\n" * 300 + "c\n")
    rows, report = read_rows([path], None, ["text", "label"])
    assert len(rows) == 300 and str(report.dropped["number of columns"]) == f"1 ({path}:302)"


def test_a_column_that_the_task_does_not_know():
    with pytest.raises(InputError, match="no body to give a column to; what is read here is text"):
        Wanted(["text"], columns={"body": "x"})
    with pytest.raises(InputError, match="'text' is not of the form NAME=COLUMN"):
        columns_of(["text"])


def test_rows_stream(tmp_path):
    path = write(tmp_path, "a.csv", "text\n" + "a\n" * 10)
    report = Report("read", unit="rows")
    rows = stream_rows([path], Wanted(["text"]), report)
    next(rows)
    assert report.kept == 1
