"""`plait tune` through the command line: what is kept is small and opens as it ended; a resumed run is as never stopped; errors."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import plait as library

QUIET = ["--evaluations", "2", "--quiet"]
METHODS = ["lora", "prefix", "prompt", "houlsby"]  # of the others the contracts speak


@pytest.fixture(scope="module")
def other(pairs, tmp_path_factory):
    """Pairs that another rule makes, for a run to be tuned to: the source in capitals, not turned round."""
    path = tmp_path_factory.mktemp("data") / "other.tsv"
    sources = [line.split("\t")[0] for line in pairs.read_text("utf-8").splitlines()]
    path.write_text("".join(f"{source}\t{source.upper()}\n" for source in sources), "utf-8")
    return path


@pytest.mark.parametrize("method", METHODS)
def test_only_the_small_part_is_kept(plait, made, other, tmp_path, method):
    out = tmp_path / "run"
    code, said, err = plait("tune", made, "--method", method, "--data", other, "--out", out, "--steps", 12, "--batch-tokens", 512, *QUIET)
    assert code == 0, err
    result, config = json.loads(said), json.loads((out / "config.json").read_text())
    assert config["task"] == "translation" and config["tuned"]["tuning"]["method"] == method
    held = load_file(out / "model.safetensors")
    whole = sum(t.numel() for t in load_file(made / "model.safetensors").values())
    assert 0 < sum(t.numel() for t in held.values()) < whole / 2
    # What was measured while it learned is what the opened run gives: the part is put in its place.
    code, said, err = plait("eval", out, "--data", other, "--no-baselines")
    assert code == 0, err
    before = json.loads(plait("eval", made, "--data", other, "--no-baselines")[1])
    assert json.loads(said) != before and result["valid_loss"] > 0


def test_an_opened_run_gives_what_was_measured(plait, made, other, tmp_path):
    """The validation loss that training reports last, from the opened model by the plain formula."""
    out, valid = tmp_path / "run", tmp_path / "valid.tsv"
    lines = list(dict.fromkeys(other.read_text("utf-8").splitlines()))[:30]
    valid.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    words = ["tune", made, "--method", "lora", "--data", other, "--valid", valid, "--out", out, "--steps", 20, "--batch-tokens", 512]
    code, said, err = plait(*words, "--learning-rate", "0.01", *QUIET)
    assert code == 0, err
    ready = library.load(out)
    total, count = 0.0, 0
    for line in lines:
        left, right = line.split("\t")
        ids = [ready.target_tokenizer.bos_id, *ready.target_tokenizer.encode(right), ready.target_tokenizer.eos_id]
        scores = torch.tensor(ready.logits([ready.translator.encode(left)], [ids[:-1]])).log_softmax(-1)[0]
        total -= float(scores.gather(-1, torch.tensor(ids[1:])[:, None]).sum())
        count += len(ids) - 1
    assert abs(total / count - json.loads(said)["valid_loss"]) < 1e-4


def test_stopped_and_resumed_is_uninterrupted(plait, launcher, made, other, tmp_path):
    words = ["tune", made, "--method", "lora", "--data", other, "--steps", 12, "--batch-tokens", 512, *QUIET, "--save-seconds", "0.001"]
    code, _, err = plait(*words, "--out", tmp_path / "whole")
    assert code == 0, err
    stop = "import plait.train.loop as l, os, signal\nstep = l.Trainer.step\ndef once(self, batch):\n    step(self, batch)\n"
    stop += "    if self.state.step == 7: os.kill(os.getpid(), signal.SIGINT)\nl.Trainer.step = once"
    launcher.start(*words, "--out", tmp_path / "stopped", before=stop)
    assert launcher.ended()[0] not in (0, 2)
    code, _, err = plait("train", "translation", "--out", tmp_path / "stopped", "--resume", "--quiet")
    assert code == 0, err
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_classifier_of_a_language_model_gets_a_new_head(plait, tmp_path):
    """What the base has not got is trained and kept with the part: here the head."""
    rows = [("apple pear fig", "fruit"), ("saw axe file", "tool")] * 40
    data = tmp_path / "rows.tsv"
    data.write_text("text\tlabel\n" + "".join(f"{text} {i}\t{label}\n" for i, (text, label) in enumerate(rows)), "utf-8")
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{text}\n" for text, _ in rows), "utf-8")
    small = ["--tokenizer", "words", "--preset", "modern-encoder-tiny", "--batch-tokens", 512, "--warmup", 2, *QUIET]
    code, _, err = plait("train", "masked-lm", "--data", texts, "--documents", "line", "--out", tmp_path / "base", "--steps", 4, *small)
    assert code == 0, err
    words = ["tune", tmp_path / "base", "--task", "classify", "--data", data, "--steps", 60, "--learning-rate", "0.02"]
    code, _, err = plait(*words, "--out", tmp_path / "run", "--batch-tokens", 512, *QUIET)
    assert code == 0, err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["tuned"]["also"] and all(name.startswith("heads.") for name in config["tuned"]["also"])
    code, out, err = plait("run", tmp_path / "run", "pear fig apple", "file saw")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["fruit", "tool"], (out, err)


def test_a_base_that_is_gone_or_another(plait, refused, made, other, tmp_path):
    base, out = tmp_path / "base", tmp_path / "run"
    shutil.copytree(made, base)
    code, _, err = plait("tune", base, "--data", other, "--out", out, "--steps", 2, "--batch-tokens", 512, *QUIET)
    assert code == 0, err
    weights = load_file(base / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, base / "model.safetensors")
    refused(["run", out, "a b"], "whose weights have changed since")
    shutil.rmtree(base)
    refused(["run", out, "a b"], "cannot be opened", "no such folder")


@pytest.mark.parametrize(
    ("words", "phrases"),
    [
        (["--method", "ia3", "--rank", 4], ["--method ia3 has no --rank"]),
        (["--method", "lora", "--rank", 4000], ["4000"]),
        (["--method", "lora", "--targets", "*.qproj"], ["*.qproj", "q_proj"]),
        (
            ["--method", "lora", "--bits", 3, "--layer-decay", 0.9],
            ["--bits 3: expected 8 or 4", "--layer-decay is for"],
        ),
        (["--method", "bitfit"], ["matches no module with a bias"]),
        (["--method", "lora", "--preset", "modern-tiny"], ["leave out --preset"]),
    ],
)
def test_what_cannot_be_tuned(refused, made, other, tmp_path, words, phrases):
    refused(["tune", made, "--data", other, "--out", tmp_path / "run", "--steps", 2, *words], *phrases)
    assert not (tmp_path / "run").exists()


def test_options_of_a_method_without_one(refused, other, tmp_path):
    words = ["train", "translation", "--data", other, "--out", tmp_path / "run", "--steps", 2]
    refused([*words, "--rank", 4], "--rank goes with --method")
    refused([*words, "--method", "lora"], "--model is missing")


def test_several_parts_on_one_model(plait, made, other, tmp_path):
    """Each request by its own part: the answers are those of the runs opened alone, and without a part those of the base."""
    texts = ["a b c d", "h g f", "e e a"]
    for seed, method in enumerate(("lora", "prefix")):
        words = ["tune", made, "--method", method, "--data", other, "--out", tmp_path / method, "--steps", 12, "--seed", seed]
        code, _, err = plait(*words, "--batch-tokens", 512, "--learning-rate", "0.02", *QUIET)
        assert code == 0, err
    alone = {name: library.load(tmp_path / name)(texts) for name in ("lora", "prefix")}
    model = library.load(made)
    base = model(texts)
    library.adapt(model, lora=tmp_path / "lora", prefix=tmp_path / "prefix")
    assert model(texts) == base != alone["lora"] != alone["prefix"]
    for name in ("prefix", "lora", "prefix"):
        with library.using(model, name):
            assert model(texts) == alone[name]
    assert model(texts) == base
    with pytest.raises(library.InputError, match="cannot be put on this model") as caught:
        library.adapt(model, x=made)
    assert "no finished run of `plait tune`" in str(caught.value.faults)


def test_the_doctor_knows_that_the_rest_is_frozen_on_purpose(plait, made, other):
    words = ["doctor", "translation", "--model", made, "--data", other, "--method", "lora", "--batch-tokens", 512, "--seconds", 4, "--json"]
    _, out, err = plait(*words)
    found = {row["name"]: row for row in map(json.loads, out.splitlines())}
    assert found["frozen"]["level"] == "ok" and "as tuning a small part wants" in found["frozen"]["seen"], err
    assert found["gradients"]["level"] == "ok", found
