"""`--teacher` through the command line: a small model learns from a larger one's scores, and what cannot teach it is refused."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file

from plait.train.loop import Trainer

SMALL = ["--batch-tokens", "512", "--warmup", "5", "--evaluations", "2", "--quiet"]
FRUIT, TOOLS = "apple pear plum fig lime".split(), "saw axe drill file rasp".split()
FILL = "the a some of with and then there".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(5)
    texts = [(" ".join([*draw.choices(FILL, k=4), draw.choice(names)]), kind) for kind, names in (("fruit", FRUIT), ("tool", TOOLS)) * 80]
    made = {
        "classify": "label\ttext\n" + "".join(f"{kind}\t{text}\n" for text, kind in texts),
        "others": "label\ttext\n" + "".join(f"{kind} thing\t{text}\n" for text, kind in texts),
        "several": "".join(json.dumps({"text": text, "label": [kind]}) + "\n" for text, kind in texts),
        "text": "".join(f"{text}\n" for text, _ in texts),
    }
    paths = {name: folder / f"{name}.{'jsonl' if name == 'several' else 'txt' if name == 'text' else 'tsv'}" for name in made}
    for name, path in paths.items():
        path.write_text(made[name], encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    from plait import cli

    out = tmp_path_factory.mktemp("runs") / "teacher"
    words = ["train", "classify", "--data", data["classify"], "--out", out, "--steps", 60, "--tokenizer", "words"]
    assert cli.main([str(word) for word in (*words, "--preset", "modern-encoder-tiny", *SMALL)]) == 0
    return out


def test_a_classifier_from_a_teacher(plait, data, teacher, tmp_path):
    """It learns from the teacher alone: with all of the weight there, no answer is seen."""
    words = ["train", "classify", "--data", data["classify"], "--teacher", teacher, "--preset", "modern-encoder-tiny", *SMALL]
    code, out, err = plait(*words, "--out", tmp_path / "run", "--teacher-weight", 1, "--steps", 60)
    assert code == 0, err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["train"]["teacher"] == str(teacher)
    assert (tmp_path / "run" / "tokenizer.json").read_text() == (teacher / "tokenizer.json").read_text()
    code, out, err = plait("run", tmp_path / "run", "the a some with axe", "the and with a pear")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["tool", "fruit"], (out, err)


def test_a_language_model_from_a_teacher_goes_on(plait, data, tmp_path):
    words = ["train", "language-model", "--data", data["text"], "--documents", "line", "--preset", "modern-decoder-tiny"]
    words += ["--context", 12, *SMALL]
    code, _, err = plait(*words, "--out", tmp_path / "teacher", "--tokenizer", "words", "--steps", 30)
    assert code == 0, err
    taught = [*words, "--teacher", tmp_path / "teacher", "--steps", 30]
    for name, *more in (("run",), ("plain", "--teacher-weight", 0), ("far", "--teacher-weight", 1, "--teacher-temperature", 4)):
        code, _, err = plait(*taught, "--out", tmp_path / name, *more)
        assert code == 0, err
    rows = {name: [*map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())] for name in ("run", "plain", "far")}
    assert len({round(made[-1]["valid_loss"], 4) for made in rows.values()}) == 3
    losses = {name: made[-1]["valid_loss"] for name, made in rows.items()}
    assert losses["far"] < losses["plain"], losses  # the few texts are learned by heart, the teacher's soft scores are not


@pytest.mark.parametrize(
    ("task", "name", "phrase"),
    [
        ("classify", "others", "its labels are fruit, tool; those of the model are fruit thing, tool thing, in this order"),
        ("classify", "several", "classify (multi) has no one distribution over classes"),
        ("language-model", "text", "it has encoder with classify, the model decoder with lm"),
    ],
)
def test_what_cannot_teach(refused, data, teacher, task, name, phrase, tmp_path):
    words = ["train", task, "--data", data[name], "--out", tmp_path / "run", "--teacher", teacher, "--steps", 5, *SMALL]
    refused(words, phrase)
    assert not (tmp_path / "run").exists()


def test_a_teacher_with_another_tokenizer(refused, data, teacher, tmp_path):
    words = ["train", "classify", "--data", data["classify"], "--out", tmp_path / "run", "--teacher", teacher, "--steps", 5, *SMALL]
    refused([*words, "--tokenizer", "characters"], "its tokenizer of the input has", "that of the model")


def test_a_narrower_model_learns_from_the_inside_and_goes_on_bit_for_bit(plait, data, teacher, tmp_path, monkeypatch):
    """Its projections to the teacher's width are trained and resumed with it, and are not kept."""
    words = ["train", "classify", "--data", data["classify"], "--preset", "bert-tiny", *SMALL]
    words += ["--teacher", teacher, "--teacher-match", "hidden", "attention", "--steps", 24, "--dropout", 0.1]
    code, _, err = plait(*words, "--out", tmp_path / "whole")
    assert code == 0, err

    def stopped(self, batch, step=Trainer.step):
        step(self, batch)
        self.stop = self.state.step == 14

    with monkeypatch.context() as within:
        within.setattr(Trainer, "step", stopped)
        assert plait(*words, "--out", tmp_path / "run")[0] == 130
    half = load_file(tmp_path / "run" / "checkpoints" / "last.safetensors")
    width = json.loads((teacher / "config.json").read_text())["config"]["d_model"]
    assert len(half["model/fitted.encoder.weight"]) == width
    assert plait("run", tmp_path / "run", "the a some with axe")[0] == 0  # stopped: its best weights answer
    code, _, err = plait("train", "classify", "--out", tmp_path / "run", "--resume")
    assert code == 0, err
    for name in ("model.safetensors", "checkpoints/last.safetensors"):
        made, again = load_file(tmp_path / "whole" / name), load_file(tmp_path / "run" / name)
        assert made.keys() == again.keys() and all(torch.equal(made[key], again[key]) for key in made)
    assert not torch.equal(half["model/fitted.encoder.weight"], made["model/fitted.encoder.weight"])
    assert not [key for key in load_file(tmp_path / "run" / "model.safetensors") if "fitted" in key]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["train"]["teacher_match"] == ["hidden", "attention"]


