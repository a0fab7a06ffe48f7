"""Each silent fault is built into a healthy run on purpose and must be named; the healthy runs must be left in peace."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from plait import models
from plait.data.batches import BatchOrder
from plait.data.corpus import Corpus, Flat
from plait.data.examples import IGNORED, example_set
from plait.data.feed import RowFeed
from plait.data.packing import Documents, PackedFeed
from plait.data.report import Report
from plait.tasks.classifying import Classifying
from plait.tasks.language import NextToken
from plait.tasks.translation import TeacherForcing
from plait.train import data_symptoms, model_symptoms, overfitting
from plait.train.doctor import examine
from plait.train.overfitting import Trial, by_heart
from plait.train.patient import Looked, Patient, Piece, least_loss
from plait.train.recipes import MODERN, SCRATCH

PAD, BOS, EOS, UNK, VOCAB = 0, 1, 2, 3, 40


def documents(n: int, seed: int) -> list[list[int]]:
    """Walks in which three tokens may follow each."""
    draw, follow = np.random.default_rng(seed), np.random.default_rng(7).integers(4, VOCAB, (VOCAB, 3))
    rows = []
    for _ in range(n):
        walk = [int(draw.integers(4, VOCAB))]
        for _ in range(int(draw.integers(10, 40))):
            walk.append(int(follow[walk[-1], draw.integers(0, 3)]))
        rows.append([BOS, *walk, EOS])
    return rows


def next_tokens(rows: list[list[int]]):
    return example_set([row[:-1] for row in rows], [row[1:] for row in rows], PAD)


def made(arch: str, **settings):
    torch.manual_seed(0)
    page = models.PAGES[arch]
    return models.build(arch, {**page.PRESETS["tiny"], **models.vocabulary(arch, VOCAB, VOCAB), **settings})


def language(train=None, valid=None, recipe=MODERN, **how) -> Patient:
    train, valid = train or next_tokens(documents(60, 1)), valid or next_tokens(documents(30, 2))
    return Patient(made("gpt2"), NextToken(), train.feed(512), list(valid.feed(512).all()), recipe, **how)


def packed(**how) -> Patient:
    feeds = [PackedFeed(Documents(Flat.of(documents(n, seed))), 64, 8) for n, seed in ((60, 1), (30, 2))]
    return Patient(made("gpt2"), NextToken(), feeds[0], list(feeds[1].all()), MODERN, **how)


def texts(n: int, seed: int, classes: int = 4) -> tuple[list[list[int]], list[int]]:
    """Texts whose class is the group that most of their tokens come from."""
    draw, ids, labels = np.random.default_rng(seed), [], []
    for _ in range(n):
        label = int(draw.integers(classes))
        ids.append([BOS, *(draw.integers(4 + 9 * label, 13 + 9 * label, int(draw.integers(6, 20)))).tolist(), EOS])
        labels.append(label)
    return ids, labels


def classifier(train=None, valid=None, recipe=SCRATCH, arch: str = "bert", net=None, **how) -> Patient:
    (ids, labels), (others, theirs) = train or texts(120, 1), valid or texts(60, 2)
    feed = example_set(ids, np.array(labels), PAD).feed(256)
    checks = list(example_set(others, np.array(theirs), PAD).feed(256).all())
    net = net or made(arch, head="classify", labels=how.pop("outputs", 4))
    return Patient(net, Classifying(), feed, checks, recipe, **how)


def translator(arch: str = "modern", **how) -> Patient:
    def corpus(n: int, seed: int) -> Corpus:
        draw = np.random.default_rng(seed)
        rows = [draw.integers(4, VOCAB, draw.integers(3, 9)).tolist() for _ in range(n)]
        return Corpus(Flat.of(rows), Flat.of([row[::-1] for row in rows]), PAD, PAD, BOS, EOS, Report("made"))

    train, valid = corpus(100, 1), corpus(30, 2)
    feed = RowFeed(BatchOrder(train.lengths, 256), lambda rows, epoch: train.batch(rows))
    checks = [valid.batch(np.arange(30))]
    return Patient(made(arch), TeacherForcing(0.1), feed, checks, MODERN, **how)


def named(findings, level: str = "fault") -> dict[str, str]:
    return {finding.name: str(finding) for finding in findings if finding.level == level}


@pytest.fixture
def quick(monkeypatch):
    """Fewer steps: enough where the fault does not need a model that has learned its rows."""
    monkeypatch.setattr(overfitting, "STEPS", 16)
    monkeypatch.setattr(overfitting, "FEWER", 12)
    monkeypatch.setattr(overfitting, "RATES", (1e-4, 1e-2))


# --- healthy


@pytest.mark.parametrize("make", [language, packed, classifier, translator])
def test_a_healthy_run_is_left_in_peace_and_as_it_was(make, monkeypatch):
    monkeypatch.setattr(overfitting, "STEPS", 40)
    patient = make(seconds=120.0)
    before, state = copy.deepcopy(patient.net.state_dict()), torch.get_rng_state()
    findings = list(examine(patient))
    assert not [str(finding) for finding in findings if finding.level != "ok"]
    assert {"overfits one batch", "learning rate", "gradients", "input matters", "rows apart", "held out"} <= named(findings, "ok").keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in patient.net.state_dict().items())
    assert all(p.grad is None for p in patient.net.parameters()) and patient.net.training
    assert torch.equal(torch.get_rng_state(), state)


def test_two_examinations_say_the_same(quick):
    assert [str(f) for f in examine(classifier(seconds=120.0))] == [str(f) for f in examine(classifier(seconds=120.0))]


# --- data


def ruined(rows: list[list[int]], answers) -> Patient:
    return language(example_set([row[:-1] for row in rows], [answers(row) for row in rows], PAD))


@pytest.mark.parametrize(
    ("answers", "name", "told"),
    [
        (lambda row: row[:-1], "next token", "itself"),
        (lambda row: [*row[2:], EOS], "next token", "2 places further on"),
        (lambda row: [PAD, *row[:-2]], "next token", "before"),
        (lambda row: [IGNORED] * (len(row) - 1), "answers", "no answer is asked"),
        (lambda row: [id if id != EOS else IGNORED for id in row[1:]], "end of text", "never learn to stop"),
    ],
)
def test_answers_at_the_wrong_place_or_masked_away(answers, name, told):
    patient = ruined(documents(60, 1), answers)
    assert told in named(f for check in data_symptoms.CHECKS for f in check(patient))[name]


def test_the_end_masked_within_joined_texts():
    rows = documents(60, 1)
    joined = [[*a, *b, *c] for a, b, c in zip(rows[::3], rows[1::3], rows[2::3], strict=True)]
    patient = ruined(joined, lambda row: [id if id != EOS else IGNORED for id in row[1:-1]] + [row[-1] + 2])
    assert f"token {EOS}" in named(data_symptoms.the_end(patient))["end of text"]


def test_texts_without_an_end():
    assert (
        "no token ends all"
        in named(data_symptoms.the_end(language(next_tokens([row[:-1] for row in documents(60, 1)]))), "warning")["end of text"]
    )


def test_a_prompt_that_is_learned_and_one_that_is_not():
    rows = [[BOS, 7, 8, 9, 10, 11, 12, *row[1:]] for row in documents(60, 1)]
    assert "7, 8, 9" in named(data_symptoms.prompts(ruined(rows, lambda row: row[1:])), "warning")["prompt in the loss"]
    assert not named(data_symptoms.prompts(ruined(rows, lambda row: [IGNORED] * 6 + row[7:])), "warning")


def test_padding_in_the_loss():
    patient = language()
    stream = patient.feed.stream

    def scored(epoch, position):
        for e, at, batch in stream(epoch, position):
            yield e, at, replace(batch, answers=torch.where(batch.real, batch.answers, PAD))

    patient.feed.stream = scored  # type: ignore[method-assign]
    assert "asked of padding" in named(data_symptoms.asked_answers(patient))["padding in the loss"]


@pytest.mark.parametrize(
    ("change", "level", "told"),
    [
        (lambda label: label % 3 + 1, "fault", "class 0 never occurs"),
        (lambda label: label + 1, "fault", "no output"),
        (lambda label: 2, "fault", "all training answers are class 2"),
        (lambda label: label % 2, "warning", "never occur in training: 2, 3"),
    ],
)
def test_classes_numbered_wrongly(change, level, told):
    ids, labels = texts(120, 1)
    others, theirs = texts(60, 2)
    patient = classifier((ids, list(map(change, labels))), (others, list(map(change, theirs))))
    assert told in named(examine(patient) if "output" in told else data_symptoms.classes(patient), level)["classes"]


def test_classes_missing_on_one_side():
    ids, labels = texts(60, 2)
    some = [at for at, label in enumerate(labels) if label < 3]
    patient = classifier(valid=([ids[at] for at in some], [labels[at] for at in some]))
    assert "no example of classes 3" in named(data_symptoms.classes(patient), "warning")["classes"]


def test_rows_on_both_sides():
    ids, labels = texts(120, 1)
    assert "flatter" in named(data_symptoms.shared_rows(classifier(valid=(ids[:30], labels[:30]))))["held out"]


def test_text_on_both_sides_that_is_cut_at_other_places():
    long = [id for row in documents(60, 1) for id in row[1:-1]]
    sides = [PackedFeed(Documents(Flat.of([part])), 48, 4) for part in (long, long[401:900])]
    patient = Patient(made("gpt2"), NextToken(), sides[0], list(sides[1].all()), MODERN)
    assert "flatter" in named(data_symptoms.shared_rows(patient))["held out"]


def test_the_same_text_with_different_labels():
    ids, labels = texts(60, 1)
    patient = classifier((ids * 2, labels + [(label + 1) % 4 for label in labels]))
    assert "different answer" in named(data_symptoms.conflicts(patient), "warning")["labels"]
    assert "repeat another" in named(data_symptoms.shared_rows(patient), "warning")["duplicates"]


def test_rows_that_were_cut():
    ids, labels = texts(120, 1)
    longer = [[*row[:-1], *([5] * 30)][: 12 + at % 5 if at % 2 else 24] for at, row in enumerate(ids)]
    assert "exactly 24 tokens" in named(data_symptoms.cut_rows(classifier((longer, labels))), "warning")["length"]


def test_unknown_symbols():
    ids, labels = texts(120, 1)
    patient = classifier(([[BOS, *[UNK] * (len(row) - 2), EOS] for row in ids], labels), unknown=UNK)
    assert "unknown symbols" in named(data_symptoms.unknown_symbols(patient))
    assert not named(data_symptoms.unknown_symbols(classifier(unknown=UNK)))


# --- model and optimizer


def test_answers_that_stand_in_the_input(quick):
    """Tied embeddings tell a model that has learned nothing which token it reads."""
    patient = language(example_set([row[:-1] for row in documents(60, 1)], [row[:-1] for row in documents(60, 1)], PAD))
    with torch.no_grad():
        patient.net.get_submodule("decoder.embed.tokens").weight.mul_(20)  # type: ignore[union-attr]
    assert "answers stand in its input" in named(model_symptoms.first_loss(patient))["first loss"]


def test_weights_that_are_too_large():
    patient = classifier()
    with torch.no_grad():
        patient.net.get_submodule("heads.classify.scores").weight.mul_(100)  # type: ignore[operator,union-attr]
    assert "too large" in named(model_symptoms.first_loss(patient))["first loss"]


def test_frozen_by_mistake(quick):
    patient = classifier()
    patient.net.heads.requires_grad_(False)
    assert "heads.classify" in named(model_symptoms.frozen(patient))["frozen"]
    patient = classifier()
    patient.net.get_submodule("encoder.embed").requires_grad_(False)
    assert "encoder.embed" in named(model_symptoms.frozen(patient), "warning")["frozen"]
    patient.net.requires_grad_(False)
    assert {"frozen", "overfits one batch"} <= named(examine(patient)).keys()


class Detached(Classifying):
    def read(self, net, batch):
        stream = super().read(net, batch)
        return stream.having(x=stream.x.detach())


class Deaf(Classifying):
    """Every row has the same vector."""

    def read(self, net, batch):
        stream = super().read(net, batch)
        return stream.having(x=stream.x * 0 + 1)


def test_gradients_that_never_arrive(quick):
    patient = classifier()
    patient.objective = Detached()
    fault = named(examine(patient))["gradients"]
    assert "encoder.blocks.*.ffn.up_proj.weight" in fault and "heads" not in fault


def test_the_same_answer_for_all(quick):
    patient = classifier()
    patient.objective = Deaf()
    assert {"overfits one batch", "input matters"} & named(examine(patient)).keys() >= {"input matters"}


@pytest.mark.parametrize(("rate", "told"), [(1e-7, "too low"), (3.0, "too high")])
def test_a_learning_rate_that_cannot_work(rate, told, monkeypatch):
    monkeypatch.setattr(overfitting, "RATES", (1e-3, 1e-2))
    monkeypatch.setattr(overfitting, "STEPS", 40)
    findings, _ = by_heart(classifier(recipe=replace(SCRATCH, rate=rate), seconds=120.0))
    assert told in named(findings)["learning rate"] and "overfits one batch" in named(findings, "ok")


def test_numbers_that_do_not_fit_into_float16():
    for precision, level in (("float32", "ok"), ("float16", "fault")):
        patient = classifier(precision=precision)
        with torch.no_grad():
            patient.net.get_submodule("encoder.blocks.1.ffn.down_proj").weight.mul_(1e7)  # type: ignore[union-attr]
        assert "overflow" in named(model_symptoms.half_range(patient), level)["half precision"]


def trial_of(patient: Patient) -> Trial:
    return Trial(copy.deepcopy(patient.net).eval(), 0.0, math.inf, [1.0, 0.5])


def test_padding_that_leaks():
    patient = classifier()
    assert not named(model_symptoms.padding_leak(patient, trial_of(patient)))
    patient.objective.read = lambda net, batch: net(encoder=batch.ids)["encoder"]  # type: ignore[method-assign]
    assert not bool(patient.small.real.all())
    assert "leak" in named(model_symptoms.padding_leak(patient, trial_of(patient)))["rows apart"]


def test_a_look_ahead():
    patient = language()
    assert not named(model_symptoms.future_leak(patient, trial_of(patient)))
    for module in patient.net.modules():
        if hasattr(module, "mask"):
            module.mask = None  # type: ignore[assignment]
    assert "causal" in named(model_symptoms.future_leak(patient, trial_of(patient)))["no look ahead"]


# --- what the judgement rests on


def test_the_least_loss_is_what_repeated_inputs_leave_open():
    """Two of three texts that begin alike go on alike: log 3 - 2/3 log 2 nats at that place, 0 elsewhere."""
    pieces = [Piece(np.array([1, a]), np.array([a, 9]), True) for a in (5, 5, 6)]
    assert least_loss(pieces, causal=True) == pytest.approx((math.log(3) - 2 / 3 * math.log(2)) * 3 / 6)
    assert least_loss(pieces, causal=False) == 0.0


def test_packed_rows_are_looked_at_text_by_text():
    rows = documents(60, 1)
    looked = Looked.at((batch for batch in PackedFeed(Documents(Flat.of(rows)), 64, 8).all()), math.inf)
    assert sorted(piece.fed.tolist() for piece in looked.pieces) == sorted(row[:-1] for row in rows)
