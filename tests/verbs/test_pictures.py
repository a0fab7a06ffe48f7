"""Pictures and clips from files to a trained classifier, as a user gives them on the command line."""

import json
import os
import signal
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import plait as library
from plait.tasks.classifying import Classifying

pytest.importorskip("PIL", reason="Pillow is not installed (pip install 'plait[vision]')")
TINY = ["--preset", "modern-vision-tiny", "--size", "16", "--batch-tokens", "128", "--evaluations", "1", "--save-seconds", "1000"]


def save(array: np.ndarray, path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """squares/ (a folder per class), divided/ (train and valid), table.csv and squares.zip of the same, clips as arrays and as frames."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    names = []
    for name, grey in (("bright", 180), ("dark", 10)):
        for i in range(12):
            picture = (draw.integers(0, 60, (16, 16, 3)) + grey).astype(np.uint8)
            save(picture, root / f"squares/{name}/{i}.png")
            save(picture, root / f"divided/{'train' if i < 9 else 'valid'}/{name}/{i}.png")
            names.append((f"squares/{name}/{i}.png", name))
        for i in range(6):
            frames = np.stack([draw.integers(0, 20, (16, 16, 3)) + (25 * t if grey > 99 else 200 - 25 * t) for t in range(8)]).astype(
                np.uint8
            )
            (root / "clips" / name).mkdir(parents=True, exist_ok=True)
            np.save(root / f"clips/{name}/{i}.npy", frames)
            for t, frame in enumerate(frames):
                save(frame, root / f"frames/{name}/{i}/{t}.png")
    (root / "table.csv").write_text("file,label\n" + "".join(f"{file},{label}\n" for file, label in names))
    with zipfile.ZipFile(root / "squares.zip", "w") as archive:
        for file, _ in names:
            archive.write(root / file, file)
    (root / "broken.png").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run that has learned to tell bright squares from dark ones."""
    from plait import cli

    out = tmp_path_factory.mktemp("runs") / "squares"
    words = ["train", "classify", "--data", data / "divided", "--out", out, "--steps", "30", "--quiet", *TINY, "--learning-rate", "0.01"]
    assert cli.main([str(word) for word in words]) == 0
    return out


@pytest.mark.parametrize("name", ["squares", "table.csv", "squares.zip", "divided"])
def test_every_form_of_pictures_trains(plait, data, tmp_path, name):
    code, out, err = plait("train", "classify", "--data", data / name, "--out", tmp_path / "run", "--steps", "2", *TINY)
    assert code == 0, err
    assert json.loads(out)["steps"] == 2
    assert ("valid: read: 6 pictures" in err) == (name == "divided")


@pytest.mark.parametrize("name", ["clips", "frames"])
def test_both_forms_of_clips_train_and_are_answered(plait, data, tmp_path, name):
    words = ["--preset", "timesformer-tiny", "--size", "16", "--steps", "2", "--evaluations", "1"]
    code, _, err = plait("train", "classify", "--data", data / name, "--out", tmp_path / "run", *words)
    assert code == 0 and "12 clips" in err, err
    code, out, err = plait("run", tmp_path / "run", data / "clips/bright/0.npy", data / "frames/bright/0")
    first, second = out.splitlines()
    assert code == 0 and first == second  # the same frames


def test_what_clips_are_learned_by_where_nobody_says(plait, data, tmp_path):
    code, _, err = plait("train", "classify", "--data", data / "clips", "--out", tmp_path / "run", "--size", "16", "--epochs", "1")
    assert code == 0, err
    said = json.loads((tmp_path / "run/config.json").read_text())
    assert said["arch"] == "modern-video" and said["recipe"]["kind"] == "adam"  # Muon stays at chance
    assert said["batch_tokens"] == 32 and (said["config"]["frames"], said["config"]["patch"]) == (8, 8)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(plait, data, tmp_path, monkeypatch):
    words = ["train", "classify", "--data", data / "squares", "--steps", "6", "--augment", "digits", *TINY]
    assert plait(*words, "--out", tmp_path / "whole")[0] == 0
    calls, real = [], Classifying.loss

    def stopping(self, net, batch):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, net, batch)

    monkeypatch.setattr(Classifying, "loss", stopping)
    code, _, err = plait(*words, "--out", tmp_path / "stopped")
    assert len(calls) < 6 and "--resume" in err, err
    code, _, err = plait("train", "classify", "--out", tmp_path / "stopped", "--resume")
    assert code == 0 and "going on at step" in err, err
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_files_are_answered_each_for_itself(plait, data, trained):
    files = [data / "squares/bright/0.png", data / "broken.png", data / "none.png", data / "squares/dark/1.png"]
    code, out, err = plait("run", trained, *files, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 2 and "Traceback" not in err and "2 of 4 inputs" in err and "broken.png" in err and "none.png: no such file" in err
    assert [row.get("labels") for row in rows] == [["bright"], None, None, ["dark"]]


def test_scores_stand_beside_baselines(plait, data, trained):
    code, out, err = plait("eval", trained)
    said = json.loads(out)
    assert code == 0 and said["n"] == 6, err  # those of valid/
    assert said["metrics"]["accuracy"] == 100.0
    assert said["baselines"]["majority"]["accuracy"] == 50.0 and said["baselines"]["pixels_logistic"]["accuracy"] == 100.0
    assert json.loads(plait("eval", trained, "--data", data / "table.csv")[1])["n"] == 24


def test_python_takes_what_a_picture_comes_as(data, trained):
    from PIL import Image

    model, path = library.load(trained), data / "squares/dark/0.png"
    picture = np.asarray(Image.open(path))
    answers = [model(one) for one in (path, str(path), path.read_bytes(), Image.open(path), picture)]
    assert {one.label for one in answers} == {"dark"} and len({one.scores["dark"] for one in answers}) == 1
    assert [one.label for one in model([path, data / "squares/bright/0.png"])] == ["dark", "bright"] and model([]) == []
    pixels = model.prepare.batch([picture])[0]
    scores = model.logits(pixels)
    assert scores.shape == (1, 2) and np.exp(scores[0, 1]) / np.exp(scores[0]).sum() == pytest.approx(answers[0].scores["dark"], abs=1e-6)
    for odd, phrase in ((pixels[0], "expected"), ([[1], [1, 2]], "numbers"), (pixels[:, :1], "pictures of 3 channels"), (None, "expected")):
        with pytest.raises(library.InputError, match=phrase):
            model.logits(odd)
    for odd in (3.5, None, picture.astype(float)[..., None], [1, 2]):
        with pytest.raises(library.InputError):
            model(odd)


def test_a_model_goes_on_with_other_classes_and_another_size(plait, data, trained, tmp_path):
    for i, name in enumerate(("a", "b", "c")):
        for n in range(4):
            save(np.full((24, 24, 3), 80 * i + n, np.uint8), tmp_path / "three" / name / f"{n}.png")
    words = ["train", "classify", "--data", tmp_path / "three", "--out", tmp_path / "run", "--steps", "1", "--model", trained]
    code, _, err = plait(*words, "--size", "24")
    assert code == 0, err
    assert "interpolated: encoder.embed.positions.weight" in err and "new: heads.classify.scores.weight, heads.classify.scores.bias" in err
    said = json.loads((tmp_path / "run/preprocessor_config.json").read_text())
    assert said["size"] == {"height": 24, "width": 24} and library.load(tmp_path / "run").labels == ["a", "b", "c"]


def test_what_cannot_be_trained(refused, data, trained, tmp_path):
    start = ["train", "classify", "--data", data / "squares", "--out", tmp_path / "run", "--steps", "1"]
    refused([*start, "--size", "30"], "--size 30", "28 or 32")
    refused([*start, "--size", "30", "--model", trained], "--size 30")
    refused([*start, "--augment", "strange"], "--augment strange", "digits")
    refused([*start, "--preset", "detr-tiny"], "--preset detr-tiny", "modern-vision-tiny")
    refused([*start, "--tokenizer", "bpe"], "--tokenizer")
    refused([*start[:3], data / "clips", *start[4:], "--model", trained], "clips", "pixels")
    (tmp_path / "odd/a").mkdir(parents=True)
    for i in range(3):
        (tmp_path / f"odd/a/{i}.png").write_text("no picture")
    err = refused([*start[:3], tmp_path / "odd", *start[4:]], "0.png", "1.png", "2.png")
    assert "cannot be used" in err
    assert not (tmp_path / "run").exists()


def test_the_doctor_looks_at_pictures(plait, data):
    code, out, err = plait("doctor", "classify", "--data", data / "divided", "--seconds", "60", *TINY)
    assert code == 0, out + err
    assert all(line.startswith("ok ") for line in out.splitlines())
    assert all(
        f"ok       {name}: " in out for name in ("overfits one batch", "classes", "input matters", "padding of pictures", "gradients")
    )


def test_the_doctor_names_pictures_on_both_sides_and_check_stops_the_run(plait, data, tmp_path):
    words = ["classify", "--data", data / "squares", "--valid", data / "table.csv", "--augment", "none", *TINY]
    code, out, err = plait("train", *words, "--steps", "1", "--out", tmp_path / "run", "--check")
    assert code == 2 and not out and "fault    held out: 24 of 24" in err and not (tmp_path / "run").exists()