def test_a_small_part_learns_from_the_inside(plait, data, teacher, tmp_path):
    """What is tuned and the projections learn, the rest stays."""
    words = ["train", "classify", "--data", data["classify"], *SMALL, "--steps", 6]
    assert plait(*words, "--preset", "bert-tiny", "--teacher", teacher, "--out", tmp_path / "base")[0] == 0
    code, _, err = plait(
        *(*words, "--model", tmp_path / "base", "--method", "lora", "--teacher", teacher),
        *("--teacher-match", "scores", "hidden", "--out", tmp_path / "run"),
    )
    assert code == 0, err
    saved = load_file(tmp_path / "run" / "checkpoints" / "last.safetensors")
    learned = [key for key in saved if key.startswith("optimizer/") and "fitted.encoder.weight" in key]
    assert learned and float(saved[learned[0]].abs().max()) > 0
    assert not [key for key in load_file(tmp_path / "run" / "model.safetensors") if "fitted" in key]
    assert plait("run", tmp_path / "run", "the a some with axe")[0] == 0


def test_options_that_do_not_go_together(refused, data, teacher, tmp_path):
    words = ["train", "classify", "--data", data["classify"], "--out", tmp_path / "run", "--steps", 5, *SMALL]
    refused([*words, "--teacher-match", "hidden"], "--teacher-match go with --teacher")
    refused([*words, "--teacher", teacher, "--teacher-match", "hiden"], "did you mean hidden?")
    refused([*words, "--teacher", teacher, "--teacher-match", "hidden", "--teacher-temperature", 3], "softens scores")
