"""Classification: texts or pairs with labels, read, counted, split and encoded, and an encoder for them."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from plait.core.model import Model
from plait.data.columns import columns_of
from plait.data.examples import ExampleSet, example_set
from plait.data.report import Report
from plait.data.tables import read_rows
from plait.errors import InputError
from plait.tasks.baselines import classify_baselines
from plait.tasks.classifying import Classifying
from plait.tasks.labels import row_of
from plait.tasks.scores import Confusion, Several, Values
from plait.text.loaded import LoadedTokenizer
from plait.train.log import Reporter
from plait.verbs.eval import Eval
from plait.verbs.lessons.beginning import begin
from plait.verbs.lessons.lesson import Lesson, Say
from plait.verbs.lessons.rows import Read, counter_of, in_chunks, lesson_of, longest_of, read_rows_of, rounded, rows_to_score, trained_by
from plait.verbs.train import Train

ALIASES = {
    "text": ("sentence", "text1", "sentence1", "premise", "review", "content", "message"),
    "second": ("text2", "sentence2", "hypothesis", "text_pair"),
    "label": ("labels", "class", "category", "target", "score"),
}
PROBLEMS = {"single": "single_label_classification", "multi": "multi_label_classification", "regression": "regression"}
BETWEEN = "|;"  # what parts several labels of one text
AT_ONCE = 1000  # texts encoded together
SHOWN = 20  # labels named in the report of their balance
LEAST_SHARE = 0.05  # of all rows but those of the most frequent label: with fewer, guessing that one is hard to beat


@dataclass(frozen=True, slots=True)
class Text:
    """A text or a pair, its label as the file has it, and where it was read."""

    text: str | tuple[str, str]
    label: Any
    where: str

    @property
    def key(self) -> str:
        return self.text if isinstance(self.text, str) else "\n".join(self.text)

    @property
    def stratum(self) -> str:
        return str(self.label)


@dataclass(frozen=True)
class Labels:
    """What a text can be, by number; `problem` as of `tasks.labels.Classifier`."""

    problem: str
    names: tuple[str, ...]

    @classmethod
    def seen(cls, rows: Sequence[Text]) -> "Labels":
        """Of texts to learn from. InputError where there is nothing to tell apart."""
        problem = problem_of([row.label for row in rows])
        if problem == "regression":
            return cls(problem, ("value",))
        names = {name for row in rows for name in names_in(row.label, problem)}
        if len(names) < 2 and problem == "single":
            raise InputError(f"all {len(rows):,} rows have the label {next(iter(names))!r}: there is nothing to tell apart")
        if problem == "single" and len(names) > max(SHOWN, len(rows) // 2):
            raise InputError(
                f"{len(rows):,} rows have {len(names):,} different labels, such as {rows[0].label!r}: is that the column of labels?"
                " say which is which by --columns text=COLUMN label=COLUMN"
            )
        return cls(problem, tuple(sorted(names, key=lambda name: (float(name), name) if numeric(name) else (np.inf, name))))

    @classmethod
    def of(cls, answers: Mapping[str, Any]) -> "Labels":
        """Of a run's config.json."""
        problem = next(name for name, said in PROBLEMS.items() if said == answers["problem_type"])
        return cls(problem, tuple(answers["id2label"].values()))

    def said(self) -> dict[str, Any]:
        return {"id2label": {str(i): name for i, name in enumerate(self.names)}, "problem_type": PROBLEMS[self.problem], "cut": True}

    def answers(self, rows: Sequence[Text]) -> np.ndarray:
        """As `Classifying` wants them. InputError names each row with a label that is not known."""
        if self.problem == "regression":
            if odd := [f"{row.where}: {str(row.label)[:40]!r} is not a number" for row in rows if not numeric(row.label)]:
                raise InputError("the labels are numbers, these are not", odd)
            return np.array([float(row.label) for row in rows], np.float32)
        ids, faults = {name: i for i, name in enumerate(self.names)}, []
        found = np.zeros((len(rows), len(ids)), np.float32)
        for i, row in enumerate(rows):
            names = names_in(row.label, self.problem)
            faults += [f"{row.where}: {name!r}" for name in names if name not in ids]
            found[i, [ids[name] for name in names if name in ids]] = 1
        if faults:
            known = ", ".join(islice(self.names, SHOWN)) + ", ..." * (len(self.names) > SHOWN)
            raise InputError(f"labels that the training data do not have (they have {known})", faults)
        return found if self.problem == "multi" else found.argmax(1)


