"""plait train of classify, tag, answer and embed, from small files through the command line to a model that answers."""

import json
import random
from itertools import pairwise

import numpy as np
import pytest

from plait.hub import load
from plait.verbs.eval import Eval
from plait.verbs.lessons import answer, classify, embed, tag

SMALL = [
    "--preset",
    "modern-encoder-tiny",
    "--batch-tokens",
    "512",
    "--warmup",
    "5",
    "--evaluations",
    "2",
    "--tokenizer",
    "words",
    "--quiet",
]
WORDS = {"fruit": "apple pear plum fig lime", "tool": "saw axe drill file rasp", "bird": "wren crow owl duck gull"}
WORDS = {kind: names.split() for kind, names in WORDS.items()}
FILL = "the a some of with and then there".split()


def sentence(draw, *kinds):
    """(words, kinds or None) of a sentence that names something of each kind."""
    words = [(draw.choice(FILL), None) for _ in range(draw.randint(3, 6))]
    for kind in kinds:
        words.insert(draw.randint(0, len(words)), (draw.choice(WORDS[kind]), kind))
    return [word for word, _ in words], [kind for _, kind in words]


def texts(n, seed=0):
    draw = random.Random(seed)
    kinds = [draw.choice([*WORDS]) for _ in range(n)]
    return [(" ".join(sentence(draw, kind)[0]), kind) for kind in kinds]


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(5)
    made = {"classify": write(folder / "classify.tsv", ["label\ttext", *(f"{kind}\t{text}" for text, kind in texts(200))])}
    rows = []
    for text, kind in texts(200, 1):
        more = draw.choice([kind, *WORDS])
        rows.append({"text": f"{text} {draw.choice(WORDS[more])}", "label": sorted({kind, more})})
    made["several"] = write(folder / "several.jsonl", map(json.dumps, rows))
    made["values"] = write(
        folder / "values.csv",
        ["text,label", *(f"{text} {text.split()[0]},{ {'fruit': 1.5, 'tool': -1, 'bird': 0}[kind] }" for text, kind in texts(200, 2))],
    )
    pairs = [(draw.choice([*WORDS]), draw.choice([*WORDS])) for _ in range(200)]
    same = [{"text": draw.choice(WORDS[a]), "second": draw.choice(WORDS[b]), "label": ["other", "same"][a == b]} for a, b in pairs]
    made["pairs"] = write(folder / "pairs.jsonl", map(json.dumps, same))
    blocks = []
    for _ in range(150):
        words, kinds = sentence(draw, *draw.choices([*WORDS], k=2))
        tags = ["O" if kind is None else f"{'I' if kind == before else 'B'}-{kind}" for before, kind in pairwise([None, *kinds])]
        blocks += [f"{word} {tag}" for word, tag in zip(words, tags, strict=True)] + [""]
    made["tag"] = write(folder / "tag.conll", blocks)
    asked = []
    for i in range(240):
        words, kinds = sentence(draw, *WORDS)
        kind = draw.choice([*WORDS])
        at = kinds.index(kind)
        answers = [{"text": words[at], "answer_start": len(" ".join([*words[:at], ""]))}]
        asked.append({"context": " ".join(words), "qas": [{"id": str(i), "question": f"which {kind}", "answers": answers}]})
    made["answer"] = write(folder / "answer.json", [json.dumps({"data": [{"paragraphs": asked}]})])
    names = [(kind, name) for kind, names in WORDS.items() for name in names]
    found = [(draw.choice(FILL) + f" {kind} {name}", f"{name} {draw.choice(FILL)} {draw.choice(FILL)}") for kind, name in names * 20]
    made["embed"] = write(folder / "embed.tsv", ["query\tanswer", *("\t".join(pair) for pair in found)])
    return made


@pytest.fixture
def trained(plait, tmp_path):
    """trained(task, file, *words) -> (the run's folder, what was printed, what was said)"""

    def train(task, file, *words):
        out = tmp_path / "run"
        code, said, err = plait("train", task, "--data", file, "--out", out, *SMALL, *words)
        assert code == 0, err
        return out, json.loads(said), err

    return train


def test_classify_from_a_table_to_answers(trained, plait, data):
    out, figures, _ = trained("classify", data["classify"], "--steps", "25")
    assert figures["accuracy"] > 90 and figures["macro_f1"] > 90
    code, said, _ = plait("run", out, "the plum of the", "some with wren", "--json")
    assert code == 0 and [json.loads(line)["labels"] for line in said.splitlines()] == [["fruit"], ["bird"]]
    ready = load(out)
    assert ready(" ".join(["the"] * 1000)).label in WORDS  # longer than any: cut, as training cut
    found = classify.score(Eval(str(out)), ready)
    assert found["task"] == "classify" and 10 <= found["n"] <= 30
    assert found["metrics"]["accuracy"] == pytest.approx(figures["accuracy"], abs=0.01)
    assert found["baselines"]["majority"]["accuracy"] < 60


