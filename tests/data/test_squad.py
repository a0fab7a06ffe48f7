"""Questions with contexts: SQuAD's files and rows, and every answer that is not where it should be."""

import json

import pytest

from plait.data.squad import read_questions
from plait.errors import InputError

CONTEXT = "The cat saw the dog. The dog ran."


def squad(*asked):
    return json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": list(asked)}]}]})


@pytest.fixture
def write(tmp_path):
    def put(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return put


def test_both_versions_of_squad(write):
    asked = [
        {"id": "1", "question": "Who saw?", "answers": [{"text": "The cat", "answer_start": 0}, {"text": "cat", "answer_start": 4}]},
        {"id": "2", "question": "Who flew?", "is_impossible": True, "answers": [], "plausible_answers": [{"text": "x", "answer_start": 0}]},
    ]
    path = write("a.json", squad(*asked))
    found, report = read_questions([path])
    assert [(one.question, one.context, one.answers) for one in found] == [
        ("Who saw?", CONTEXT, (("The cat", 0), ("cat", 4))),
        ("Who flew?", CONTEXT, ()),
    ]
    assert found[0].where == f"{path} (id 1)" and str(report) == "read: 2 questions kept"


def test_rows_in_all_their_forms(write):
    rows = [
        {"question": "q", "context": CONTEXT, "answers": {"text": ["dog"], "answer_start": [16]}},
        {"question": "q", "context": CONTEXT, "answers": [{"text": "dog", "answer_start": 25}]},
        {"question": "q", "context": CONTEXT, "answer": "cat"},
        {"question": "q", "context": CONTEXT, "answers": "dog", "answer_start": 25},
        {"question": "q", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
        {"question": "q", "context": CONTEXT},
    ]
    wanted = [(("dog", 16),), (("dog", 25),), (("cat", 4),), (("dog", 25),), (), ()]
    assert [one.answers for one in read_questions([write("a.jsonl", "\n".join(map(json.dumps, rows)))])[0]] == wanted
    path = write("a.csv", f'question,context,answer\nq,"{CONTEXT}",cat\n')
    assert read_questions([path])[0][0].answers == (("cat", 4),)


def test_answers_that_are_not_there_are_named_all_at_once(write):
    asked = [
        {"id": "a", "question": "q", "answers": [{"text": "cat", "answer_start": 5}]},
        {"id": "b", "question": "q", "answers": [{"text": "bird", "answer_start": 5}]},
        {"id": "c", "question": "q", "answers": [{"text": " ", "answer_start": 3}]},
        {"id": "d", "question": "q", "answers": [{"text": "cat", "answer_start": "4"}]},
    ]
    lines = [
        {"question": "q", "context": CONTEXT, "answers": "dog", "id": 7},
        {"question": "q", "context": CONTEXT, "answers": {"text": 3}},
    ]
    with pytest.raises(InputError) as caught:
        read_questions(
            [write("a.json", squad(*asked)), write("b.jsonl", "\n".join(map(json.dumps, lines))), write("c.json", '{"data": [3]}')]
        )
    text = "\n".join(caught.value.faults)
    for phrase in (
        "a.json (id a): the answer 'cat' is not at character 5 of its context: it stands at 4",
        "a.json (id b): the answer 'bird' is not at character 5 of its context: it is not in its context",
        "a.json (id c): the answer ' ' is no text",
        "a.json (id d): the answer 'cat' is not at character '4'",
        "b.jsonl:1 (id 7): the answer 'dog' stands 2 times in its context; give answer_start",
        "b.jsonl:2: answers=",
        "c.json: is not of SQuAD's form",
    ):
        assert phrase in text, phrase


def test_a_few_misplaced_answers_are_dropped_and_counted(write):
    good = [{"id": str(i), "question": "q", "answers": [{"text": "cat", "answer_start": 4}]} for i in range(200)]
    found, report = read_questions(
        [write("a.json", squad({"id": "x", "question": "q", "answers": [{"text": "cat", "answer_start": 9}]}, *good))]
    )
    assert len(found) == 200 and report.dropped["answer not in its context"].count == 1
    assert "(id x)" in report.dropped["answer not in its context"].examples[0]
