"""Answering: questions with their contexts, read, split and cut in windows, and an encoder that points at answers."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from plait.core.model import Model
from plait.data.columns import columns_of
from plait.data.examples import ExampleSet, example_set
from plait.data.report import Report
from plait.data.squad import Question, read_questions
from plait.errors import InputError
from plait.tasks.answering import Answerer
from plait.tasks.baselines import answer_baseline
from plait.tasks.encoding import Pieces, pair_of, pieces_of, windows
from plait.tasks.scores import Answers
from plait.tasks.spans import Spans
from plait.text.loaded import LoadedTokenizer
from plait.train.log import Reporter
from plait.verbs.eval import Eval
from plait.verbs.lessons.beginning import begin
from plait.verbs.lessons.lesson import Lesson, Say
from plait.verbs.lessons.rows import Read, counter_of, in_chunks, lesson_of, longest_of, read_rows_of, rounded, rows_to_score, trained_by
from plait.verbs.train import Train

AT_ONCE = 32  # questions answered together
MEASURED = 500  # questions answered at each evaluation: searching spans takes longer than their loss


def key(row: Question) -> str:
    """A context and all its questions are on one side."""
    return row.context


def stratum(row: Question) -> bool:
    return bool(row.answers)


def reader(columns: Sequence[str]) -> Read[Question]:
    return lambda paths: read_questions(paths, columns_of(columns))


def encoded(rows: Sequence[Question], tokenizer: LoadedTokenizer, longest: int, report: Report) -> tuple[ExampleSet, list[Question]]:
    """Windows of all questions, and those questions that a model of this length can be asked (see `Answerer`)."""
    ids, firsts, places, kept = list[list[int]](), list[int](), list[tuple[int, int]](), list[Question]()
    pieces_in = lru_cache(maxsize=64)(lambda context: pieces_of(tokenizer, context))  # neighbours often share a context
    around = len(pair_of(tokenizer, [], [])[0])
    for row in rows:
        asked, pieces = tokenizer.encode(row.question), pieces_in(row.context)
        if len(asked) + around > longest // 2:
            report.drop("question longer than half of what the model reads", row.where)
            continue
        if not pieces.ids:
            report.drop("context without words", row.where)
            continue
        span = span_of(pieces, *row.answers[0]) if row.answers else None
        if row.answers and span is None:
            report.drop("answer without words", row.where)
            continue
        if span is not None and row.context[pieces.spans[span[0]][0] : pieces.spans[span[1]][1]] != row.answers[0][0].strip():
            report.note("answer that begins or ends within a token", row.where)
        kept.append(row)
        for w in windows(len(pieces.ids), longest - len(asked) - around):
            window, first = pair_of(tokenizer, asked, pieces.ids[w.start : w.stop])
            ids.append(window)
            firsts.append(first)
            within = span is not None and span[0] in w and span[1] in w
            places.append((first + span[0] - w.start, first + span[1] - w.start) if span is not None and within else (0, 0))
    report.kept += len(kept)
    if not kept:
        raise InputError("no question is left", str(report).splitlines()[1:])
    return example_set(ids, np.array(places, np.int64), tokenizer.pad_id, firsts), kept


def span_of(pieces: Pieces, answer: str, start: int) -> tuple[int, int] | None:
    """The first and the last piece that an answer touches; None where there is none."""
    first = bisect_right(pieces.spans, start, key=lambda span: span[1])
    last = bisect_left(pieces.spans, start + len(answer), key=lambda span: span[0]) - 1
    return (first, last) if first <= last else None


def lesson(verb: Train, saved: dict[str, Any] | None, say: Say) -> Lesson:
    rows = read_rows_of(verb.data, verb.valid, verb.seed, reader(verb.columns), key, stratum, say)
    without = sum(not row.answers for row in rows.train)
    say(f"{len({row.context for row in rows.train}):,} contexts; {without:,} questions without an answer")
    if without == len(rows.train):
        raise InputError("no question has an answer to learn from")
    texts = [*dict.fromkeys(row.context for row in rows.train), *(row.question for row in rows.train)]
    settings = {"head": "answer", "labels": 2}
    start = begin(verb, saved, ("encoder",), texts, settings, say, usual="modern-encoder", count=counter_of(texts))
    longest, report = longest_of(verb, start), Report("encoded", unit="questions")
    (train, _), (valid, asked) = (encoded(part, start.tokenizer, longest, report) for part in (rows.train, rows.valid))
    say(f"{report}; {len(train):,} windows to learn from, of up to {longest} tokens")
    nothing = any(not row.answers for row in rows.train)
    answers = {"null_threshold": 0.0} if nothing else {}

    def measure(net: Model) -> dict[str, float]:
        counted, some = Answers(), asked[:MEASURED]
        for row, answer in zip(some, answered(Answerer(net, start.tokenizer, longest), some, answers.get("null_threshold"))):
            counted.add(answer, [text for text, _ in row.answers])
        return counted.figures()

    return lesson_of(start, longest, Spans(), (train, valid), verb.seed, answers, measure)


def answered(answerer: Answerer, rows: Iterable[Question], null_threshold: float | None) -> Iterator[str]:
    for some in in_chunks(rows, AT_ONCE):
        for best in answerer([row.question for row in some], [row.context for row in some], null_threshold=null_threshold):
            yield best[0].text


def score(verb: Eval, ready: Any) -> dict[str, Any]:
    """`plait eval` of an answerer, beside the sentence that shares most words with the question."""
    reporter, train = Reporter(), trained_by(ready)
    rows, _ = rows_to_score(verb, train, reader(train.columns if train else ()), key, stratum, reporter.say)
    nothing = any(not row.answers for row in rows)
    answers = list(answered(ready.answer, rows, ready.config.get("null_threshold", 0.0 if nothing else None)))

    def figures(answers: Iterable[str]) -> dict[str, float]:
        counted = Answers()
        for row, answer in zip(rows, answers, strict=True):
            counted.add(answer, [text for text, _ in row.answers])
        return rounded(counted.figures())

    result: dict[str, Any] = {"task": "answer", "n": len(rows), "metrics": figures(answers)}
    if verb.baselines:
        result["baselines"] = {"sentence_overlap": figures(answer_baseline(row.question, row.context) for row in rows)}
    if verb.out:
        from plait.train.checkpoints import write_atomically

        told = ({"question": row.question, "answer": a, "right": [text for text, _ in row.answers]} for row, a in zip(rows, answers))
        write_atomically(verb.out, "".join(json.dumps(one) + "\n" for one in told).encode())
    return result
