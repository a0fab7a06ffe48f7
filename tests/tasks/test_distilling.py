"""Distillation against its formula in float64, taken from all scores at once; and what it is at its ends."""

import copy

import pytest
import torch
from torch.testing import assert_close

from plait import models
from plait.data.batches import collate
from plait.data.examples import IGNORED, Examples
from plait.tasks import distilling
from plait.tasks.classifying import Classifying
from plait.tasks.distilling import Distilled
from plait.tasks.language import NextToken
from plait.tasks.masked import MaskedTokens
from plait.tasks.tagging import Tagging
from plait.tasks.translation import TeacherForcing

VOCAB, ROWS, WEIGHT, T = 19, 6, 0.3, 3.0
SMALL = dict(vocab_size=VOCAB, d_model=16, n_heads=2, n_layers=1)
BERT = dict(**SMALL, d_ff=24, max_length=12, dropout=0.0)
PAIRS = dict(source_vocab=VOCAB, target_vocab=VOCAB, d_model=16, n_heads=2, n_layers=1, d_ff=24, dropout=0.0)
CASES = {
    "language": (NextToken(0.1), "gpt2", dict(**SMALL, max_length=12, dropout=0.0)),
    "masked": (MaskedTokens(), "bert", dict(**BERT, head="mlm")),
    "classify": (Classifying("single", 0.1), "bert", dict(**BERT, head="classify", labels=3)),
    "tag": (Tagging(), "bert", dict(**BERT, head="tag", labels=4)),
    "translation": (TeacherForcing(0.1), "vaswani", PAIRS),
}


def net_of(arch: str, config: dict, seed: int):
    torch.manual_seed(seed)
    net = models.build(arch, config).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    return net.train()


def batch_of(name: str):
    draw = torch.Generator().manual_seed(5)
    ids, real = torch.randint(3, VOCAB, (ROWS, 9), generator=draw), torch.arange(9) < torch.tensor([[9], [4], [7], [1], [9], [3]])
    if name == "translation":
        lists = [row[mask].tolist() for row, mask in zip(ids, real, strict=True)]
        return collate([(row, row[::-1]) for row in lists])
    if name == "classify":
        return Examples(ids, real, torch.randint(3, (ROWS,), generator=draw), per_entry=False)
    classes = 4 if name == "tag" else VOCAB
    answers = torch.where(real & (torch.rand(ids.shape, generator=draw) < 0.6), torch.randint(classes, ids.shape, generator=draw), IGNORED)
    return Examples(ids, real, answers)


def scores_of(name: str, net, batch):
    """(scores [N, C], answers [N]) by the model's own forward pass and its head on everything, each row alone."""
    found, answers = [], []
    for row in range(ROWS):
        if name == "translation":
            source, target = batch.source[row][batch.source_real[row]], batch.target_real[row]
            hidden = net(encoder=source[None], decoder=batch.target_in[row][target][None])["decoder"].x[0]
            wanted, right = slice(None), batch.target_out[row][target]
        else:
            length = int(batch.real[row].sum())
            hidden = net(batch.ids[row : row + 1, :length])[net.towers[0]].x[0]
            right = batch.answers[row : row + 1] if name == "classify" else batch.answers[row, :length]
            wanted = slice(0, 1) if name == "classify" else right != IGNORED
            right = right[right != IGNORED]
        found.append(next(iter(net.heads.values()))(hidden[wanted]))
        answers.append(right)
    return torch.cat(found), torch.cat(answers)


@pytest.fixture(params=CASES)
def case(request):
    objective, arch, config = CASES[request.param]
    student, teacher = (net_of(arch, {**config, "n_layers": n}, n) for n in (1, 2))
    return request.param, objective, student, teacher, batch_of(request.param)


def gradients(net) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def test_the_gradient_is_that_of_the_formula(case, monkeypatch):
    name, objective, student, teacher, batch = case
    monkeypatch.setattr(distilling, "CHUNK", 2 * VOCAB)  # scores of a few vectors at a time
    peer = copy.deepcopy(student)
    passes = []
    student.get_submodule(student.towers[-1]).register_forward_hook(lambda *_: passes.append(1))
    loss = Distilled(objective, teacher, WEIGHT, T).loss(student, batch)
    loss.total.backward()
    assert len(passes) == 1  # the student reads a batch once

    scores, answers = scores_of(name, peer, batch)
    with torch.no_grad():
        p = (scores_of(name, teacher, batch)[0] / T).softmax(-1)
    smoothing = objective.smoothing
    own = torch.nn.functional.cross_entropy(scores, answers, label_smoothing=smoothing, reduction="sum")
    q = (scores / T).softmax(-1)
    apart = (p * (p.log() - q.log())).sum()
    total = (1 - WEIGHT) * own + WEIGHT * T**2 * apart
    total.backward()
    assert float(apart.detach()) > 0.1
    assert_close(loss.total, total, rtol=1e-10, atol=1e-10)
    assert_close(loss.plain, torch.nn.functional.cross_entropy(scores, answers, reduction="sum"), rtol=1e-10, atol=1e-10)
    assert loss.count == len(answers)
    wanted = gradients(peer)
    assert gradients(student).keys() == wanted.keys()
    for key, grad in gradients(student).items():
        assert_close(grad, wanted[key], rtol=1e-9, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")
    assert not gradients(teacher)


def test_without_weight_it_is_the_objective(case):
    _, objective, student, teacher, batch = case
    objective.loss(student, batch).total.backward()
    plain = {key: grad.clone() for key, grad in gradients(student).items()}
    student.zero_grad()
    loss = Distilled(objective, teacher, 0.0, T).loss(student, batch)
    loss.total.backward()
    for key, grad in gradients(student).items():
        assert torch.equal(grad, plain[key]), key
    student.eval()
    asked, told = objective.loss(student, batch), Distilled(objective, teacher, 1.0, T).loss(student, batch)
    assert torch.equal(asked.total, told.total) and torch.equal(asked.plain, told.plain)  # what is validated is the plain loss


def test_a_model_is_not_apart_from_itself_and_parts_add_up(case):
    _, objective, student, teacher, batch = case
    same = Distilled(objective, copy.deepcopy(student), 1.0, T).loss(student, batch)
    same.total.backward()
    assert abs(float(same.total.detach())) < 1e-9
    assert all(float(grad.abs().max()) < 1e-9 for grad in gradients(student).values())
    distilled = Distilled(objective, teacher, WEIGHT, T)
    whole, parts = distilled.loss(student, batch), [distilled.loss(student, part) for part in distilled.parts(batch, 4)]
    assert len(parts) == 4 and sum(part.count for part in parts) == whole.count
    assert_close(torch.stack([part.total for part in parts]).sum(), whole.total, rtol=1e-10, atol=1e-10)