def test_the_baseline_is_scikit_learn_s(trained, data):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    out, _, _ = trained("classify", data["classify"], "--steps", "2")
    found = classify.score(Eval(str(out)), load(out))
    assert found["baselines"]["tfidf_logistic"]["accuracy"] > 90 > found["metrics"]["accuracy"]


def test_several_labels_a_text(trained, data):
    out, figures, _ = trained("classify", data["several"], "--steps", "60")
    assert figures["micro_f1"] > 85
    ready = load(out)
    assert ready.problem == "multi" and set(ready("the plum with a saw").labels) == {"fruit", "tool"}
    found = classify.score(Eval(str(out)), ready)
    assert found["metrics"]["micro_f1"] == pytest.approx(figures["micro_f1"], abs=0.01) and found["baselines"]["majority"]["exact"] < 50


def test_values(trained, data):
    out, figures, _ = trained("classify", data["values"], "--steps", "40")
    assert figures["pearson"] > 0.8
    ready = load(out)
    assert ready.problem == "regression" and ready("the plum of a the").scores["value"] > ready("the saw of a the").scores["value"] + 1
    found = classify.score(Eval(str(out)), ready)
    assert found["metrics"]["rmse"] == pytest.approx(figures["rmse"], rel=1e-2) and found["baselines"]["mean"]["rmse"] > figures["rmse"]


def test_pairs_of_texts_reach_the_model_as_pairs(trained, plait, data):
    out, _, _ = trained("classify", data["pairs"], "--steps", "3")
    ready = load(out)
    assert ready(("plum", "fig")).scores != ready(("fig", "plum")).scores
    assert classify.score(Eval(str(out)), ready)["n"] > 5
    code, said, _ = plait("run", out, "plum\tfig", "--json")
    assert code == 0 and json.loads(said)["scores"] == pytest.approx(ready(("plum", "fig")).scores)
    code, said, err = plait("run", out, "plum\tfig", "plum")
    assert code == 2 and len(said.split()) == 2 and "1 of 2 inputs" in err and "two texts with a tab between" in err


def test_tag_from_conll_to_entities(trained, plait, data):
    out, figures, _ = trained("tag", data["tag"], "--steps", "30")
    assert figures["f1"] > 90 and figures["accuracy"] > 95
    code, said, _ = plait("run", out, "the plum of a wren", "--json")
    (line,) = said.splitlines()
    assert code == 0 and [(e["text"], e["label"]) for e in json.loads(line)["entities"]] == [("plum", "fruit"), ("wren", "bird")]
    found = tag.score(Eval(str(out)), load(out))
    assert found["metrics"]["f1"] == pytest.approx(figures["f1"], abs=0.01) and set(found["f1_by_kind"]) <= set(WORDS)
    assert found["baselines"]["most_frequent_tag"]["f1"] > 80  # a word has one meaning here


def test_answer_from_squad_to_answers(trained, plait, data):
    out, figures, _ = trained("answer", data["answer"], "--steps", "120")
    assert figures["exact_match"] > 70 and figures["f1"] >= figures["exact_match"]
    found = answer.score(Eval(str(out)), load(out))
    assert found["metrics"]["exact_match"] == pytest.approx(figures["exact_match"], abs=0.01)
    assert found["baselines"]["sentence_overlap"]["exact_match"] == 0
    code, said, _ = plait("run", out, "which bird", "--context", "the saw and a wren of some lime", "--json")
    assert code == 0 and "text" in json.loads(said)["answers"][0]


