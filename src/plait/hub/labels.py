"""Encoders that are ready: labels of texts and of pairs, entities, and answers out of a text."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from plait.errors import InputError, choices
from plait.hub.ready import Parts, Ready, Row, texts_given
from plait.tasks.answering import Answerer
from plait.tasks.labels import Classifier, Tagger


class ClassifyModel(Ready):
    """Labels of a text, or of a pair of texts, given as a tuple: `Classified`."""

    task = "classify"

    def __init__(self, parts: Parts):
        super().__init__(parts)
        self.labels = labels_of(self.config)
        self.problem = problem_of(self.config, len(self.labels))

    @cached_property
    def classify(self) -> Classifier:
        return Classifier(self.net, self.tokenizer, self.max_length, self.labels, self.problem, bool(self.config.get("cut")))

    def __call__(self, text: str | tuple[str, str] | Sequence[str | tuple[str, str]]) -> Any:
        return self.classify([text])[0] if isinstance(text, str | tuple) else self.classify(text)  # type: ignore[list-item]

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, labels], read from the first entry."""
        return super().scores(hidden[:, 0])

    def rows(self, texts: Sequence[str], first: int = 1) -> list[Row]:
        """(line, JSON) of each text, for the command line: its labels on one line, each with its score. A model that learned from pairs
        takes two texts with a tab between."""
        given = pairs_in(texts, first) if self.config.get("pairs") else texts
        return [
            ("\t".join(f"{label}\t{one.scores[label]:.4f}" for label in one.labels), {"labels": list(one.labels), "scores": one.scores})
            for one in self.classify(given, first)
        ]


class TagModel(Ready):
    """The entities in a text: a list of `Entity`."""

    task = "tag"

    def __init__(self, parts: Parts):
        super().__init__(parts)
        self.labels = labels_of(self.config)

    @cached_property
    def tag(self) -> Tagger:
        return Tagger(self.net, self.tokenizer, self.max_length, self.labels)

    def __call__(self, text: str | Sequence[str]) -> Any:
        texts, one = texts_given(text)
        return self.tag(texts)[0] if one else self.tag(texts)

    def rows(self, texts: Sequence[str], first: int = 1) -> list[Row]:
        """(line, JSON) of each text, for the command line: a line an entity."""
        return [
            ("\n".join(f"{on_a_line(e.text)}\t{e.label}\t{e.score:.4f}" for e in found), {"entities": [vars(e) for e in found]})
            for found in self.tag(texts)
        ]


class AnswerModel(Ready):
    """Where in a context the answer to a question stands: `Answer`, or with `n_best` a list of them, best first.

    Several questions go with one context or with as many. `null_threshold` and `max_answer_tokens` are those of `Answerer`; a run that
    learned from questions without an answer has a threshold of its own.
    """

    task = "answer"

    @cached_property
    def answer(self) -> Answerer:
        return Answerer(self.net, self.tokenizer, self.max_length)

    def __call__(self, question: str | Sequence[str], context: str | Sequence[str], n_best: int | None = None, **options: Any) -> Any:
        questions = [question] if isinstance(question, str) else question
        contexts = [context] * len(questions) if isinstance(context, str) else context
        if len(contexts) != len(questions):
            raise InputError(f"{len(questions)} questions with {len(contexts)} contexts: give one context, or one for each question")
        options = {"null_threshold": self.config.get("null_threshold"), **options}
        found = self.answer(questions, contexts, n_best or 1, **options)
        found = found if n_best else [answers[0] for answers in found]
        return found[0] if isinstance(question, str) else found

    def rows(
        self,
        texts: Sequence[str],
        first: int = 1,
        context: str | None = None,
        n_best: int = 1,
        null_threshold: float | None = None,
        max_answer_tokens: int = 30,
    ) -> list[Row]:
        """(line, JSON) of each question on `context`, for the command line; without one, each text is an object that holds both."""
        asked = asked_in(texts, first) if context is None else [(text, context) for text in texts]
        questions, contexts = [q for q, _ in asked], [c for _, c in asked]
        null_threshold = self.config.get("null_threshold") if null_threshold is None else null_threshold
        return [
            ("\n".join(f"{on_a_line(a.text)}\t{a.score:.4f}" for a in found), {"answers": [vars(a) for a in found]})
            for found in self.answer(questions, contexts, n_best, null_threshold, max_answer_tokens, first)
        ]


def on_a_line(text: str) -> str:
    return " ".join(text.split())


def labels_of(config: Mapping[str, Any]) -> list[str]:
    """The names of the head's scores, in their order, as id2label of a config.json gives them."""
    given = config.get("id2label")
    if not given:
        return [f"LABEL_{i}" for i in range(config.get("num_labels", 2))]
    names = {str(id): name for id, name in given.items()} if isinstance(given, Mapping) else {}
    labels = [names.get(str(i)) for i in range(len(given))]
    if not all(isinstance(name, str) for name in labels) or len(set(labels)) < len(labels):
        raise InputError(f"config.json: id2label={given!r} must give each id from 0 to {len(given) - 1} a name of its own")
    return labels  # type: ignore[return-value]


def problem_of(config: Mapping[str, Any], labels: int) -> str:
    """What a classifier's scores are, as problem_type says; without one, a single score is a value and several are one choice."""
    known = {"single_label_classification": "single", "multi_label_classification": "multi", "regression": "regression"}
    said = config.get("problem_type")
    if said is None:
        return "regression" if labels == 1 else "single"
    if said not in known:
        raise InputError(f"config.json: problem_type={said!r} is not known here: there is {choices(known)}")
    return known[said]


def pairs_in(lines: Sequence[str], first: int) -> list[tuple[str, str]]:
    """The two texts of each line, with a tab between."""
    parts = [line.split("\t") for line in lines]
    wanted = "this model learned from pairs: give two texts with a tab between"
    if odd := [f"input {n}: {line[:60]!r}; {wanted}" for n, (line, two) in enumerate(zip(lines, parts), first) if len(two) != 2]:
        raise InputError("some inputs are no pairs", odd)
    return [(one, two) for one, two in parts]


def asked_in(lines: Sequence[str], first: int) -> list[tuple[str, str]]:
    """(question, context) of lines that are JSON objects of these two."""
    found, faults = list[tuple[str, str]](), list[str]()
    for number, line in enumerate(lines, first):
        try:
            read = json.loads(line)
            found.append((read["question"], read["context"]))
            if not all(isinstance(text, str) for text in found[-1]):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            faults.append(f"input {number}: {line[:60]!r}")
    if faults:
        raise InputError('without --context each input is a line {"question": "...", "context": "..."}', faults)
    return found
