"""Losses of classification, tagging, answering and embedding: those of the reference implementation, and sums over parts of a batch."""

import pytest
import torch
import torch.nn.functional as F

from plait import models
from plait.data.examples import IGNORED, Examples
from plait.models import bert
from plait.tasks.classifying import Classifying
from plait.tasks.contrast import Contrast, groups_of
from plait.tasks.encoding import Pooling
from plait.tasks.spans import Spans
from plait.tasks.tagging import Tagging
from plait.weights import rules as table
from plait.weights.source import Held

SIZES = dict(vocab_size=31, d_model=24, n_heads=3, n_layers=2, d_ff=40, max_length=16, dropout=0.0)
THEIRS = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, vocab_size=31, max_position_embeddings=16)
LENGTHS = torch.tensor([[9], [4], [7], [5]])


def batch(answers, types=None):
    per_entry = answers is TAGS
    draw = torch.Generator().manual_seed(1)
    return Examples(torch.randint(31, (4, 9), generator=draw), torch.arange(9) < LENGTHS, answers, types, per_entry=per_entry)


def drawn(*size, most):
    return torch.randint(most, size, generator=torch.Generator().manual_seed(2))


TAGS = torch.where((torch.arange(9) < LENGTHS) & (drawn(4, 9, most=3) > 0), drawn(4, 9, most=3), IGNORED)
PLACES = torch.stack([LENGTHS[:, 0] - 2, LENGTHS[:, 0] - 1], 1)  # [B, 2]
TASKS = {  # name: (objective, head, labels, answers)
    "single": (Classifying("single"), "classify", 3, drawn(4, most=3)),
    "multi": (Classifying("multi"), "classify", 9, drawn(4, 9, most=2).float()),  # as many labels as the batch is wide
    "regression": (Classifying("regression"), "classify", 1, drawn(4, most=5) / 4 - 1.0),
    "tag": (Tagging(), "tag", 3, TAGS),
    "answer": (Spans(), "answer", 2, PLACES),
}


@pytest.fixture(params=TASKS)
def task(request):
    torch.manual_seed(0)
    objective, head, labels, answers = TASKS[request.param]
    net = models.build("bert", {**SIZES, "head": head, "labels": labels}).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    return request.param, objective, net, batch(answers, types=drawn(4, 9, most=2))


def test_the_loss_is_the_reference(task):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
    name, objective, net, rows = task
    kind = {"tag": "Token", "answer": "QuestionAnswering"}.get(name, "Sequence")
    problem = {"single": "single_label_classification", "multi": "multi_label_classification", "regression": "regression"}.get(name)
    config = transformers.BertConfig(**THEIRS, num_labels=TASKS[name][2], problem_type=problem, attn_implementation="eager")
    peer = getattr(transformers, f"BertFor{kind}" + "Classification" * (kind != "QuestionAnswering"))(config).double().eval()
    ours = bert.Config(**SIZES, head=TASKS[name][1], labels=TASKS[name][2])
    table.load(net, Held(peer.state_dict()), bert.rules(ours), dtype=torch.float64)
    net.eval()
    given = dict(input_ids=rows.ids, attention_mask=rows.real.long(), token_type_ids=rows.types)
    if name == "answer":  # its loss counts padding as places where an answer may stand: so each row goes alone
        alone = [{k: v[i : i + 1, : LENGTHS[i]] for k, v in given.items()} for i in range(4)]
        places = [dict(start_positions=PLACES[i : i + 1, 0], end_positions=PLACES[i : i + 1, 1]) for i in range(4)]
        theirs = sum(peer(**a, **p).loss for a, p in zip(alone, places, strict=True)) / 4
    else:
        answers = rows.answers
        theirs = peer(**given, labels=answers.double() if name in ("multi", "regression") else answers).loss
    loss = objective.loss(net, rows)
    assert float(loss.total.detach()) / loss.count == pytest.approx(float(theirs.detach()), rel=1e-12)
    assert float(loss.plain) == pytest.approx(float(loss.total.detach()), rel=1e-12)
    loss.total.backward()
    peer.zero_grad()
    (theirs * loss.count).backward()
    mine = net.get_parameter("encoder.blocks.0.self_attn.v_proj.weight").grad
    torch.testing.assert_close(mine, peer.bert.encoder.layer[0].attention.self.value.weight.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 9])
