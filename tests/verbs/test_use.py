"""`plait run`, `eval` and `inspect`: in pipes, on damaged runs, with wrong numbers."""

import io
import json

import pytest

import plait as library


@pytest.fixture
def stdin(monkeypatch):
    def put(data: bytes):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    return put


def test_an_empty_pipe_has_no_answers(plait, made, stdin):
    stdin(b"")
    assert plait("run", made) == (0, "", "")


def test_a_thousand_lines_have_a_thousand_answers(plait, made, stdin):
    words = ["a b", "c d e", "b", "h g", "f f f a"]
    stdin("".join(f"{words[i % 5]}\n" for i in range(1000)).encode())
    code, out, err = plait("run", made, "--beams", "1", "--batch", "300")
    answers = out.split("\n")
    assert code == 0 and err == "" and answers.pop() == "" and len(answers) == 1000
    assert answers == answers[:5] * 200 and len(set(answers)) > 1
    for word, answer in zip(words, answers, strict=False):
        assert plait("run", made, "--beams", "1", word)[1] == answer + "\n"


def test_an_empty_line_is_answered_by_an_empty_line(plait, made, stdin):
    stdin(b"a b\n\nc d\n")
    code, out, _ = plait("run", made, "--beams", "1")
    assert code == 0 and len(out.splitlines()) == 3 and out.splitlines()[1] == ""


def test_json_has_scores_and_runners_up(plait, made, stdin):
    stdin(b"a b\n\n")
    code, out, _ = plait("run", made, "--json", "--n-best", "3")
    first, second = map(json.loads, out.splitlines())
    assert code == 0 and first["input"] == "a b" and len(first["alternatives"]) == 2 and first["score"] < 0
    assert set(first["alternatives"][0]) == {"answer", "score"}
    assert second == {"input": "", "answer": "", "score": 0.0, "alternatives": []}


def test_bytes_that_are_no_text(refused, made, stdin):
    stdin(b"a b\n\xff\xfe\n")
    refused(["run", made, "--batch", "9"], "standard input, line 2", "not UTF-8")


def test_what_is_too_long_is_answered_in_pieces_or_refused_by_its_number(plait, made, stdin):
    limit = json.loads((made / "config.json").read_text())["max_source"]
    stdin(("a b c. " * limit + "\n").encode())
    code, out, _ = plait("run", made, "--beams", "1")
    assert code == 0 and len(out.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "phrases"),
    [
        (["--beams", "0"], ["--beams 0: must be a number above 0"]),
        (["--beams", "2", "--n-best", "3"], ["n=3 answers: at most as many as beams, which is 2"]),
        (["--n-best", "0"], ["--n-best 0"]),
        (["--batch", "0"], ["--batch 0"]),
        (["--batch=-1"], ["--batch -1"]),
        (["--threads=-1"], ["--threads -1"]),
        (["--length-penalty=inf"], ["--length-penalty inf"]),
        (["--length-penalty=-1"], ["--length-penalty -1"]),
    ],
)
def test_numbers_of_run_that_make_no_sense(words, phrases, refused, made):
    refused(["run", made, "a b", *words], *phrases)


def too_long(run):
    """The run, made to take eight tokens at most, with a tokenizer of characters."""
    config = json.loads((run / "config.json").read_text())
    config["max_source"] = 2
    (run / "config.json").write_text(json.dumps(config))
    return run


def test_a_word_that_is_too_long_is_refused_by_its_place_in_the_stream(plait, run, stdin, tmp_path, monkeypatch):
    """The other lines are answered; its number counts all lines, not those of a batch."""
    run = too_long(run)
    monkeypatch.setattr("plait.tasks.translation.Translator.encode", lambda self, text: self.source_tokenizer.encode(" ".join(text)))
    stdin(b"a\nb\nc\nab\nabc\n")
    code, out, err = plait("run", run, "--batch", "3", "--beams", "1")
    assert code == 2 and len(out.split("\n")) == 6 and all(out.split("\n")[:4]) and out.endswith("\n\n")
    assert "1 of 5 inputs" in err and "input 5: 'abc'... is 3 tokens" in err and "this model takes 2" in err and "larger --context" in err


@pytest.mark.parametrize("verb", ["run", "eval", "inspect"])
def test_half_a_run_is_refused_by_every_verb(verb, refused, run, pairs):
    more = {"run": ["a b"], "eval": ["--data", pairs], "inspect": ["a b", "--out", run.parent / "x.png"]}[verb]
    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-1000])
    refused([verb, run, *more], "model.safetensors: is not a whole safetensors file", "take checkpoints/best.safetensors")
    (run / "config.json").unlink()
    refused([verb, run, *more], "has no config.json, so it is not a run")


def test_a_run_that_is_not_there(refused, tmp_path):
    refused(["run", tmp_path / "none", "x"], "none: there is no such folder")
    (tmp_path / "file").touch()
    refused(["run", tmp_path / "file", "x"], "has no config.json, so it is not a run")


def test_a_stopped_run_answers_with_its_best(plait, run, made):
    (run / "model.safetensors").write_bytes((run / "checkpoints" / "best.safetensors").read_bytes())
    wanted = plait("run", run, "a b c")[1]
    (run / "model.safetensors").unlink()
    assert plait("run", run, "a b c") == (0, wanted, "")


