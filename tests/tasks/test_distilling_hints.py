"""Layers that learn from layers: against the papers' formulas in float64, every block and attention computed by itself, row by row."""

import copy
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from plait import models
from plait.core import kernels
from plait.data.batches import collate
from plait.data.examples import IGNORED, Examples
from plait.errors import InputError
from plait.tasks.classifying import Classifying
from plait.tasks.distilling import Distilled
from plait.tasks.hints import Hints
from plait.tasks.language import NextToken
from plait.tasks.tagging import Tagging
from plait.tasks.translation import TeacherForcing

VOCAB, WEIGHT, T = 19, 0.3, 3.0
SMALL = dict(vocab_size=VOCAB, d_ff=24, dropout=0.0)
PAIRS = dict(source_vocab=VOCAB, target_vocab=VOCAB, d_ff=24, dropout=0.0)
CASES = {
    "language": (NextToken(), "gpt2", dict(vocab_size=VOCAB, max_length=12, dropout=0.0)),
    "classify": (Classifying(), "bert", dict(**SMALL, max_length=12, head="classify", labels=3)),
    "tag": (Tagging(), "albert", dict(**SMALL, d_embed=6, max_length=12, head="tag", labels=4)),
    "translation": (TeacherForcing(0.1), "vaswani", PAIRS),
}


def net_of(arch: str, config: dict, seed: int, **size):
    torch.manual_seed(seed)
    net = models.build(arch, {**config, **size}).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    return net.train()


def batch_of(name: str):
    draw = torch.Generator().manual_seed(5)
    ids, real = torch.randint(3, VOCAB, (4, 9), generator=draw), torch.arange(9) < torch.tensor([[9], [4], [7], [1]])
    if name == "translation":
        lists = [row[mask].tolist() for row, mask in zip(ids, real, strict=True)]
        return collate([(row, row[::-1][:5]) for row in lists])
    if name == "classify":
        return Examples(ids, real, torch.randint(3, (4,), generator=draw), per_entry=False)
    classes = 4 if name == "tag" else VOCAB
    answers = torch.where(real & (torch.rand(ids.shape, generator=draw) < 0.6), torch.randint(classes, ids.shape, generator=draw), IGNORED)
    return Examples(ids, real, answers)


@pytest.fixture(params=CASES)
def case(request):
    """(name, objective, a student of 2 layers, 16 wide, 2 heads; a teacher of 3, 24 wide, 4 heads; a batch)"""
    objective, arch, config = CASES[request.param]
    student = net_of(arch, config, 1, d_model=16, n_heads=2, n_layers=2)
    teacher = net_of(arch, config, 2, d_model=24, n_heads=4, n_layers=3)
    return request.param, objective, student, teacher, batch_of(request.param)


class Inside(kernels.Reference):
    """Keeps the weights of every attention, by the softmax of the formula."""

    def __init__(self):
        self.weights = []

    def attend(self, q, k, v, mask, bias=None, scale=1.0, dropout=0.0):
        scores = q @ k.mT * scale
        if mask.tensor is not None:
            scores = scores.masked_fill(~mask.tensor, float("-inf"))
        self.weights.append(scores.softmax(-1))
        return self.weights[-1] @ v


def inside(net, **ids):
    """(tower -> what leaves each of its blocks [L, D], attention weights [H, L, S] in running order) of one row without padding."""
    left, hooks, kernel, before = {tower: [] for tower in net.towers}, [], Inside(), net.kernel
    for tower in net.towers:
        for block in net.get_submodule(tower).blocks:
            hooks.append(block.register_forward_hook(lambda _, __, x, tower=tower: left[tower].append(x[0])))
    net.kernel = kernel
    net(**{tower: row[None] for tower, row in ids.items()})
    net.kernel = before
    for hook in hooks:
        hook.remove()
    return left, [weights[0] for weights in kernel.weights]


def rows_of(name, batch):
    """(the ids of each tower, how many predictions are asked for) of each row."""
    for row in range(4):
        if name == "translation":
            target = batch.target_real[row]
            yield dict(encoder=batch.source[row][batch.source_real[row]], decoder=batch.target_in[row][target]), int(target.sum())
        else:
            count = 1 if name == "classify" else int((batch.answers[row] != IGNORED).sum())
            yield {"decoder" if name == "language" else "encoder": batch.ids[row][batch.real[row]]}, count