def test_embed_from_pairs_to_neighbours(trained, data):
    out, figures, _ = trained("embed", data["embed"], "--steps", "25")
    assert figures["recall@1"] > 50
    ready = load(out)
    vectors = ready(["the fruit plum", "plum and of", "saw of and"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5) and vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert ready.pooling.kind == "mean" and ready.pooling.max_length == 256
    assert embed.score(Eval(str(out)), ready)["metrics"]["recall@1"] == pytest.approx(figures["recall@1"], abs=0.01)


def test_scores_of_pairs_are_compared_by_their_order(trained, data, tmp_path, refused):
    out, _, _ = trained("embed", data["embed"], "--steps", "3")
    ready = load(out)
    pairs = [(f"the fruit {name}", f"{name} and of plum") for names in WORDS.values() for name in names]
    near = [float(ready(a) @ ready(b)) for a, b in pairs]
    scored = write(tmp_path / "s.csv", ["text1,text2,score", *(f"{a},{b},{5 * x**3}" for (a, b), x in zip(pairs, near, strict=True))])
    found = embed.score(Eval(str(out), [str(scored)]), ready)
    assert found["metrics"] == {"spearman": 1.0} and found["n"] == len(pairs)
    assert abs(found["baselines"].get("tfidf", {"spearman": 0.0})["spearman"]) < 1
    refused(["train", "embed", "--data", scored, "--out", tmp_path / "r", "--steps", "2"], "rows with a score are for plait eval")
    odd = write(tmp_path / "odd.csv", ["text1,text2,score", "a,b,high"])
    refused(["eval", out, "--data", odd], f"{odd}:2: the score 'high' is not a number")


@pytest.mark.parametrize("task", ["classify", "tag", "answer", "embed"])
def test_a_finished_run_knows_its_data(trained, plait, data, task):
    out, _, _ = trained(task, data[task], "--steps", "2")
    code, _, err = plait("train", task, "--out", out, "--resume", "--quiet")
    assert code == 2 and "this run is finished" in err
    before = data[task].read_bytes()
    changed = before.replace(b"saw", b"axe")
    assert changed != before
    data[task].write_bytes(changed)
    try:
        code, _, err = plait("train", task, "--out", out, "--resume", "--quiet")
    finally:
        data[task].write_bytes(before)
    assert code == 2 and "the data changed since this run began" in err


# ---- wrong data ----


def start(task, file, out, *words):
    return ["train", task, "--data", file, "--out", out, "--steps", "2", *SMALL, *words]


def test_a_label_that_training_does_not_have(refused, data, tmp_path):
    valid = write(tmp_path / "v.tsv", ["text\tlabel", "a plum\tfruit", "a cod\tfish", "a carp\tfish"])
    refused(start("classify", data["classify"], tmp_path / "r", "--valid", valid), f"{valid}:3: 'fish'", f"{valid}:4", "bird, fruit, tool")
    valid = write(tmp_path / "v.conll", ["a O", "cod B-fish"])
    refused(start("tag", data["tag"], tmp_path / "r", "--valid", valid), f"{valid}:1: B-fish", "B-bird")
    valid = write(tmp_path / "w.csv", ["text,label", "a plum,high"])
    refused(start("classify", data["values"], tmp_path / "r", "--valid", valid), f"{valid}:2: 'high' is not a number")


def test_nothing_to_learn(refused, tmp_path):
    one = write(tmp_path / "one.csv", ["text,label", *(f"word{i},same" for i in range(9))])
    refused(start("classify", one, tmp_path / "r"), "the label 'same'", "nothing to tell apart")
    swapped = write(tmp_path / "swapped.csv", [*(f"{'ab'[i % 2]},this is number {i}" for i in range(50))])
    refused(start("classify", swapped, tmp_path / "r"), "different labels", "--columns text=COLUMN label=COLUMN")
    same = write(tmp_path / "same.csv", ["text,label", "a,x", "A ,y"])
    refused(start("classify", same, tmp_path / "r"), "all rows hold the same text")
    refused(start("tag", write(tmp_path / "o.conll", ["a O", "", "b O"]), tmp_path / "r"), "all words have the tag 'O'")
    rows = [json.dumps({"question": f"q{i}", "context": f"c{i}"}) for i in range(9)]
    refused(start("answer", write(tmp_path / "n.jsonl", rows), tmp_path / "r"), "no question has an answer")


def test_the_balance_of_labels_is_told_with_what_is_wrong_with_it(plait, tmp_path):
    rows = [f"t{i},{'usual' if i else 'odd'}" for i in range(120)]
    path = write(tmp_path / "a.csv", ["text,label", *rows])
    code, _, err = plait(*[word for word in start("classify", path, tmp_path / "r") if word != "--quiet"])
    assert code == 0 and "odd 1 (" in err and "1 labels have a single row" in err and "look at macro_f1" in err


def test_the_validation_set_and_what_is_held_out(plait, data, tmp_path):
    words = [word for word in start("classify", data["classify"], tmp_path / "r", "--valid", data["classify"]) if word != "--quiet"]
    code, _, err = plait(*words)
    assert code == 0 and "200 of 200 rows of --valid stand in --data too" in err


def test_columns_by_name(trained, data, tmp_path):
    path = write(tmp_path / "c.csv", ["Body,Other,Kind", *(f"{text},x,{kind}" for text, kind in texts(60))])
    out, _, _ = trained("classify", path, "--steps", "2", "--columns", "text=Body", "label=Kind")
    assert load(out).labels == sorted(WORDS)
    assert classify.score(Eval(str(out)), load(out))["n"] == 6
