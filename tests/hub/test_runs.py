"""A run folder opened as a model, and what half a run gets."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import plait as library
from plait.errors import InputError


def damaged(run, how):
    config = json.loads((run / "config.json").read_text())
    weights = run / "model.safetensors"
    match how:
        case "no config":
            (run / "config.json").unlink()
        case "half a config":
            (run / "config.json").write_text('{"format": 1, "ta')
        case "other format":
            (run / "config.json").write_text(json.dumps({**config, "format": 99}))
        case "list":
            (run / "config.json").write_text("[]")
        case "lacking":
            (run / "config.json").write_text(json.dumps({"format": 1, "task": "translation"}))
        case "other task":
            (run / "config.json").write_text(json.dumps({**config, "task": "sing"}))
        case "other page":
            (run / "config.json").write_text(json.dumps({**config, "arch": "gpt9"}))
        case "unknown setting":
            (run / "config.json").write_text(json.dumps({**config, "config": {**config["config"], "wings": 2}}))
        case "other size":
            (run / "config.json").write_text(json.dumps({**config, "config": {**config["config"], "d_ff": 8}}))
        case "no weights":
            weights.unlink()
        case "half the weights":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "empty weights":
            weights.write_bytes(b"")
        case "other weights":
            save_file({"x": torch.ones(1), **dict(list(load_file(weights).items())[1:])}, weights)
        case "no tokenizer":
            (run / "tokenizer.json").unlink()
        case "half a tokenizer":
            (run / "tokenizer.json").write_text((run / "tokenizer.json").read_text()[:100])
        case "other tokenizer":
            from plait.text.training import train_tokenizer

            train_tokenizer("words", ["a b"]).save(run / "tokenizer.json")
    return run


DAMAGES = {
    "no config": "has no config.json, so it is not a run",
    "half a config": "config.json: cannot be read as JSON",
    "other format": "is a run of format 99, this version of Plait reads format 1",
    "list": "is a run of format None",
    "lacking": "config.json: lacks arch, config, max_source, max_target",
    "other task": "is a run of the task 'sing'",
    "other page": "no model called 'gpt9': there are",
    "unknown setting": "settings that modern does not have: wings",
    "other size": "[32, 16] in the file, [8, 16] in the model",
    "no weights": "has no model.safetensors yet: training stopped before its first evaluation; go on with",
    "half the weights": "model.safetensors: is not a whole safetensors file",
    "empty weights": "model.safetensors: is not a whole safetensors file",
    "other weights": "x: in the file, not in the model",
    "no tokenizer": "tokenizer.json: cannot be read",
    "half a tokenizer": "tokenizer.json: is no tokenizer.json",
    "other tokenizer": "the tokenizers have 6 and 12 tokens, the model 12 and 12",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_half_a_run_is_refused(how, run):
    with pytest.raises(InputError) as error:
        library.load(damaged(run, how))
    assert DAMAGES[how] in str(error.value) and str(run) in str(error.value)


def test_a_run_is_called_with_a_text_or_a_list(run):
    model = library.load(run)
    one, two = model("a b"), model(["a b", "c d e"])
    assert isinstance(one, str) and two[0] == one and len(two) == 2
    assert model.generate("a b") == model("a b", beams=1) and model.generate(["a b"]) == [model("a b", beams=1)]
    assert len(model.target_tokenizer.encode(model.generate("a b c d e f", max_new_tokens=2))) <= 2
    assert model.decode(model.target_tokenizer.encode("A B")) == "A B" and len(model.encode("a b")) == 2
    model.translator.max_source = 0
    with pytest.raises(InputError, match="some inputs cannot be translated"):
        model(["a"])


def test_logits_are_the_nets(run):
    model = library.load(run)
    source, target = model.encode("a b c"), [model.target_tokenizer.bos_id, *model.target_tokenizer.encode("C B")]
    (found,) = model.logits(source, target)
    with torch.no_grad():
        hidden = model.net(encoder=torch.tensor([source]), decoder=torch.tensor([target]))["decoder"].x
        assert torch.equal(torch.from_numpy(found), model.net.heads["lm"](hidden)[0])
    ragged = model.logits([source, source[:2]], [target, target[:1]])
    assert [x.shape[0] for x in ragged] == [3, 1] and (ragged[0] == found).all()
