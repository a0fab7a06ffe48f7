"""Detection: the loss is the reference implementation's, parts add up to it, answers are boxes of the picture, and squares are found."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from plait.core.attention import Attention, CrossAttention
from plait.core.blocks import body, each
from plait.core.embeddings import Embed, Tokens
from plait.core.feedforward import FFN
from plait.core.linear import Linear
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.residual import Pre
from plait.data.picture_feed import BoxBatch
from plait.errors import InputError
from plait.tasks.boxes import centred, corners
from plait.tasks.detecting import Detecting, answers, outputs, pixels_of

pytest.importorskip("scipy", reason="scipy is not installed (pip install 'plait[vision]')")

# ---- a detector of a few lines, and its data ----

D, PATCH = 32, 4


class Patches(nn.Module):
    """Pixels [B, 3, H, W] -> a vector for each PATCH x PATCH of them, with learned places."""

    def __init__(self, side):
        super().__init__()
        self.proj, self.places = Linear(3 * PATCH**2, D), nn.Parameter(torch.randn((side // PATCH) ** 2, D))

    def forward(self, s):
        cut = nn.functional.unfold(s.x, PATCH, stride=PATCH).transpose(1, 2)
        return s.having(x=self.proj(cut) + self.places, real=None)


class Answers(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.labels, self.boxes = Linear(D, classes + 1), nn.Sequential(Linear(D, D), nn.ReLU(), Linear(D, 4))

    def forward(self, hidden):
        return self.labels(hidden), self.boxes(hidden).sigmoid()


def detector(n_queries, layers=2, classes=3, side=16, seed=0):
    torch.manual_seed(seed)
    norm, attend, ffn = partial(LayerNorm, D), partial(each, n_heads=4), each(FFN, D, 2 * D)
    encoder = body(1, norm, lambda i: Pre(), self_attn=attend(Attention, D), ffn=ffn)
    decoder = body(layers, norm, lambda i: Pre(), self_attn=attend(Attention, D), cross_attn=attend(CrossAttention, D), ffn=ffn)
    queries = Embed(tokens=Tokens(n_queries, D, scale=math.sqrt(D)))
    return Model(
        {"detect": Answers(classes)},
        encoder=Tower(Embed(patches=Patches(side)), encoder, norm()),
        decoder=Tower(queries, decoder, norm()),
    )


def batch(counts=(2, 0, 5, 1, 3), seed=0):
    draw = torch.Generator().manual_seed(seed)
    corner = [torch.rand(2, n, 2, generator=draw, dtype=torch.float64).sort(0).values for n in counts]
    boxes = [centred(torch.cat([low, high], -1)) for low, high in corner]
    labels = [torch.randint(3, (n,), generator=draw) for n in counts]
    pixels = torch.randn(len(counts), 3, 16, 16, generator=draw, dtype=torch.float64)
    sizes = torch.tensor([[480, 640]] * len(counts))
    return BoxBatch(pixels, None, boxes, labels, sizes, len(counts), sum(counts))


# ---- the loss ----


def layer_by_layer(net, rows, n_queries):
    """What each layer answers: a copy of the detector that ends there is asked."""
    found = []
    for layers in range(1, len(net.decoder.blocks.order) + 1):
        short = copy.deepcopy(net)
        short.decoder.blocks.order = short.decoder.blocks.order[:layers]
        queries = torch.arange(n_queries).expand(len(rows), -1)
        found.append(short.heads["detect"](short(encoder=rows.pixels, decoder=queries)["decoder"].x))
    return [torch.stack(kind) for kind in zip(*found)]


@pytest.mark.parametrize("auxiliary", [True, False])
def test_the_loss_is_the_references(auxiliary, monkeypatch):
    reference = pytest.importorskip("transformers.loss.loss_for_object_detection", reason="transformers is not installed")
    monkeypatch.setattr(torch, "ones", partial(torch.ones, dtype=torch.float64))  # it makes its class weights in float32
    net, rows = detector(7, layers=3).double(), batch()
    loss = Detecting(7, auxiliary).loss(net, rows)
    scores, boxes = layer_by_layer(net, rows, 7)
    sizes = dict(class_cost=1, bbox_cost=5, giou_cost=2, bbox_loss_coefficient=5, giou_loss_coefficient=2, eos_coefficient=0.1)
    config = SimpleNamespace(**sizes, num_labels=3, auxiliary_loss=auxiliary, decoder_layers=3)
    wanted = [{"class_labels": c, "boxes": b} for b, c in zip(rows.boxes, rows.labels)]
    theirs, _, _ = reference.ForObjectDetectionLoss(scores[-1], wanted, "cpu", boxes[-1], config, scores, boxes)
    assert float(loss.total.detach()) / loss.count == pytest.approx(float(theirs.detach()), rel=1e-12)
    assert float(loss.plain) == pytest.approx(float(loss.total.detach()), rel=1e-12)


@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_parts_add_up_to_the_batch(n):
    """Also where a part has no box at all; so do gradients."""
    net, rows, objective = detector(7).double(), batch(), Detecting(7)
    whole = objective.loss(net, rows)
    whole.total.backward()
    wanted = [p.grad for p in net.parameters()]
    net.zero_grad()
    parts = [objective.loss(net, part) for part in objective.parts(rows, n)]
    assert len(parts) == min(n, 5) and sum(part.count for part in parts) == whole.count == 5
    total = torch.stack([part.total for part in parts]).sum()
    torch.testing.assert_close(total, whole.total, rtol=1e-12, atol=0)
    total.backward()
    for mine, theirs in zip([p.grad for p in net.parameters()], wanted):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_pictures_without_boxes_have_a_loss():
    """Nothing but "no object", whose weight falls out: the mean cross-entropy of the last class, in every layer."""
    net, rows = detector(7).double(), batch((0, 0))
    scores, _ = layer_by_layer(net, rows, 7)
    wanted = -scores.log_softmax(-1)[..., -1].mean((1, 2)).sum()
    loss = Detecting(7).loss(net, rows)
    torch.testing.assert_close(loss.total / loss.count, wanted, rtol=1e-12, atol=0)


def test_answers_that_are_no_numbers_make_a_loss_that_is_none():
    """Training then names the step, the rows and the last good state, as of any other task."""
    net, rows = detector(7).double(), batch()
    with torch.no_grad():
        net.get_parameter("heads.detect.boxes.2.weight")[0, 0] = math.nan
    loss = Detecting(7).loss(net, rows)
    assert math.isnan(float(loss.plain)) and loss.count == 5


def test_more_boxes_than_queries_are_named():
    with pytest.raises(InputError, match="picture 2 of the batch has 5 boxes, the model has 4 queries"):
        Detecting(4).loss(detector(4).double(), batch())


# ---- answers ----


def test_answers_are_boxes_of_the_picture():
    """Against a loop over one answer after the other; pictures are of different sizes."""
    draw = torch.Generator().manual_seed(3)
    scores, boxes = torch.randn(2, 6, 4, generator=draw), torch.rand(2, 6, 4, generator=draw)
    sizes = torch.tensor([[480, 640], [31, 17]])
    for row, found in enumerate(answers(scores, boxes, sizes, threshold=0.3, most=3)):
        height, width = sizes[row].tolist()
        lines = []
        for logits, (x, y, w, h) in zip(scores[row].double().tolist(), boxes[row].double().tolist()):
            p = [math.exp(v) / sum(map(math.exp, logits)) for v in logits[:3]]
            corner = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            lines.append((max(p), p.index(max(p)), corner))
        lines = sorted((line for line in lines if line[0] >= 0.3), reverse=True)[:3]
        assert found.labels.tolist() == [label for _, label, _ in lines] and lines
        assert found.scores == pytest.approx([score for score, _, _ in lines], rel=1e-5)
        assert found.boxes == pytest.approx(torch.tensor([corner for _, _, corner in lines]).numpy(), rel=1e-4, abs=1e-3)


def test_answers_are_the_references():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
    pytest.importorskip("PIL", reason="Pillow is not installed (pip install 'plait[vision]')")
    processor = transformers.DetrImageProcessorPil()
    draw = torch.Generator().manual_seed(4)
    scores, boxes = torch.randn(3, 8, 5, generator=draw), torch.rand(3, 8, 4, generator=draw)
    sizes = torch.tensor([[480, 640], [31, 17], [100, 2000]])
    given = SimpleNamespace(logits=scores, pred_boxes=boxes)
    theirs = processor.post_process_object_detection(given, threshold=0.4, target_sizes=sizes)
    for mine, one in zip(answers(scores, boxes, sizes, threshold=0.4), theirs, strict=True):
        order = one["scores"].argsort(descending=True)
        assert mine.labels.tolist() == one["labels"][order].tolist()
        torch.testing.assert_close(torch.from_numpy(mine.boxes), one["boxes"][order], rtol=1e-5, atol=1e-3)


# ---- learning ----


def squares(n, seed):
    """Dark pictures 16 x 16, most with one bright square, whose class is its colour."""
    draw = torch.Generator().manual_seed(seed)
    pixels = 0.1 * torch.randn(n, 3, 16, 16, generator=draw)
    boxes, labels = [], []
    for picture in pixels:
        side, colour = int(torch.randint(4, 11, (), generator=draw)), int(torch.randint(2, (), generator=draw))
        x, y = torch.randint(17 - side, (2,), generator=draw).tolist()
        there = bool(torch.rand((), generator=draw) < 0.9)
        picture[colour, y : y + side, x : x + side] += 2.0 * there
        boxes.append(centred(torch.tensor([[x, y, x + side, y + side]] * there).reshape(-1, 4) / 16))
        labels.append(torch.tensor([colour] * there, dtype=torch.int64))
    return BoxBatch(pixels, None, boxes, labels, torch.full((n, 2), 16), n, sum(map(len, boxes)))


def test_squares_are_found():
    pytest.importorskip("pycocotools", reason="pycocotools is not installed (pip install 'plait[vision]')")
    net, objective, steps = detector(2, classes=2), Detecting(2), 120
    taught = [squares(24, seed) for seed in range(40)]
    valid = [squares(50, 100), squares(50, 101), None]  # two batches have the hundred pictures: the third is not asked for
    before = objective.figures(net, valid, most=100)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20) * (1 - step / steps))
    for step in range(steps):
        optimizer.zero_grad()
        loss = objective.loss(net, taught[step % len(taught)])
        (loss.total / loss.count).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    net.eval()
    after = objective.figures(net, valid, most=100)
    assert before["ap50"] < 10 and after["ap50"] > 30  # about 50, a little more or less as a CPU rounds
    rows = valid[1]
    with torch.no_grad():
        scores, boxes = outputs(net, pixels_of(net, rows), 2)
    found = answers(scores[-1], boxes[-1], rows.sizes)
    best = [(one, 16 * corners(box)[0], int(label)) for one, box, label in zip(found, rows.boxes, rows.labels) if len(box)]
    assert sum(one.labels[0] == label for one, _, label in best) >= len(best) - 2
    far = sorted(float(abs(torch.from_numpy(one.boxes[0]) - box).max()) for one, box, _ in best)
    assert far[len(far) // 2] < 1.5  # pixels, of 16