def numeric(value: Any) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False


def problem_of(labels: Sequence[Any]) -> str:
    """Lists, or names parted by | or ;, are several labels a text; numbers of which some have a fraction are values; else one label."""
    texts = [label for label in labels if isinstance(label, str)]
    if any(isinstance(label, list) for label in labels) or any(mark in text for text in texts for mark in BETWEEN):
        return "multi"
    fraction = any(isinstance(label, float) or (isinstance(label, str) and "." in label) for label in labels)
    return "regression" if fraction and all(map(numeric, labels)) else "single"


def names_in(label: Any, problem: str) -> list[str]:
    """The labels that a value of the column names."""
    if problem == "single":
        return [str(label).strip()]
    if isinstance(label, str):
        for mark in BETWEEN[1:]:
            label = label.replace(mark, BETWEEN[0])
        label = label.split(BETWEEN[0])
    parts = label if isinstance(label, list) else [label]
    return [name for part in parts if (name := str(part).strip())]


def reader(columns: Sequence[str]) -> Read[Text]:
    kinds: dict[str, tuple[type, ...]] = {"label": (str, int, float, bool, list)}

    def read(paths: Sequence[str]) -> tuple[list[Text], Report]:
        rows, report = read_rows(paths, columns_of(columns), ("text", "label"), ("second",), ALIASES, kinds)

        def text(values: Mapping[str, Any]) -> str | tuple[str, str]:
            return (values["text"], values["second"]) if "second" in values else values["text"]

        return [Text(text(row.values), row.values["label"], row.where) for row in rows], report

    return read


def balance(rows: Sequence[Text], labels: Labels) -> list[str]:
    """How often each label occurs, and what of that may make learning fail, as lines."""
    if labels.problem == "regression":
        values = [float(row.label) for row in rows]
        return [f"values: {min(values):g} to {max(values):g}, mean {np.mean(values):g}, standard deviation {np.std(values):g}"]
    counts = Counter(name for row in rows for name in names_in(row.label, labels.problem))
    told = [f"{name} {n:,} ({n / len(rows):.1%})" for name, n in counts.most_common(SHOWN)]
    more = len(counts) - len(told)
    found = [f"labels: {', '.join(told)}" + (f" and {more} more, each at most {counts.most_common()[SHOWN][1]:,}" if more > 0 else "")]
    if rare := [name for name, n in counts.items() if n < 2]:
        found.append(f"warning: {len(rare):,} labels have a single row, which is too little to learn from: {', '.join(rare[:SHOWN])}")
    name, most = counts.most_common(1)[0]
    if labels.problem == "single" and most > (1 - LEAST_SHARE) * len(rows):
        found.append(f"warning: {most / len(rows):.1%} of the rows are {name!r}: look at macro_f1, not at accuracy")
    return found


def encoded(rows: Sequence[Text], labels: Labels, tokenizer: LoadedTokenizer, longest: int, report: Report) -> ExampleSet:
    ids, firsts, pairs = list[list[int]](), list[int](), False
    for some in in_chunks(rows, AT_ONCE):
        texts = [(row.text,) if isinstance(row.text, str) else row.text for row in some]
        parts = iter(tokenizer.encode_batch([part for text in texts for part in text]))
        for row, text in zip(some, texts):
            one, first, cut = row_of(tokenizer, list(islice(parts, len(text))), longest)
            if cut:
                report.note(f"text cut to {longest} tokens", row.where)
            ids.append(one)
            firsts.append(first)
            pairs |= len(text) > 1
    return example_set(ids, labels.answers(rows), tokenizer.pad_id, firsts if pairs else None)