STEPS = {"language": [1], "classify": [1], "tag": [1], "translation": [1, 2]}  # attentions of a layer, by tower


def expected(name, student, teacher, batch, kinds):
    """The formula. Layers 1, 2 of two learn from 2, 3 of three."""
    total = torch.zeros((), dtype=torch.float64)
    for ids, count in rows_of(name, batch):
        (ours, our_maps), (theirs, their_maps) = inside(student, **ids), inside(teacher, **ids)
        hidden, maps, at = [], [], [0, 0]
        for tower, steps in zip(ours, STEPS[name], strict=True):
            for depth, source in ((0, 1), (1, 2)):
                h, t = ours[tower][depth] @ student.fitted[tower].weight.T, theirs[tower][source].detach()
                hidden.append((((h - t) ** 2).sum(-1) / (t**2).sum(-1)).mean())
                for step in range(steps):
                    q = our_maps[at[0] + depth * steps + step].mean(0)
                    p = their_maps[at[1] + source * steps + step].mean(0).detach()
                    seen = p > 0
                    maps.append((p[seen] * (p[seen].log() - q[seen].log())).sum() / len(p))
            at = [at[0] + 2 * steps, at[1] + 3 * steps]
        found = {"hidden": torch.stack(hidden).mean(), "attention": torch.stack(maps).mean()}
        total = total + count * sum(found[kind] for kind in kinds)
    return total


def gradients(net) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def learning(case, *kinds):
    """(what distils, from the inside alone)"""
    _, objective, student, teacher, _ = case
    torch.manual_seed(3)
    Hints(student, teacher).fit(student)
    student.double()
    return Distilled(objective, teacher, 1.0, None, Hints(student, teacher, kinds))


