"""Pictures beside the peers, on toy shapes: all contestants compute the same, and those that learn do learn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from plait.bench import __main__ as bench
from plait.bench import vision_models, vision_quality, vision_speed
from plait.core.model import parameters
from plait.models import build
from plait.models.detr import PRESETS

VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
TOWERS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
BACKBONE = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
DETR = {**TOWERS, "d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 5, "backbone_config": BACKBONE}
TOYS = {"vit": {"picture": (32, 32), "config": VIT}, "detr": {"picture": (64, 96), "config": DETR}}


def answers(entrant: str, model: str, file: str, rows: int = 2) -> np.ndarray:
    how = vision_speed.ENTRANTS[entrant]
    made = getattr(vision_models, how.make)(file, how.bits, rows, TOYS[model]["picture"], 1)
    return np.concatenate([one.ravel() for one in made.answers()])


@pytest.mark.filterwarnings("ignore")  # of the peers' libraries, about themselves
@pytest.mark.parametrize("model", ["vit", "detr"])
def test_contestants_answer_alike(model, peers, tmp_path):
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    prepared = vision_models.Prepared(model, str(tmp_path), TOYS[model], 2)
    right = answers("transformers", model, prepared.file("folder"))
    for name, how in vision_speed.ENTRANTS.items():
        if name in ("transformers", "timm") or (model == "detr" and how.file != "folder"):  # its graph takes long to export
            continue
        off = abs(answers(name, model, prepared.file(how.file)) - right).max() / abs(right).max()
        assert (off < 1e-5) if how.bits == 32 else (1e-5 < off < 0.1), name


def test_operations_are_those_of_the_products(peers, tmp_path):
    """Two a multiply-add: of the patches, of each token's matrices and scores, and of the head."""
    d, ff, patches = 32, 64, 16
    entries = patches + 1
    by_hand = patches * 3 * 8 * 8 * d + entries * (4 * d * d + 2 * d * ff) + 2 * entries**2 * d + d * 2
    assert vision_models.Prepared("vit", str(tmp_path), TOYS["vit"], 3).operations() == 3 * 2 * by_hand


def test_they_take_turns(peers, tmp_path):
    found = vision_speed.run(["vit"], ["plait", "timm"], 2, tmp_path, 1, TOYS)
    one = json.loads(json.dumps(found))["cases"]["vit"]
    assert len(one["contestants"]["plait"]["seconds"]) == 2 and one["contestants"]["plait"]["of_limit"] > 0
    assert ("timm" in one["contestants"]) != ("timm is not installed" in one["failed"].get("timm", "")) and "at once" in vision_speed.shown(
        found
    )


def test_who_computes_something_else_takes_no_part(tmp_path):
    turning = vision_speed.Turning(1, tmp_path)
    turning.told = {name: [{"seconds": 1.0, "answer": None}] for name in ("plait", "transformers", "plait int8")}
    right = np.ones(3)
    answers = {"transformers": right, "plait": right * 1.01, "plait int8": right * 1.01}
    one = vision_speed.figures(vision_speed.CASES["vit"], turning, 10, answers)
    assert list(one["contestants"]) == ["transformers", "plait int8"] and "something else" in one["failed"]["plait"]


def test_the_job_is_known(capsys, tmp_path):
    options = {"job": "vision", "out": str(tmp_path / "one.json"), "threads": 1, "only": [], "rounds": 1, "quick": True}
    assert bench.main([json.dumps({**options, "cases": ["cat"]})]) == 2
    assert "--cases cat: choose among vit" in json.loads(capsys.readouterr().out)["error"]


# ---- equal time ----


def test_peers_are_as_large_as_ours(peers):
    ours = build("modern-vision", {"image_size": 28, "d_model": 64, "n_heads": 2, "d_ff": 256, "d_stem": 16, "labels": 10})
    assert parameters(vision_quality.small_vit(28, 10, parameters(ours))) == pytest.approx(parameters(ours), rel=0.05)
    cells = build("detr", {**PRESETS["small"], "labels": 3})
    peer = vision_quality.small_detr(3)
    assert parameters(peer) == pytest.approx(parameters(cells), rel=0.01)
    assert all(p.requires_grad for p in peer.parameters())


def test_both_parts_hold_different_digits(tmp_path, monkeypatch):
    from plait.data import builtin_pictures
    from plait.data.picture_rows import read_pictures

    form = builtin_pictures.FORMS["digits"]
    few = builtin_pictures._as_png(lambda: ((i % 10, np.full((28, 28), i, np.uint8)) for i in range(200)))
    forms = {**builtin_pictures.FORMS, "digits": builtin_pictures.PictureForm(form.task, "", 200, 0, "", "", few)}
    monkeypatch.setattr(builtin_pictures, "FORMS", forms)
    (train, _), (test, _) = (read_pictures([path]) for path in vision_quality.parts_of("digits", tmp_path))
    assert len(train) + len(test) == 200 and 20 < len(test) < 60
    names = [{Path(row.where).name for row in rows} for rows in (train, test)]
    assert not names[0] & names[1]


def test_the_clock_uses_all_of_the_time():
    clock = vision_quality.Clock(1.0)
    for share, rate in ((0.025, 0.5), (0.05, 1.0), (0.525, 0.5), (1.5, 0.0)):
        clock.start = vision_quality.time.perf_counter() - 60 * share
        assert clock.rate == pytest.approx(rate, abs=1e-3)


def test_a_detector_of_the_peer_learns(peers):
    """From nothing, norms and all as they begin: the loss of a fixed batch falls."""
    torch.manual_seed(0)
    net, losses = vision_quality.small_detr(1).train(), []
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-4)
    pixels = torch.zeros(2, 3, 64, 64)
    pixels[:, :, 16:48, 16:48] = 2
    right = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]])}] * 2
    for _ in range(6):
        optimizer.zero_grad()
        loss = net(pixel_values=pixels, labels=right).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), vision_quality.CLIP)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