def lesson(verb: Train, saved: dict[str, Any] | None, say: Say) -> Lesson:
    from plait.verbs.lessons import pictures

    if kind := pictures.kind_in(verb.data):
        return pictures.lesson(verb, saved, say, kind)
    rows = read_rows_of(verb.data, verb.valid, verb.seed, reader(verb.columns), lambda row: row.key, lambda row: row.stratum, say)
    labels = Labels.of(saved["answers"]) if saved else Labels.seen(rows.train)
    for line in balance(rows.train, labels):
        say(line)
    texts = [row.key for row in rows.train]
    settings = {"head": "classify", "labels": len(labels.names)}
    start = begin(verb, saved, ("encoder",), texts, settings, say, usual="modern-encoder", count=counter_of(texts, verb.context))
    longest, report = longest_of(verb, start), Report("encoded", len(texts), unit="rows")
    sides = [encoded(part, labels, start.tokenizer, longest, report) for part in (rows.train, rows.valid)]
    say(str(report))
    objective = Classifying(labels.problem, start.choice.smoothing)
    pairs = {} if isinstance(rows.train[0].text, str) else {"pairs": True}
    made = lesson_of(start, longest, objective, sides, verb.seed, labels.said() | pairs)
    made.measure = measure(objective, made.valid, labels)
    return made


def measure(objective: Classifying, batches: Sequence[Any], labels: Labels) -> Callable[[Model], dict[str, float]]:
    def figures(net: Model) -> dict[str, float]:
        counted = counter(labels)
        for batch in batches:
            scores = objective.scores(net, objective.on_device(net, batch)).float().cpu()
            counted.add(plain(batch.answers.numpy(), labels), given(scores, labels))
        return counted.figures()

    return figures


def counter(labels: Labels) -> Any:
    return Values() if labels.problem == "regression" else (Confusion if labels.problem == "single" else Several)(len(labels.names))


def plain(answers: np.ndarray, labels: Labels) -> np.ndarray:
    """As what is counted wants them: several labels a text as [B, labels] of bool."""
    return answers > 0.5 if labels.problem == "multi" else answers


def given(scores: torch.Tensor, labels: Labels) -> np.ndarray:
    """What scores [B, labels] say, in the same form."""
    if labels.problem == "single":
        return scores.argmax(-1).numpy()
    return (scores > 0).numpy() if labels.problem == "multi" else scores[:, 0].numpy()


def score(verb: Eval, ready: Any) -> dict[str, Any]:
    """`plait eval` of a classifier, beside the most frequent label and a linear model of word weights."""
    if ready.net.takes(ready.net.towers[0]) != "ids":
        from plait.verbs.lessons import pictures

        return pictures.score(verb, ready)
    reporter, train = Reporter(), trained_by(ready)
    labels = Labels(ready.problem, tuple(ready.labels))
    read = reader(train.columns if train else ())
    rows, known = rows_to_score(verb, train, read, lambda row: row.key, lambda row: row.stratum, reporter.say)
    right = plain(labels.answers(rows), labels)
    found = ready([row.text for row in rows])
    if labels.problem == "regression":
        answers = np.array([one.scores[labels.names[0]] for one in found])
    else:
        as_rows = [Text("", list(one.labels) if labels.problem == "multi" else one.label, "") for one in found]
        answers = plain(labels.answers(as_rows), labels)

    def figures(answers: np.ndarray) -> dict[str, float]:
        counted = counter(labels)
        counted.add(right, answers)
        return rounded(counted.figures())

    result: dict[str, Any] = {"task": "classify", "n": len(rows), "metrics": figures(answers)}
    if verb.baselines and known:
        texts, taught = [row.key for row in known], plain(labels.answers(known), labels)
        guesses = classify_baselines(labels.problem, texts, taught, [row.key for row in rows], reporter.say)
        result["baselines"] = {name: figures(guess) for name, guess in guesses.items()}
    if verb.out:
        from plait.train.checkpoints import write_atomically

        lines = (json.dumps({"text": row.text, "answer": list(one.labels), "right": row.label}) for row, one in zip(rows, found))
        write_atomically(verb.out, "".join(line + "\n" for line in lines).encode())
    return result