@pytest.mark.parametrize("kinds", [("hidden",), ("attention",), ("hidden", "attention")])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_is_that_of_the_formula(case, kinds, recompute):
    name, _, student, teacher, batch = case
    distilled = learning(case, *kinds)
    peer = copy.deepcopy(student)
    for tower in student.towers:
        student.get_submodule(tower).blocks.recompute = recompute
    loss = distilled.loss(student, batch)
    loss.total.backward()
    total = expected(name, peer, teacher, batch, kinds)
    total.backward()
    assert float(total.detach()) > 0.1
    assert_close(loss.total, total, rtol=1e-10, atol=1e-10)
    found, wanted = gradients(student), gradients(peer)
    moved = {key for key, grad in found.items() if bool(grad.abs().max() > 0)}
    assert moved and moved <= wanted.keys() <= found.keys()
    for key, grad in found.items():
        assert_close(grad, wanted.get(key, torch.zeros_like(grad)), rtol=1e-8, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")
    assert not gradients(teacher)


def test_parts_add_up_and_all_terms_are_joined(case):
    _, objective, student, teacher, batch = case
    inner = learning(case, "hidden", "attention")
    scores = Distilled(objective, teacher, WEIGHT, T)
    both = Distilled(objective, teacher, WEIGHT, T, inner.hints)
    with torch.no_grad():
        wanted = scores.loss(student, batch).total + WEIGHT * inner.loss(student, batch).total
        assert_close(both.loss(student, batch).total, wanted, rtol=1e-10, atol=1e-10)
        parts = [both.loss(student, part) for part in both.parts(batch, 3)]
        assert_close(torch.stack([part.total for part in parts]).sum(), wanted, rtol=1e-10, atol=1e-10)
        student.eval()
        told, plain = both.loss(student, batch), objective.loss(student, batch)
        assert torch.equal(told.total, plain.total) and torch.equal(told.plain, plain.plain)


def test_heads_that_are_as_many_are_matched_one_by_one():
    objective, arch, config = CASES["classify"]
    teacher = net_of(arch, config, 1, d_model=16, n_heads=2, n_layers=1)
    student = copy.deepcopy(teacher)
    attention: Any = student.get_submodule("encoder.blocks.0.self_attn")
    with torch.no_grad():  # the same heads in the other order: their mean is the same
        for proj in (attention.q_proj, attention.k_proj, attention.v_proj):
            for p in proj.parameters():
                p.copy_(p.roll(8, 0))
        attention.o_proj.weight.copy_(attention.o_proj.weight.roll(8, 1))
    found = []
    for kind in ("attention", "hidden"):
        loss = Distilled(objective, teacher, 1.0, None, Hints(student, teacher, (kind,))).loss(student, batch_of("classify"))
        found.append(float(loss.total.detach()))
    assert found[0] > 0.1 and abs(found[1]) < 1e-20


def test_pictures_and_clips_have_rows_cut_out_of_them():
    """TimeSformer's steps attend over frames and over places: a part of a batch is still a part of the whole."""
    from plait.data.picture_feed import PictureBatch

    page = models.PAGES["timesformer"]
    config = {**page.PRESETS["tiny"], "head": "classify", "labels": 3}
    student, teacher = (models.build("timesformer", config).double() for _ in range(2))
    hints = Hints(student, teacher, ("attention", "hidden"))
    assert {path[2] for path in hints.pairs["attention"]} == {"time_attn", "self_attn"}
    settings = page.Config(**config)
    pixels = torch.rand(3, settings.frames, 3, settings.image_size, settings.image_size, dtype=torch.float64)
    distilled = Distilled(Classifying(), teacher, 1.0, None, hints)
    batch = PictureBatch(pixels, None, torch.tensor([0, 2, 1]))
    whole = distilled.loss(student.train(), batch).total
    parts = [distilled.loss(student, part).total for part in distilled.parts(batch, 3)]
    assert float(whole.detach()) > 0
    assert_close(torch.stack(parts).sum(), whole, rtol=1e-9, atol=1e-12)


def test_a_narrow_student_learns_more_from_the_inside():
    """A teacher with drawn weights and few rows to learn from: half as wide, a student comes nearer to its scores of other rows."""
    objective, arch, config = CASES["classify"]
    torch.manual_seed(1)
    teacher = models.build(arch, {**config, "d_model": 32, "n_heads": 4, "n_layers": 2})
    for name, p in teacher.named_parameters():
        if p.ndim > 1:  # large enough that its scores differ from row to row
            torch.nn.init.normal_(p, std=(4.0 if "heads" in name else 1.5) * p.shape[1] ** -0.5)
    ids = torch.randint(3, VOCAB, (248, 6), generator=torch.Generator().manual_seed(1))
    whole = Examples(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros(248, dtype=torch.int64), per_entry=False)
    seen, held = (whole.rows(rows) for rows in torch.arange(248).split((48, 200)))
    scores, apart = Distilled(objective, teacher, 1.0, 1.0), []
    for kinds in ((), ("hidden",)):
        torch.manual_seed(1)
        student = models.build(arch, {**config, "d_model": 16, "n_heads": 4, "n_layers": 2}).train()
        hints = Hints(student, teacher, kinds)
        hints.fit(student)
        distilled = Distilled(objective, teacher, 1.0, 1.0, hints)
        adam = torch.optim.Adam(student.parameters(), 1e-2)
        for _ in range(80):
            adam.zero_grad()
            (distilled.loss(student, seen).total / 48).backward()
            adam.step()
        with torch.no_grad():
            apart.append(float(scores.loss(student, held).total) / 200)
    assert apart[1] < 0.9 * apart[0], apart


def test_what_a_teacher_has_not():
    text = net_of("bert", CASES["classify"][2], 1, d_model=16, n_heads=2, n_layers=1)
    decoder = net_of("vaswani", PAIRS, 1, d_model=16, n_heads=2, n_layers=1)
    page = models.PAGES["timesformer"]
    clips = models.build("timesformer", page.PRESETS["tiny"])
    with pytest.raises(InputError, match="no such layers") as raised:
        Hints(clips, text, ("attention",))
    assert raised.value.faults == ["attention: the blocks of its encoder have no time_attn"]
    assert Hints(decoder, decoder).widths == {}
