"""The examination before a long run: what is silently wrong with data, model and optimizer is named while it costs seconds.

Data are looked at first, then a copy of the model learns a few rows by heart. The run itself is left as it was: its model, its data
and the generators of random numbers.
"""

from collections.abc import Iterator

import torch

from plait.train import data_symptoms, model_symptoms, picture_symptoms
from plait.train.overfitting import by_heart
from plait.train.patient import Finding, Patient


def examine(patient: Patient, seed: int = 0) -> Iterator[Finding]:
    """Findings as they are made; the same for the same seed, unless the time runs out. A fault of the data that no model can be
    trained with ends it."""
    grave = False
    for check in (*data_symptoms.CHECKS, *picture_symptoms.CHECKS):
        for finding in check(patient):
            grave |= finding.level == "fault" and finding.name in ("answers", "classes")
            yield finding
    if grave or patient.small is None:
        yield Finding("warning", "model", "was not looked at", "mend the data first")
        return
    device = next(patient.net.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield from examined_model(patient)


def examined_model(patient: Patient) -> Iterator[Finding]:
    for check in (model_symptoms.first_loss, model_symptoms.half_range, model_symptoms.frozen):
        yield from check(patient)
    findings, trial = by_heart(patient)
    yield from findings
    for look in (model_symptoms.no_gradient, model_symptoms.input_matters, model_symptoms.padding_leak, model_symptoms.future_leak):
        yield from look(patient, trial)
