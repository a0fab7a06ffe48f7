"""`plait compress` from the command line: what it writes is a run like any other, and says what it cost."""

import json

import pytest
import torch
from PIL import Image

import plait as front
from plait.compress import prune

LM = ["--preset", "modern-decoder-nano", "--tokenizer", "characters", "--context", "16", "--batch-tokens", "256", "--threads", "1"]
TEXT = "the cat sat on a mat and saw one dog run far to see its red hat. " * 60


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def lm(tmp_path_factory, text):
    from plait.cli import main

    run = tmp_path_factory.mktemp("runs") / "lm"
    assert main(["train", "language-model", "--data", str(text), "--out", str(run), "--steps", "30", "--quiet", *LM]) == 0
    return run


def rows(said) -> list[dict]:
    code, out, err = said
    assert code == 0, err
    return json.loads(out)


def test_methods_side_by_side(plait, lm, text, tmp_path):
    out = tmp_path / "all"
    found = rows(plait("compress", lm, "--method", "int8", "gptq", "heads", "2:4", "--share", 0.25, "--data", text, "--out", out, "--json"))
    assert [row["model"] for row in found] == ["as it was", "int8", "gptq", "heads 0.25", "2:4"]
    whole, int8, gptq, heads, sparse = found
    assert gptq["megabytes"] < int8["megabytes"] < whole["megabytes"] and heads["megabytes"] < whole["megabytes"]
    assert abs(sparse["megabytes"] - whole["megabytes"]) < 0.02  # zeros take as much room; a file has names besides
    assert all(row["nats_per_token"] > 0 and row["speed"] > 0 and row["speed_few"] > 0 for row in found)
    assert found == json.loads((out / "table.json").read_text())
    with Image.open(out / "trade-off.png") as picture:
        assert picture.size[0] > 800
    for name in ("int8", "gptq", "heads-0.25", "2-4"):
        assert plait("run", out / name, "the cat", "--max-new-tokens", 3)[0] == 0
    said = json.loads((out / "heads-0.25" / "config.json").read_text())
    assert said["compressed"] == [{"method": "heads", "share": 0.25, "data": [str(text)]}] and said["config"]["shape"]


def test_a_pruned_run_is_pruned_again(plait, lm, tmp_path):
    code, out, err = plait("compress", lm, "--method", "units", "--share", 0.5, "--out", tmp_path / "units")
    assert code == 0, err
    head, *lines = out.splitlines()
    assert head.split()[:3] == ["model", "megabytes", "speed"] and len(lines) == 2
    assert plait("compress", tmp_path / "units", "--method", "heads", "--share", 0.25, "--out", tmp_path / "both")[0] == 0
    both, expected = front.load(tmp_path / "both").net, prune(front.load(tmp_path / "units").net, "heads", 0.25)
    assert [list(shape) for shape in both.shape] == [["units"], ["heads"]] == [list(shape) for shape in expected.shape]
    with torch.no_grad():
        ids = torch.tensor([[1, 2, 3]])
        assert torch.equal(expected(decoder=ids)["decoder"].x, both(decoder=ids)["decoder"].x)


def test_a_released_model_becomes_a_run(plait, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=12, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    words = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", *"the cat sat on a mat and saw one".split()])}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained(
        tmp_path / "gpt2"
    )
    (tmp_path / "some.txt").write_text("the cat sat on a mat and saw one\n" * 40)
    found = rows(
        plait(
            *("compress", tmp_path / "gpt2", "--method", "heads", "--share", 0.5, "--valid", tmp_path / "some.txt"),
            *("--data", tmp_path / "some.txt", "--out", tmp_path / "small", "--json"),
        )
    )
    assert found[1]["megabytes"] < found[0]["megabytes"] and found[1]["perplexity"] > 1
    whole, small = front.load(tmp_path / "gpt2"), front.load(tmp_path / "small")
    assert small.task == "generate" and small.encode("the cat") == whole.encode("the cat")
    assert small.max_length == whole.max_length and small.ends == whole.ends
    assert sum(p.numel() for p in small.net.parameters()) < sum(p.numel() for p in whole.net.parameters())


def test_what_makes_no_sense_is_refused(plait, refused, lm, text, tmp_path):
    out = ["--out", tmp_path / "no"]
    refused(["compress", lm, "--method", "gtpq", *out], "did you mean gptq?")
    refused(
        ["compress", lm, "--method", "gptq", "heads", "--share", 1.5, *out], "--method gptq needs --data", "--share 1.5: must be above 0"
    )
    refused(["compress", lm, "--method", "heads", "--share", 0.9, *out], "one must stay in each of")
    refused(["compress", lm, "--method", "int8", "--out", lm], "is not empty")
    assert plait("compress", lm, "--method", "int8", "--out", tmp_path / "int8")[0] == 0
    refused(["compress", tmp_path / "int8", "--method", "int4", *out], "no Linear and no token embedding is left that is not quantised")
    refused(["compress", tmp_path / "int8", "--method", "units", *out], "quantised or adapted cannot be made narrower")
    assert not (tmp_path / "no").exists()


def trained_on(plait, text, model, out):
    words = ["train", "language-model", "--data", text, "--model", model, "--out", out, "--steps", 3, "--context", 16]
    code, _, err = plait(*words)
    assert code == 0 and "new:" not in err, err  # every tensor was taken


def test_a_pruned_run_is_trained_on(plait, lm, text, tmp_path):
    assert plait("compress", lm, "--method", "units", "--share", 0.5, "--out", tmp_path / "units")[0] == 0
    trained_on(plait, text, tmp_path / "units", tmp_path / "again")
    small, again = front.load(tmp_path / "units"), front.load(tmp_path / "again")
    shapes = [{name: p.shape for name, p in one.net.named_parameters()} for one in (small, again)]
    assert shapes[0] == shapes[1] and list(again.net.shape) == list(small.net.shape)


def test_a_quantised_run_is_trained_on_from_its_numbers(plait, lm, text, tmp_path):
    assert plait("compress", lm, "--method", "int8", "--out", tmp_path / "int8")[0] == 0
    trained_on(plait, text, tmp_path / "int8", tmp_path / "again")
