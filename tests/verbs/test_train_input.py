"""What `plait train` says to wrong input: exit code 2, no traceback, what is wrong and what to do; and nothing is left behind."""

import json
import shutil

import pytest

from plait.verbs import train as train_verb
from plait.verbs.train import Train

STEPS = ["--steps", "2", "--preset", "modern-tiny"]


def train(data, out, *more):
    return ["train", "translation", "--data", data, "--out", out, *(more or STEPS)]


def file_of(tmp_path, content, name="pairs.tsv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "phrases"),
    [
        (None, ["pairs.tsv: no such file", "Expected: tab-separated lines"]),
        ("", ["pairs.tsv: is empty"]),
        ("\n \n", ["pairs.tsv: has 2 lines, all of them blank"]),
        ("one\ntwo\nthree\n", ["one column only", "expected source TAB target", "pairs.tsv"]),
        ("one\ttwo\n", ["1 distinct source", "at least 2 distinct sources are needed"]),
        ("a\t\n\tb\n", ["no usable pair is left after cleaning", "empty target"]),
        (b"\xff\xfe\xfa\tb\n\xe4\xf6\tc\n", ["pairs.tsv", "UTF-8"]),
    ],
    ids=["missing", "empty", "blank", "one column", "one pair", "empty sides", "not UTF-8"],
)
def test_data_that_cannot_be_used(content, phrases, refused, tmp_path):
    path = tmp_path / "pairs.tsv" if content is None else file_of(tmp_path, content)
    refused(train(path, tmp_path / "run"), *phrases)
    assert not (tmp_path / "run").exists()


def test_a_folder_is_no_file(refused, tmp_path):
    refused(train(tmp_path, tmp_path / "run"), "is a directory; expected a file")


def test_validation_data_is_judged_too(refused, pairs, tmp_path):
    refused(train(pairs, tmp_path / "run", *STEPS, "--valid", file_of(tmp_path, "a\t\n")), "no usable pair is left to validate on")
    refused(train(pairs, tmp_path / "run", *STEPS, "--valid", tmp_path / "none.tsv"), "none.tsv: no such file")


@pytest.mark.parametrize(
    ("name", "phrases"),
    [
        ("cmudcit", ["cmudcit: no such file", "nor is it a built-in set; did you mean cmudict?"]),
        ("home-asistant:en-de", ["did you mean home-assistant:en-de"]),
        ("qqq", ["qqq: nor is it a built-in set; plait data lists them"]),
    ],
)
def test_an_unknown_set_suggests_a_near_one(name, phrases, refused, tmp_path, monkeypatch):
    monkeypatch.setattr("plait.data.builtin.fetch", None)  # nothing is to be fetched
    refused(train(name, tmp_path / "run"), *phrases)


def test_a_set_cannot_be_joined_with_files(refused, pairs, tmp_path):
    words = ["train", "translation", "--data", "cmudict", pairs, "--out", tmp_path / "run", *STEPS]
    refused(words, "cmudict: is a built-in set, which cannot be joined with files")


