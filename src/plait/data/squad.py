"""Questions with the text in which their answers stand: SQuAD's files, and rows of the same."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.data.columns import Wanted
from plait.data.lines import TOLERATED, guarded, read_all
from plait.data.report import Report
from plait.data.tables import layout, stream_rows
from plait.errors import InputError

ALIASES = {"question": ("query",), "context": ("passage", "text"), "answers": ("answer",), "answer_start": ("start",)}
KINDS = {"answers": (dict, list, str), "answer_start": (int, str), "id": (str, int)}


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its context, and its right answers with the character each begins at; one that cannot be answered has none."""

    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    where: str


def read_questions(paths: Sequence[str | Path], columns: Mapping[str, str] | None = None) -> tuple[list[Question], Report]:
    """All questions of the files in their order: SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018), or rows with the columns question,
    context and answers.

    Answers of a row are {"text": [...], "answer_start": [...]}, a list of {"text", "answer_start"}, or a text that stands in the
    context, with its place in the column answer_start where it stands there more than once. InputError names each answer that is not
    where it should be, by file and line or id, unless these are fewer than 1 %, which are dropped and counted.
    """
    if not paths:
        raise InputError("no data file was given")
    report, faults, found = Report("read", unit="questions"), list[str](), list[Question]()
    for path in map(Path, paths):
        n, wrong = 0, list[str]()
        try:
            for where, question, context, answers in _read(path, columns or {}, report):
                n += 1
                placed = answers if isinstance(answers, str) else _placed(context, answers)
                if isinstance(placed, str):
                    wrong.append(f"{where}: {placed}")
                else:
                    found.append(Question(question, context, placed, where))
        except InputError as error:
            faults += error.faults or [error.message]
        if wrong and len(wrong) < TOLERATED * n:
            report.drop("answer not in its context", wrong[0].split(": ")[0], len(wrong))
        else:
            faults += wrong
    if faults:
        raise InputError("the data cannot be used", faults)
    if not found:
        raise InputError(f"no questions in {', '.join(map(str, paths))}", str(report).splitlines()[1:])
    report.kept = len(found)
    return found, report


def _placed(context: str, answers: list[tuple[Any, Any]]) -> tuple[tuple[str, int], ...] | str:
    """Answers with their places, or what is wrong with them."""
    found = []
    for text, start in answers:
        if not isinstance(text, str) or not text.strip():
            return f"the answer {text!r} is no text; a question without an answer has an empty list of them"
        places = [at for at in range(len(context)) if context.startswith(text, at)] if start is None else []
        if start is None and len(places) != 1:
            return f"the answer {text[:40]!r} stands {len(places)} times in its context" + "; give answer_start" * bool(places)
        start = places[0] if start is None else start
        if not isinstance(start, int) or start < 0 or not context.startswith(text, start):
            at = context.find(text)
            there = "it is not in its context" if at < 0 else f"it stands at {at}"
            return f"the answer {text[:40]!r} is not at character {start!r} of its context: {there}"
        found.append((text, start))
    return tuple(found)


def _read(path: Path, columns: Mapping[str, str], report: Report) -> Iterator[tuple[str, str, str, list[tuple[Any, Any]] | str]]:
    """(where, question, context, answers or what is wrong with them) of each question."""
    if layout(path) == "json":
        data = guarded(path, lambda: read_all(path))
        if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and (whole := _object(data)) is not None and "data" in whole:
            yield from _squad(path, whole)
            return
    wanted = Wanted(("question", "context"), ("answers", "answer_start", "id"), ALIASES, columns, KINDS)
    for row in stream_rows([path], wanted, report):
        values = row.values
        where = f"{row.where} (id {values['id']})" if "id" in values else row.where
        try:
            answers = _listed(values.get("answers", []), values.get("answer_start"))
        except (KeyError, TypeError, ValueError):
            answers = f"answers={str(values.get('answers'))[:60]} is neither a text nor texts with answer_start"
        yield where, values["question"], values["context"], answers


def _object(data: bytes) -> dict[str, Any] | None:
    """The object that a file is as a whole, None where it is one a line."""
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _squad(path: Path, whole: dict[str, Any]) -> Iterator[tuple[str, str, str, list[tuple[Any, Any]]]]:
    try:
        for article in whole["data"]:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    answers = [] if asked.get("is_impossible") else _listed(asked.get("answers", []), None)
                    question, context = asked["question"], paragraph["context"]
                    if not isinstance(question, str) or not isinstance(context, str):
                        raise TypeError("question and context must be texts")
                    yield f"{path} (id {asked.get('id')})", question, context, answers
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        said = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: is not of SQuAD's form (data, paragraphs, qas, question, answers): {said}") from None


def _listed(answers: Any, start: Any) -> list[tuple[Any, Any]]:
    """(text, start) of each answer, in whichever form."""
    if isinstance(answers, str):
        return [(answers, None if start in (None, "") else int(start))] if answers else []
    if isinstance(answers, dict):
        return list(zip(answers["text"], answers["answer_start"], strict=True))
    return [(one["text"], one.get("answer_start")) if isinstance(one, dict) else (one, None) for one in answers]
