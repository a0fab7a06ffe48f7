"""Tagging: words with tags, read, counted, split and encoded, and an encoder for them."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from plait.core.model import Model
from plait.data.columns import columns_of
from plait.data.conll import Sentence, read_tagged
from plait.data.examples import IGNORED, ExampleSet, example_set
from plait.data.report import Report
from plait.errors import InputError
from plait.tasks.baselines import tag_baseline
from plait.tasks.labels import OUTSIDE, Tagger
from plait.tasks.scores import Entities
from plait.tasks.tagging import Pieced, Tagging, pieced, rows_of
from plait.text.loaded import LoadedTokenizer
from plait.train.log import Reporter
from plait.verbs.eval import Eval
from plait.verbs.lessons.beginning import begin
from plait.verbs.lessons.lesson import Lesson, Say
from plait.verbs.lessons.rows import Read, counter_of, in_chunks, lesson_of, longest_of, read_rows_of, rounded, rows_to_score, trained_by
from plait.verbs.train import Train

SHOWN = 20  # tags named in the report of their balance
AT_ONCE = 256  # sentences whose tags are in memory together


def key(row: Sentence) -> str:
    return " ".join(row.words)


def stratum(row: Sentence) -> bool:
    """Whether there is anything to be found in the sentence."""
    return any(tag != OUTSIDE for tag in row.tags)


def reader(columns: Sequence[str]) -> Read[Sentence]:
    return lambda paths: read_tagged(paths, columns_of(columns))


def labels_in(rows: Sequence[Sentence]) -> list[str]:
    """All tags, the one for none first."""
    return sorted({tag for row in rows for tag in row.tags}, key=lambda tag: (tag != OUTSIDE, tag[2:], tag))


def known(rows: Sequence[Sentence], labels: Sequence[str]) -> None:
    """InputError with the rows that have other tags."""
    faults = [f"{row.where}: {', '.join(sorted(odd))}" for row in rows if (odd := set(row.tags) - set(labels))]
    if faults:
        raise InputError(f"tags that the training data do not have (they have {', '.join(islice(labels, SHOWN))})", faults)


def balance(rows: Sequence[Sentence]) -> list[str]:
    """How often each tag occurs, and what of that may make learning fail, as lines."""
    counts = Counter(tag for row in rows for tag in row.tags)
    told = [f"{tag} {n:,} ({n / counts.total():.1%})" for tag, n in counts.most_common(SHOWN)]
    found = [f"tags of {counts.total():,} words: {', '.join(told)}" + f" and {len(counts) - SHOWN} more" * (len(counts) > SHOWN)]
    if rare := [tag for tag, n in counts.items() if n < 2]:
        found.append(f"warning: {len(rare):,} tags occur once, which is too little to learn from: {', '.join(rare[:SHOWN])}")
    if len(counts) < 2:
        raise InputError(f"all words have the tag {next(iter(counts))!r}: there is nothing to tell apart")
    return found


def encoded(rows: Sequence[Sentence], labels: Sequence[str], tokenizer: LoadedTokenizer, report: Report) -> list[Pieced]:
    numbers, found = {tag: i for i, tag in enumerate(labels)}, []
    for row in rows:
        found.append(pieced(tokenizer, row.words, row.tags, numbers))
        if None in found[-1].firsts:
            report.note("word of which the tokenizer leaves nothing", row.where)
    return found


def examples(sentences: Sequence[Pieced], tokenizer: LoadedTokenizer, longest: int, report: Report) -> ExampleSet:
    rows = []
    for one in sentences:
        windows = list(rows_of(one, tokenizer, longest))
        if len(windows) > 1:
            report.note(f"sentence longer than {longest} tokens, read in windows")
        rows += [row for row in windows if any(answer != IGNORED for answer in row[1])]
    return example_set([ids for ids, _ in rows], [answers for _, answers in rows], tokenizer.pad_id)


def lesson(verb: Train, saved: dict[str, Any] | None, say: Say) -> Lesson:
    rows = read_rows_of(verb.data, verb.valid, verb.seed, reader(verb.columns), key, stratum, say)
    labels = list(saved["answers"]["id2label"].values()) if saved else labels_in(rows.train)
    for line in balance(rows.train):
        say(line)
    known(rows.valid, labels)
    texts = [key(row) for row in rows.train]
    settings = {"head": "tag", "labels": len(labels)}
    start = begin(verb, saved, ("encoder",), texts, settings, say, usual="modern-encoder", count=counter_of(texts, verb.context))
    longest, report = longest_of(verb, start), Report("encoded", len(texts), unit="sentences")
    train, valid = (encoded(part, labels, start.tokenizer, report) for part in (rows.train, rows.valid))
    sides = (examples(train, start.tokenizer, longest, report), examples(valid, start.tokenizer, longest, report))
    say(str(report))

    def measure(net: Model) -> dict[str, float]:
        tagger, counted = Tagger(net, start.tokenizer, longest, labels), Entities(labels)
        for row, tags in zip(rows.valid, tagged(tagger, valid)):
            counted.add(row.tags, tags)
        return counted.figures()

    objective = Tagging(start.choice.smoothing)
    return lesson_of(start, longest, objective, sides, verb.seed, {"id2label": {str(i): tag for i, tag in enumerate(labels)}}, measure)


def tagged(tagger: Tagger, sentences: Iterable[Pieced]) -> Iterator[list[str]]:
    """A tag for each word of the sentences, by its first piece; of a word without one, the tag for none."""
    for some in in_chunks(sentences, AT_ONCE):
        for one, table in zip(some, tagger.probabilities([one.ids for one in some])):
            best = table.argmax(-1).tolist() if len(table) else []
            yield [tagger.labels[0 if first is None else best[first]] for first in one.firsts]


def score(verb: Eval, ready: Any) -> dict[str, Any]:
    """`plait eval` of a tagger, beside each word's most frequent tag."""
    reporter, train = Reporter(), trained_by(ready)
    rows, taught = rows_to_score(verb, train, reader(train.columns if train else ()), key, stratum, reporter.say)
    known(rows, ready.labels)
    answers = list(tagged(ready.tag, encoded(rows, ready.labels, ready.tokenizer, Report(""))))

    def counted(answers: Iterable[Sequence[str]]) -> Entities:
        counts = Entities(ready.labels)
        for row, tags in zip(rows, answers, strict=True):
            counts.add(row.tags, tags)
        return counts

    counts = counted(answers)
    result: dict[str, Any] = {"task": "tag", "n": len(rows), "metrics": rounded(counts.figures()), "f1_by_kind": rounded(counts.by_kind())}
    if verb.baselines and taught:
        guesses = tag_baseline([(row.words, row.tags) for row in taught], [row.words for row in rows])
        result["baselines"] = {"most_frequent_tag": rounded(counted(guesses).figures())}
    if verb.out:
        from plait.train.checkpoints import write_atomically

        lines = (json.dumps({"tokens": row.words, "answer": tags, "right": row.tags}) for row, tags in zip(rows, answers))
        write_atomically(verb.out, "".join(line + "\n" for line in lines).encode())
    return result