def test_without_a_network_the_file_to_get_is_named(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("plait.data.packages.PATIENCE", 30)
    for name in ("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setattr("shutil.which", lambda name: None)  # uv would try its own ways
    monkeypatch.setattr("plait.data.packages._download", retried_never(monkeypatch))
    refused(
        train("home-assistant:en-de", tmp_path / "run"), "homeassistant-2024.3.3-py3-none-any.whl", "put it into", str(tmp_path / "cache")
    )


def retried_never(monkeypatch):
    """The real download, with pip's two retries (three seconds of waiting) taken out."""
    import subprocess

    from plait.data import packages

    real, run = packages._download, subprocess.run

    def once(command, **how):
        return run([word if word != "2" else "0" for word in command], **how)

    monkeypatch.setattr(packages.subprocess, "run", once)
    return real


BAD = {
    "steps": ("0", "-1"),
    "learning-rate": ("0", "-1", "inf", "nan", "x"),
    "batch-tokens": ("0", "1.5"),
    "warmup": ("0",),
    "patience": ("-1", "0"),
    "accumulate": ("0",),
    "evaluations": ("0",),
    "average": ("-2",),
    "vocab-size": ("0",),
    "weight-decay": ("-0.1", "inf"),
    "layer-decay": ("0", "1.5", "nan"),
    "clip": ("-1",),
    "seed": ("-1",),
    "save-seconds": ("0",),
    "threads": ("0", "-4"),
    "dropout": ("1", "-0.1", "nan"),
    "smoothing": ("1.5",),
    "context": ("7", "-1"),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_numbers_that_make_no_sense(name, value, refused, pairs, tmp_path):
    budget = [] if name == "steps" else ["--steps", "2"]
    refused(train(pairs, tmp_path / "run", *budget, f"--{name}={value}"), f"--{name} {value}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["minutes", "epochs"])
@pytest.mark.parametrize("value", ["0", "-2", "inf", "nan"])
def test_budgets_that_make_no_sense(name, value, refused, pairs, tmp_path):
    refused(train(pairs, tmp_path / "run", f"--{name}={value}"), f"--{name} {value}")


def test_not_a_number_from_python_is_refused_too(pairs, tmp_path):
    with pytest.raises(train_verb.InputError, match=r"--learning-rate nan: must be a number above 0"):
        Train("translation", tmp_path / "run", [str(pairs)], steps=2, learning_rate=float("nan")).run()


def test_all_faults_come_at_once(refused, pairs, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    words = ["train", "translation", "--out", tmp_path / "full", "--steps", "3", "--minutes", "1", "--clip=-1"]
    refused(words, "--data is missing", "--minutes and --steps were given", "--clip -1.0", "is not empty")
    refused(["train", "translation", "--data", pairs, "--out", tmp_path / "run"], "one budget is needed", "none was given")


@pytest.mark.parametrize(
    ("option", "value", "phrases"),
    [
        ("preset", "modern-huge", ["there is no such preset for translation; choose vaswani-tiny", "modern-small"]),
        ("tokenizer", "wordz", ["tokenizer 'wordz' is neither a kind (bpe, unigram, words or characters) nor an existing tokenizer.json"]),
        ("vocab-size", "100", ["vocab_size=100 is too small for a bpe tokenizer"]),
        ("optimizer", "sgd", ["--optimizer sgd: expected muon or adam"]),
    ],
)
def test_unknown_choices(option, value, phrases, refused, pairs, tmp_path):
    more = ["--tokenizer", "bpe"] if option == "vocab-size" else []
    refused(train(pairs, tmp_path / "run", "--steps", "2", *more, f"--{option}", value), *phrases)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_file_that_is_none(refused, pairs, tmp_path):
    refused(train(pairs, tmp_path / "run", *STEPS, "--tokenizer", file_of(tmp_path, "{}", "t.json")), "t.json: is no tokenizer.json")


def test_out_must_be_empty(refused, pairs, made):
    refused(train(pairs, made), "is not empty: choose another folder, or go on with that run by --resume")


def test_long_sentences_are_cut_in_training_and_counted(plait, tmp_path):
    rows = [f"{'ab ' * n}\t{'x y ' * n}\n" for n in range(1, 15)]
    code, _, err = plait(*train(file_of(tmp_path, "".join(rows)), tmp_path / "run", *STEPS, "--context", "8", "--tokenizer", "words"))
    assert code == 0, err
    assert "source cut to 8 tokens: " in err and "target cut to 7 tokens: " in err and "pairs.tsv:" in err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["max_source"] == 8


@pytest.fixture
def stopped(run):
    """The finished run, as if it had been stopped after its third evaluation."""
    (run / "model.safetensors").unlink()
    shutil.rmtree(run / "checkpoints")
    return run


def test_resume_with_another_setting(refused, stopped, tmp_path):
    words = ["train", "translation", "--out", stopped, "--resume"]
    refused(
        [*words, "--learning-rate", "0.5", "--steps", "50"], "--learning-rate: the run has None, now 0.5", "--steps: the run has 40, now 50"
    )
    refused([*words, "--data", tmp_path / "other.tsv"], "--data: the run has", "leave them out, or start a new run")
    refused([*words, "--threads=-1"], "--threads -1")
    refused(["train", "translation", "--out", tmp_path / "none", "--resume"], "there is no such folder")
    refused(["train", "translation", "--out", tmp_path, "--resume"], "has no config.json, so it is not a run")


def test_resume_of_a_finished_run(refused, run):
    refused(["train", "translation", "--out", run, "--resume"], "this run is finished (step 40): start a new one with another --out")


@pytest.mark.parametrize("change", ["words", "rows", "gone"])
def test_resume_on_other_data(change, refused, stopped, pairs, tmp_path):
    """Also where only letters of targets changed: sources, split and every length are as they were."""
    copy = tmp_path / "copy.tsv"
    text = pairs.read_text()
    config = json.loads((stopped / "config.json").read_text())
    config["train"]["data"] = [str(copy)]
    (stopped / "config.json").write_text(json.dumps(config))
    if change != "gone":
        lines = text.splitlines(keepends=True)
        copy.write_text("".join(line.translate(str.maketrans("AB", "BA")) for line in lines) if change == "words" else "".join(lines[:-9]))
    wanted = "no such file" if change == "gone" else "the data changed since this run began; put the old files back"
    refused(["train", "translation", "--out", stopped, "--resume"], wanted)


def test_a_damaged_checkpoint(refused, run):
    last = run / "checkpoints" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    (run / "model.safetensors").unlink()
    refused(["train", "translation", "--out", run, "--resume"], "last.safetensors: is not a whole safetensors file")


def test_a_run_that_never_saved_starts_anew(plait, stopped, made):
    code, out, err = plait("train", "translation", "--out", stopped, "--resume")
    assert code == 0, err
    assert json.loads(out)["steps"] == 40
    steps = [json.loads(line)["step"] for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert steps == [json.loads(line)["step"] for line in (made / "metrics.jsonl").read_text().splitlines()]


def test_the_result_is_one_json_object(plait, pairs, tmp_path):
    code, out, err = plait(*train(pairs, tmp_path / "run", "--epochs", "1", "--preset", "vaswani-tiny", "--quiet", "--evaluations", "1"))
    result = json.loads(out)
    assert code == 0 and err == "" and result["epochs"] == 1.0 and result["run"] == str(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl"}