def test_parts_add_up_to_the_whole(task, n):
    _, objective, net, rows = task
    whole, parts = objective.loss(net, rows), objective.parts(rows, n)
    losses = [objective.loss(net, part) for part in parts]
    assert len(parts) == min(n, 4) and sum(loss.count for loss in losses) == whole.count
    assert sum(float(loss.total.detach()) for loss in losses) == pytest.approx(float(whole.total.detach()), rel=1e-12)
    assert sum(map(objective.size, parts)) == objective.size(rows) == 25
    assert sum(part.count for part in parts) == rows.count == whole.count


def test_smoothing_changes_what_is_minimised_not_what_is_told():
    torch.manual_seed(0)
    net, rows = models.build("bert", {**SIZES, "head": "classify", "labels": 3}), batch(drawn(4, most=3))
    smooth, plain = Classifying(smoothing=0.2), Classifying()
    scores = plain.scores(net, rows)
    loss = smooth.loss(net, rows)
    wanted = F.cross_entropy(scores, rows.answers, label_smoothing=0.2, reduction="sum")
    assert float(loss.total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert float(loss.plain) == pytest.approx(float(plain.loss(net, rows).total.detach()), rel=1e-5)
    assert float(smooth.loss(net.eval(), rows).total.detach()) == pytest.approx(float(loss.plain), rel=1e-5)


# ---- contrast ----

ROLES = torch.tensor([0, 0, 0, 1, 1, 1, 2, 0, 0, 1, 1, 0, 1])  # groups of three pairs with a negative, of two pairs, of one


def grouped(**changed):
    ids = torch.randint(1, 31, (13, 5), generator=torch.Generator().manual_seed(3))
    real = torch.arange(5) < torch.tensor([[5], [3], [4], [2], [5], [5], [3], [4], [4], [1], [2], [5], [5]])
    for row, text in changed.items():
        ids[int(row[1:])], real[int(row[1:])] = ids[text], real[text]
    return Examples(ids * real, real, ROLES, per_entry=False)


@pytest.fixture
def embedder():
    torch.manual_seed(0)
    net = models.build("bert", {**SIZES, "head": "none"}).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    return net


def test_a_group_is_told_apart_by_the_formula(embedder):
    """Henderson et al. 2017, equation 6, with cosines over a temperature: each text alone, without padding, in plain steps."""
    rows, objective = grouped(), Contrast(Pooling("mean", True), temperature=0.1)
    vectors = [embedder(encoder=ids[real][None])["encoder"].x[0].mean(0) for ids, real in zip(rows.ids, rows.real, strict=True)]

    def score(a, b):
        return torch.cosine_similarity(vectors[a], vectors[b], dim=0) / 0.1

    wanted = 0.0
    for anchors, texts in (([0, 1, 2], [3, 4, 5, 6]), ([7, 8], [9, 10]), ([11], [12])):
        for anchor, right in zip(anchors, texts, strict=False):
            wanted += torch.logsumexp(torch.stack([score(anchor, text) for text in texts]), 0) - score(anchor, right)
    loss = objective.loss(embedder, rows)
    assert loss.count == 6
    assert float(loss.total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-10)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_groups_add_up_to_the_batch(embedder, n):
    rows, objective = grouped(), Contrast(Pooling("mean", True))
    parts = objective.parts(rows, n)
    assert len(parts) == min(n, 3) and sum(map(len, parts)) == 13
    whole, losses = objective.loss(embedder, rows), [objective.loss(embedder, part) for part in parts]
    assert sum(loss.count for loss in losses) == whole.count
    assert sum(float(loss.total.detach()) for loss in losses) == pytest.approx(float(whole.total.detach()), rel=1e-10)


def test_groups_begin_where_anchors_follow_other_texts():
    assert [group.tolist() for group in groups_of(ROLES)] == [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9, 10], [11, 12]]


def test_the_same_text_is_no_negative(embedder):
    """Two pairs with one positive, or with one anchor: neither is told from the other."""
    objective = Contrast(Pooling("mean", True))

    alone = objective.loss(embedder, Examples(grouped().ids[[7, 9]], grouped().real[[7, 9]], torch.tensor([0, 1]), per_entry=False))
    assert float(alone.total.detach()) == 0  # nothing to be told from
    rows = grouped(r10=9)
    both = Examples(rows.ids[7:11], rows.real[7:11], rows.answers[7:11], per_entry=False)
    assert float(objective.loss(embedder, both).total.detach()) == 0
    rows = grouped(r8=7)
    both = Examples(rows.ids[7:11], rows.real[7:11], rows.answers[7:11], per_entry=False)
    assert float(objective.loss(embedder, both).total.detach()) == 0
    both = Examples(grouped().ids[7:11], grouped().real[7:11], grouped().answers[7:11], per_entry=False)
    assert float(objective.loss(embedder, both).total.detach()) > 0