def test_neighbours_are_kept_in_the_run(plait, refused, pairs, tmp_path):
    how = ["--steps", "3", "--preset", "modern-tiny", "--neighbours", "--tokenizer", "words"]
    code, _, err = plait("train", "translation", "--data", pairs, "--out", tmp_path / "run", *how)
    assert code == 0 and "neighbours: " in err
    assert plait("run", tmp_path / "run", "a b c d")[0] == 0
    run = library.load(tmp_path / "run")
    assert run.generate("a b c d", max_new_tokens=run.translator.max_target) == run(
        "a b c d", beams=1
    )  # the neighbour goes in whichever way it is asked
    memory = tmp_path / "run" / "memory.json.gz"
    data = memory.read_bytes()
    for broken in (data[:-20], data[:40] + b"xxxx" + data[44:], b""):
        memory.write_bytes(broken)
        refused(["run", tmp_path / "run", "a"], "the run needs the neighbours it was trained with")
    memory.unlink()
    refused(["run", tmp_path / "run", "a"], "the run needs the neighbours it was trained with")


# ---- eval


def test_eval_is_one_json_object(plait, made, pairs):
    code, out, _ = plait("eval", made, "--data", pairs, "--limit", "20", "--beams", "1")
    result = json.loads(out)
    assert code == 0 and result["task"] == "translation" and result["n"] == 20
    assert set(result["metrics"]) == {"bleu", "chrf", "exact_match", "symbol_error_rate", "sequence_error_rate"}
    assert result["signatures"]["bleu"].startswith("nrefs:") and "version:" in result["signatures"]["chrf"]
    assert result["baselines"]["copy"]["exact_match"] == 0.0 and "nearest_neighbour" in result["baselines"]
    assert result["metrics"]["exact_match"] + result["metrics"]["sequence_error_rate"] == pytest.approx(100, abs=0.01)


@pytest.mark.parametrize("left", ["gone", "only what is scored"])
def test_without_training_data_the_neighbour_is_skipped_with_a_word(left, plait, run, pairs, tmp_path):
    config = json.loads((run / "config.json").read_text())
    config["train"]["data"] = [str(tmp_path / "gone.tsv")] if left == "gone" else [str(pairs)]
    (run / "config.json").write_text(json.dumps(config))
    code, out, err = plait("eval", run, "--data", pairs, "--beams", "1")
    assert code == 0 and list(json.loads(out)["baselines"]) == ["copy"]
    assert "no nearest-neighbour baseline: " in err and ("gone" if left == "gone" else "all sources") in err


def test_eval_writes_its_answers(plait, made, tmp_path):
    data = tmp_path / "test.tsv"
    data.write_text("a b\tB A\na b\tX\nc\tC\n")
    code, out, _ = plait("eval", made, "--data", data, "--out", tmp_path / "deep" / "answers.tsv", "--no-baselines", "--beams", "1")
    lines = [line.split("\t") for line in (tmp_path / "deep" / "answers.tsv").read_text().splitlines()]
    assert code == 0 and "baselines" not in json.loads(out)
    assert [(line[0], line[2]) for line in lines] == [("a b", "B A | X"), ("c", "C")]


def test_what_eval_refuses(refused, made, pairs, tmp_path):
    refused(["eval", made], "--data is missing: give files with right answers that the model was not trained on")
    refused(["eval", made, "--data", tmp_path / "none"], "none: no such file")
    refused(["eval", made, "--data", pairs, "--limit", "0"], "--limit 0: must be a number above 0")
    refused(["eval", made, "--data", pairs, "--beams", "0", "--threads=-1"], "--beams 0", "--threads -1")
    (tmp_path / "empty.tsv").write_text("a\t\n")
    refused(["eval", made, "--data", tmp_path / "empty.tsv"], "holds no pair to score")


# ---- inspect


@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
def test_inspect_draws_each_kind(kind, plait, made, tmp_path):
    code, out, _ = plait("inspect", made, "a b c", "--out", tmp_path / "x" / f"{kind}.png", "--kind", kind, "--layer", "0", "--head", "1")
    assert code == 0 and json.loads(out)["heads"] == 2
    assert (tmp_path / "x" / f"{kind}.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_writes_a_page_for_an_answer_that_was_given(plait, made, tmp_path):
    code, out, _ = plait("inspect", made, "a b c", "--out", tmp_path / "page.html", "--answer", "C B")
    assert code == 0 and json.loads(out)["answer"] == "C B" and "<html" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (["a b", "--out", "x.txt"], "--out x.txt: its name must end in .html"),
        (["a b", "--out", "x.png", "--kind", "sideways"], "--kind sideways: choose encoder, decoder, cross"),
        (["a b", "--out", "x.png", "--layer", "9"], "--layer 9: this model has layers 0 to"),
        (["a b", "--out", "x.png", "--head", "2"], "--head 2: this model has heads 0 to 1"),
        (["a b", "--out", "x.png", "--beams", "0"], "--beams 0: must be a number above 0"),
        (["", "--out", "x.png"], "there is nothing to look at in an empty input"),
        (["a " * 300, "--out", "x.png"], "the input is 300 tokens long, this model takes 256: shorten it"),
    ],
)
def test_what_inspect_refuses(words, phrase, refused, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(["inspect", made, *words], phrase)
    assert not list(tmp_path.iterdir())
