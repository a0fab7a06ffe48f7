"""Language models and masked ones, from small files through the command line: trained, stopped and resumed, run, scored."""

import json
import random
import signal

import pytest
from safetensors.torch import load_file

from plait.data import store
from plait.tasks.language import NextToken
from plait.tasks.masked import MaskedTokens
from plait.tasks.translation import TeacherForcing

WORDS = "the cat sat on a mat and saw one dog run far to see its red hat".split()
LM = ["--preset", "modern-decoder-tiny", "--tokenizer", "characters", "--context", "16", "--batch-tokens", "256", "--threads", "1"]
MLM = ["--preset", "modern-encoder-tiny", "--tokenizer", "words", "--documents", "line", "--context", "12", "--batch-tokens", "256"]


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    draw, path = random.Random(0), tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(" ".join(draw.choices(WORDS, k=draw.randint(4, 9))) + ".\n" for _ in range(120)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def asked(tmp_path_factory):
    draw, path = random.Random(1), tmp_path_factory.mktemp("text") / "asked.jsonl"
    rows = [{"prompt": f"{(word := draw.choice(WORDS))} is", "completion": f" {word[::-1]}"} for _ in range(120)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def result(said) -> dict:
    code, out, err = said
    assert code == 0, err
    return json.loads(out)


def test_from_a_text_to_a_model_that_writes_and_is_scored(plait, text, tmp_path):
    code, out, err = plait("train", "language-model", "--data", text, "--out", tmp_path / "run", "--steps", 60, *LM)
    assert code == 0, err
    n = len(text.read_text())
    assert f"one document, {n:,} characters; to validate on: its last {n - int(0.9 * n):,} characters" in err
    assert "100.0% of which are filled" in err or "99." in err
    made = json.loads(out)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["context"] == 16 and list(saved["files"]) == [str(text)]
    code, out, err = plait("run", tmp_path / "run", "the cat", "--max-new-tokens", 5)
    assert code == 0 and len(out.strip()) > 0, err
    scored = result(plait("eval", tmp_path / "run"))
    # The same tokens, with half a window before each where validation begins its windows with nothing: nearly the same figure.
    assert scored["metrics"]["nats_per_token"] == pytest.approx(made["valid_loss"], rel=0.05)
    assert scored["metrics"]["nats_per_token"] < scored["baselines"]["unigram"]["nats_per_token"]
    assert scored["characters"] == scored["tokens"] - 1  # every character but the first, and the end
    assert result(plait("eval", tmp_path / "run", "--data", text, "--limit", 1))["n"] == 1


def test_prompts_are_read_and_not_learned(plait, asked, tmp_path):
    code, _, err = plait("train", "language-model", "--data", asked, "--out", tmp_path / "run", "--steps", 5, *LM)
    assert code == 0, err
    assert "are learned and the others only read" in err
    scored = result(plait("eval", tmp_path / "run", "--data", asked))
    rows = [json.loads(line) for line in asked.read_text().splitlines()]
    assert scored["n"] == 120 and scored["characters"] == sum(len(row["completion"]) for row in rows)
    assert scored["tokens"] == scored["characters"] + 120  # and the end of each


def stopping(monkeypatch, objective, step: int) -> None:
    """Ctrl-C while this step is computed."""
    calls, plain = [], objective.loss

    def loss(self, net, batch):
        calls.extend([1] * net.training)
        if len(calls) == step and net.training:
            signal.raise_signal(signal.SIGINT)
        return plain(self, net, batch)

    monkeypatch.setattr(objective, "loss", loss)


@pytest.mark.parametrize(("task", "on_disk"), [("language-model", True), ("masked-lm", False)])
def test_resumed_with_workers_is_uninterrupted(plait, text, tmp_path, monkeypatch, task, on_disk):
    if on_disk:
        monkeypatch.setattr(store, "IN_MEMORY", 0)
    words = ["train", task, "--data", text, "--steps", 40, "--evaluations", 2, *(LM if task == "language-model" else MLM)]
    result(plait(*words, "--out", tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stopping(patch, NextToken if task == "language-model" else MaskedTokens, 33)  # not in the first epoch, nor at its border
        code, _, err = plait(*words, "--out", tmp_path / "cut", "--workers", 2)
    assert code == 130 and "--resume" in err
    assert (tmp_path / "cut" / "data" / "train" / "ids").exists() == on_disk
    if on_disk:
        monkeypatch.setattr(store, "encoded", None)  # what lies there is not made again
    result(plait("train", task, "--out", tmp_path / "cut", "--resume", "--workers", 3))
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(tensor.equal(cut[name]) for name, tensor in whole.items())


def test_a_file_that_changed_is_named(plait, refused, text, tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("a.txt", "b.txt")]
    for i, path in enumerate(files):
        path.write_text(f"{i} " + text.read_text())
    with monkeypatch.context() as patch:
        stopping(patch, NextToken, 3)
        assert plait("train", "language-model", "--data", *files, "--out", tmp_path / "run", "--steps", 9, *LM)[0] == 130
    files[1].write_text("other")
    refused(["train", "language-model", "--out", tmp_path / "run", "--resume"], "b.txt: changed since this run began")


def test_hidden_words_are_found(plait, text, tmp_path):
    done = result(plait("train", "masked-lm", "--data", text, "--out", tmp_path / "run", "--steps", 20, *MLM))
    assert 0 <= done["accuracy"] <= 1
    code, out, err = plait("run", tmp_path / "run", "the <mask> sat", "--n-best", 2)
    assert code == 0 and len(out.strip().splitlines()) == 2, err
    scored = result(plait("eval", tmp_path / "run"))
    assert scored["metrics"] == pytest.approx({"nats_per_token": done["valid_loss"], "accuracy": done["accuracy"]}, abs=1e-4)
    assert scored["baselines"]["unigram"]["nats_per_token"] > 0


def test_what_cannot_be_trained_is_told(refused, text, asked, tmp_path):
    talk = tmp_path / "talk.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"hello {i}"}, {"role": "assistant", "content": "good day"}]} for i in range(30)]
    talk.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = ["--out", tmp_path / "run", "--steps", 2]
    refused(["train", "language-model", "--data", talk, text, *run, *LM], "talk.jsonl:", "conversations need a chat template")
    refused(["train", "language-model", "--data", "absent.txt", "gone.txt", *run, *LM], "absent.txt: no such file", "gone.txt: no such")
    refused(["train", "language-model", "--data", asked, "--columns", "text=Body", *run, *LM], "missing column: 'Body'; there is 'prompt'")
    refused(["train", "masked-lm", "--data", text, *run, *MLM, "--whole-words"], "does not mark where words")
    assert not (tmp_path / "run").exists()


SPANS = ["--preset", "t5-tiny", *MLM[2:], "--objective", "span", "--evaluations", 2]


def test_hidden_spans_are_written(plait, refused, text, tmp_path, monkeypatch):
    words = ["train", "masked-lm", "--data", text, *SPANS, "--out"]
    done = result(plait(*words, tmp_path / "run", "--steps", 40, "--learning-rate", "0.01", "--warmup", 5))
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["answers"] == {"decoder_start_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    code, out, err = plait("run", tmp_path / "run", "the cat <extra_id_0> a mat")
    assert code == 0 and "<extra_id_0>" in out, (out, err)  # the first that it learns is how an answer begins
    scored = result(plait("eval", tmp_path / "run"))
    assert scored["metrics"] == pytest.approx({"nats_per_token": done["valid_loss"], "accuracy": done["accuracy"]}, abs=1e-4)
    assert scored["metrics"]["nats_per_token"] < 4  # of 138 tokens

    words.insert(-1, "--steps=20")
    result(plait(*words, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stopping(patch, TeacherForcing, 13)
        assert plait(*words, tmp_path / "cut", "--workers", 2)[0] == 130
    result(plait("train", "masked-lm", "--out", tmp_path / "cut", "--resume"))
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(tensor.equal(cut[name]) for name, tensor in whole.items())

    refused([*words, tmp_path / "no", "--whole-words"], "--whole-words goes with --objective mask")


def test_spans_from_a_released_model(plait, refused, text, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
    result(plait("train", "masked-lm", "--data", text, "--out", tmp_path / "run", "--steps", 2, *SPANS))
    sizes = dict(vocab_size=144, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    config = transformers.T5Config(**sizes, decoder_start_token_id=3, eos_token_id=2, pad_token_id=0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "t5" / name).write_text((tmp_path / "run" / name).read_text())
    words = ["train", "masked-lm", "--data", text, "--objective", "span", "--documents", "line", "--context", 12, "--steps", 2]
    result(plait(*words, "--model", tmp_path / "t5", "--out", tmp_path / "on"))
    saved = json.loads((tmp_path / "on" / "config.json").read_text())
    assert saved["config"]["vocab_size"] == 144 and saved["answers"]["decoder_start_token_id"] == 3  # as the model says, not as usual
    code, _, err = plait("run", tmp_path / "on", "the cat <extra_id_0> a mat")
    assert code == 0, err
    result(plait("train", "masked-lm", "--data", text, "--out", tmp_path / "mlm", "--steps", 2, *MLM))
    refused([*words, "--model", tmp_path / "mlm", "--out", tmp_path / "no"], "has encoder, masked-lm trains a model of one encoder and one")
