"""Encoders that label texts, find entities and answer questions: against the reference implementation on the same tiny checkpoints."""

import io
import itertools
import json
from string import ascii_lowercase

import numpy as np
import pytest
import torch

import plait as library
from plait import cli
from plait.errors import InputError
from plait.tasks.encoding import windows

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "door", "is", "open", "##ed", "anna", "lives", "in", "north", "wood", ".", ",", "?", "-", "who", "where"]
VOCABULARY = [*SPECIAL, *WORDS, *ascii_lowercase, *("##" + letter for letter in ascii_lowercase)]
SIZES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, max_position_embeddings=24)
TEXTS = ["Anna lives in Northwood.", "the door", "", "Änna  opened the DOOR, Zoë-Anna: 漢字\tis in Wood", "x"]
LONG = "Anna lives in Northwood, the door is open; who opened Änna's door? " * 4
BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@pytest.fixture
def make(tmp_path):
    """Saves a tiny BERT of a head as the reference implementation does; returns (folder, the reference, its tokenizer)."""

    def of(head, labels=("no", "yes"), **settings):
        folder = tmp_path / head
        torch.manual_seed(0)
        names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}} if labels else {}
        config = transformers.BertConfig(vocab_size=len(VOCABULARY), **SIZES, **names, **settings)
        net = getattr(transformers, f"Bert{head}")(config).eval()
        for p in net.parameters():
            torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.4)
        if head == "ForTokenClassification":  # random scores mostly prefer one label, whatever the word: level them, so that all occur
            ids = torch.arange(5, 27)[None]
            net.classifier.bias.data -= net(ids).logits[0].mean(0).detach()
        net.save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
        return folder, net, transformers.BertTokenizer(str(folder / "vocab.txt"))

    return of


def piped(monkeypatch, text):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))


# ---- labels of texts ----


@pytest.mark.parametrize(
    ("problem", "labels", "read"),
    [
        (None, ("a", "b", "c"), lambda s: s.softmax(-1)),
        ("single_label_classification", ("a", "b", "c"), lambda s: s.softmax(-1)),
        ("multi_label_classification", ("a", "b", "c", "d"), lambda s: s.sigmoid()),
        ("regression", ("a", "b"), lambda s: s),
        (None, ("value",), lambda s: s),
    ],
)
def test_labels_and_probabilities_are_the_reference(make, problem, labels, read):
    folder, peer, tokenizer = make("ForSequenceClassification", labels, problem_type=problem)
    texts = [*TEXTS[:3], ("the door is open", "who opened it"), ("anna", "x"), "is in", ("", "the the the door is open in the wood")]
    model = library.load(folder)
    for text, found in zip(texts, model(texts), strict=True):
        pair = (text,) if isinstance(text, str) else text
        with torch.no_grad():
            wanted = read(peer(**tokenizer(*pair, return_tensors="pt")).logits[0])
        assert list(found.scores) == list(labels)
        np.testing.assert_allclose(list(found.scores.values()), wanted, atol=2e-5)
        ranked = [labels[i] for i in wanted.argsort(descending=True)]
        if problem == "multi_label_classification":
            assert list(found.labels) == [name for name in ranked if wanted[labels.index(name)] > 0.5]
        elif problem == "regression" or len(labels) == 1:
            assert list(found.labels) == list(labels)
        else:
            assert found.label == ranked[0] and found.score == max(found.scores.values())
        assert model(text).labels == found.labels
    ids = tokenizer("the door")["input_ids"]
    with torch.no_grad():
        np.testing.assert_allclose(model.logits([ids, ids]), peer(torch.tensor([ids, ids])).logits, atol=2e-5)


def test_what_a_classifier_prints(make, capsys):
    folder, *_ = make("ForSequenceClassification", ("no", "yes", "perhaps"))
    model = library.load(folder)
    assert cli.main(["run", str(folder), "the door", "anna"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{one.label}\t{one.score:.4f}" for one in model(["the door", "anna"])]
    assert cli.main(["run", str(folder), "the door", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["labels"] == list(model("the door").labels) and row["scores"] == pytest.approx(model("the door").scores)
    assert cli.main(["run", str(folder), "the " * 23, "the", "the " * 30]) == 2
    told = capsys.readouterr().err
    assert "input 1: is 25 tokens" in told and "input 3: is 32" in told and "takes 24" in told and "input 2" not in told


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"id2label": {"0": "a", "2": "b"}}, "id2label"), ({"id2label": {"0": "a", "1": "a"}}, "id2label"), ({"problem_type": "odd"}, "odd")],
)
def test_a_config_that_does_not_say_what_scores_mean(make, settings, says):
    folder, *_ = make("ForSequenceClassification", ("a", "b"))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(InputError, match=says):
        library.load(folder)


# ---- entities ----


@pytest.mark.parametrize("labels", [BIO, ["O", "PER", "LOC"], ["O", "I-PER", "I-LOC", "B-LOC"]])
def test_entities_are_the_reference(make, labels):
    folder, peer, tokenizer = make("ForTokenClassification", labels)
    pipeline = transformers.TokenClassificationPipeline(model=peer, tokenizer=tokenizer, aggregation_strategy="first", device="cpu")
    model, seen = library.load(folder), 0
    texts = [" ".join(words) for words in itertools.permutations(["Anna", "opened,", "Wood", "Zoë"], 3)] + TEXTS[:2] + TEXTS[4:]
    for text, found in zip(texts, model(texts), strict=True):
        wanted = pipeline(text)
        assert [(e.label, e.start, e.end) for e in found] == [(w["entity_group"], w["start"], w["end"]) for w in wanted]
        np.testing.assert_allclose([e.score for e in found], [w["score"] for w in wanted], atol=2e-5)
        assert all(text[e.start : e.end] == e.text for e in found)
        seen += len(found)
        ids = model.encode(text)
        with torch.no_grad():
            np.testing.assert_allclose(model.logits(ids)[0], peer(torch.tensor([ids])).logits[0], atol=5e-5)
    assert seen > len(texts) / 2  # a model that finds nothing would prove nothing


def test_a_long_text_is_judged_where_each_piece_has_most_text_around_it(make):
    folder, peer, _ = make("ForTokenClassification", BIO)
    model = library.load(folder)
    ids = model.tokenizer.encode(LONG)
    (table,) = model.tag.probabilities([ids])
    assert len(ids) > 3 * 22 and table.shape == (len(ids), len(BIO))
    parts = windows(len(ids), 22)
    with torch.no_grad():
        chances = [peer(torch.tensor([[2, *ids[w.start : w.stop], 3]])).logits[0, 1:-1].softmax(-1) for w in parts]

    def around(w, t):
        return min(t - w.start if w.start else len(ids), w.stop - 1 - t if w.stop < len(ids) else len(ids))

    for t in range(len(ids)):
        most = max(around(w, t) for w in parts if t in w)
        assert most >= 5  # a quarter of the window, but for rounding
        near = [p[t - w.start] for w, p in zip(parts, chances, strict=True) if t in w and around(w, t) >= most - 1]
        assert min(float((p - table[t]).abs().max()) for p in near) < 2e-5
    assert max(e.end for e in model(LONG)) > 0.9 * len(LONG)
    for found, text in zip(model([TEXTS[0], LONG, TEXTS[1]]), (TEXTS[0], LONG, TEXTS[1]), strict=True):
        assert [(e.label, e.start, e.end) for e in found] == [(e.label, e.start, e.end) for e in model(text)]


def test_what_a_tagger_prints(make, capsys):
    folder, *_ = make("ForTokenClassification", BIO)
    model = library.load(folder)
    assert cli.main(["run", str(folder), TEXTS[0], "", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["entities"] for r in rows] == [[pytest.approx(vars(e)) for e in found] for found in model([TEXTS[0], ""])]
    assert cli.main(["run", str(folder), TEXTS[0]]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{e.text}\t{e.label}\t{e.score:.4f}" for e in model(TEXTS[0])]


# ---- answers ----


def brute(peer, tokenizer, question, context, longest):
    """Every span's best score over the windows, in float64, and the score of no answer; from the reference alone."""
    q, c = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question, context))
    spans, nulls = {}, []
    for w in windows(len(c), 24 - len(q) - 3):
        ids = torch.tensor([[2, *q, 3, *c[w.start : w.stop], 3]])
        types = torch.tensor([[0] * (len(q) + 2) + [1] * (len(w) + 1)])
        with torch.no_grad():
            out = peer(ids, token_type_ids=types)
        start, end = out.start_logits[0].double().numpy(), out.end_logits[0].double().numpy()
        nulls.append(start[0] + end[0])
        for i, j in itertools.product(range(len(w)), repeat=2):
            if i <= j < i + longest:
                key = (w.start + i, w.start + j)
                spans[key] = max(spans.get(key, -np.inf), start[len(q) + 2 + i] + end[len(q) + 2 + j])
    return spans, min(nulls)


@pytest.mark.parametrize("longest", [1, 3, 30])
@pytest.mark.parametrize("context", [TEXTS[0], TEXTS[3], LONG])
def test_answers_are_the_best_of_all_spans(make, context, longest):
    folder, peer, tokenizer = make("ForQuestionAnswering", ())
    peer.double()
    model, question = library.load(folder), "Who lives in the wood?"
    spans, null = brute(peer, tokenizer, question, context, longest)
    places = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ranked = sorted(spans, key=spans.__getitem__, reverse=True)[:4]
    total = np.logaddexp.reduce(list(spans.values()))
    found = model(question, context, n_best=4, max_answer_tokens=longest)
    assert [(a.start, a.end) for a in found] == [(places[i][0], places[j][1]) for i, j in ranked]
    np.testing.assert_allclose([a.score for a in found], [np.exp(spans[key] - total) for key in ranked], atol=1e-5)
    np.testing.assert_allclose([a.null for a in found], null - spans[ranked[0]], atol=2e-5)
    assert all(a.text == context[a.start : a.end] for a in found)
    over = null - spans[ranked[0]]
    both = np.logaddexp(total, null)
    none = model(question, context, null_threshold=over - 0.01, max_answer_tokens=longest)
    assert (none.text, none.start, none.end) == ("", 0, 0) and none.score == pytest.approx(np.exp(null - both), abs=1e-5)
    some = model(question, context, null_threshold=over + 0.01, max_answer_tokens=longest)
    assert some.start == found[0].start and some.score == pytest.approx(np.exp(spans[ranked[0]] - both), abs=1e-5)


def test_several_questions_and_contexts(make):
    folder, *_ = make("ForQuestionAnswering", ())
    model = library.load(folder)
    questions, contexts = ["who lives", "where is the door?", "who"], [TEXTS[0], LONG, TEXTS[3]]
    alone = [model(q, c) for q, c in zip(questions, contexts, strict=True)]
    for one, other in zip(model(questions, contexts), alone, strict=True):
        assert (one.start, one.end) == (other.start, other.end) and one.score == pytest.approx(other.score, abs=1e-5)
    assert [a.start for a in model(questions, LONG)] == [model(q, LONG).start for q in questions]
    with pytest.raises(InputError, match="3 questions with 2 contexts"):
        model(questions, contexts[:2])
    with pytest.raises(InputError) as error:
        model(["who", "who " * 20], ["  ", "the door"])
    assert "input 1: the context has no words" in str(error.value) and "input 2: the question is 20 tokens" in str(error.value)
    ids = model.encode("the door")
    assert model.logits([ids, ids]).shape == (2, len(ids), 2)


def test_what_a_model_that_answers_prints(make, capsys, tmp_path, monkeypatch):
    folder, *_ = make("ForQuestionAnswering", ())
    model, file = library.load(folder), tmp_path / "context.txt"
    file.write_text(TEXTS[3], encoding="utf-8")
    best = model(["who lives", "where"], TEXTS[3])
    for context in (TEXTS[3], str(file)):
        assert cli.main(["run", str(folder), "who lives", "where", "--context", context]) == 0
        assert capsys.readouterr().out.splitlines() == [f"{' '.join(a.text.split())}\t{a.score:.4f}" for a in best]
    given = [{"question": "who lives", "context": TEXTS[3]}, {"question": "where", "context": TEXTS[3]}]
    piped(monkeypatch, "\n".join(map(json.dumps, given)))
    assert cli.main(["run", str(folder), "--json", "--n-best", "2", "--null-threshold", "1e9"]) == 0
    rows = [json.loads(line)["answers"] for line in capsys.readouterr().out.splitlines()]
    assert [row[0]["start"] for row in rows] == [a.start for a in best] and [len(row) for row in rows] == [2, 2]
    piped(monkeypatch, "who\n" + json.dumps(given[0]) + '\n{"question": 3, "context": "a"}\n[]\n')
    assert cli.main(["run", str(folder)]) == 2
    told = capsys.readouterr().err
    assert "input 1: 'who'" in told and "input 2" not in told and "input 3" in told and "input 4" in told and "Traceback" not in told
    file.write_bytes(b"the \xff door")
    assert cli.main(["run", str(folder), "who", "--context", str(file)]) == 2
    assert "is not UTF-8" in capsys.readouterr().err


# ---- nearest texts ----


def test_texts_are_ranked_by_cosine(make, tmp_path, capsys):
    folder, *_ = make("Model", ())
    model, texts = library.load(folder), ["the door is open", "anna lives in the wood", "the door", "who", "x y z"]
    queries = ["the door", "anna"]
    vectors, asked = model(texts).astype(np.float64), model(queries).astype(np.float64)
    cosines = asked @ vectors.T / np.linalg.norm(asked, axis=1)[:, None] / np.linalg.norm(vectors, axis=1)
    for row, found in zip(cosines, model.similar(queries, texts, n_best=3), strict=True):
        assert [f.index for f in found] == np.argsort(-row)[:3].tolist() and [f.text for f in found] == [texts[f.index] for f in found]
        np.testing.assert_allclose([f.score for f in found], np.sort(row)[::-1][:3], atol=1e-6)
    assert model.similar("the door", texts)[0].text == "the door" and len(model.similar("the door", texts)) == 5
    assert model.similar("who", texts[:2], n_best=9)[0].text in texts[:2]  # other texts are not answered from those before
    file = tmp_path / "lines.txt"
    file.write_text("\r\n".join([*texts, "", " "]), encoding="utf-8")
    assert cli.main(["run", str(folder), "--similar", str(file), "the door", "anna"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and lines[0] == "1.0000\tthe door"
    assert cli.main(["run", str(folder), "--similar", str(file), "the door", "--n-best", "2", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert [f["text"] for f in row["similar"]] == [f.text for f in model.similar("the door", texts, 2)]
    file.write_text("\n")
    for words, says in (
        (["--similar", str(file)], "no texts"),
        (["--similar", str(tmp_path)], "cannot be read"),
        (["--n-best", "2"], "--similar"),
    ):
        assert cli.main(["run", str(folder), "the door", *words]) == 2
        assert says in capsys.readouterr().err


# ---- vectors ----


def sentences(folder, said, **files):
    """The files that a model of sentence embeddings has beside its encoder."""
    parts = [("a.Transformer", ""), ("a.Pooling", "1_Pooling"), ("a.Normalize", "2_Normalize")]
    (folder / "modules.json").write_text(json.dumps([{"type": kind, "path": path} for kind, path in parts[: 2 + ("unit" in said)]]))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{name}": True for name in said if name != "unit"}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("said", [["mean_tokens"], ["cls_token"], ["max_tokens"], ["mean_tokens", "unit"], None])
def test_vectors_are_pooled_as_the_checkpoint_says(make, said):
    folder, peer, tokenizer = make("Model", None)
    if said:
        sentences(folder, said, sentence_bert_config={"max_seq_length": 12, "do_lower_case": False})
    length = 12 if said else SIZES["max_position_embeddings"]
    texts = [*TEXTS, LONG]  # of many lengths, so that most are padded
    for text, vector in zip(texts, library.load(folder)(texts), strict=True):
        ids = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            hidden = peer(**ids).last_hidden_state[0].double()
        wanted = {"cls_token": hidden[0], "max_tokens": hidden.amax(0)}.get(said[0] if said else "", hidden.mean(0))
        np.testing.assert_allclose(vector, wanted / wanted.norm() if said and "unit" in said else wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("said", "files", "says"),
    [
        (["mean_tokens", "cls_token"], {}, "pools by"),
        (["weightedmean_tokens"], {}, "pooling_mode_weightedmean_tokens"),
        (["cls_token"], {"sentence_bert_config": {"max_seq_length": "12"}}, "max_seq_length='12'"),
        (["cls_token"], {"sentence_bert_config": {"max_seq_length": 12, "do_lower_case": True}}, "do_lower_case"),
        (["cls_token"], {"config_sentence_transformers": {"default_prompt_name": "query"}}, "default_prompt_name='query'"),
        (["cls_token"], {"modules": [{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "d"}]}, "Dense"),
        (["cls_token"], {"modules": {}}, "modules.json: is not the list"),
        (["cls_token"], {"modules": [{"type": "a.Pooling", "path": "away"}]}, "away/config.json: cannot be read"),
    ],
)
def test_vectors_that_cannot_be_made_as_the_checkpoint_says(make, said, files, says):
    folder, *_ = make("Model", None)
    sentences(folder, said, **files)
    with pytest.raises(InputError) as error:
        library.load(folder)
    assert says in str(error.value)


def test_a_length_without_room_for_a_text(make):
    folder, *_ = make("Model", None)
    sentences(folder, ["mean_tokens"], sentence_bert_config={"max_seq_length": 2})
    with pytest.raises(InputError, match="no room"):
        library.load(folder)("the door")


# ---- what is asked for ----


def test_what_cannot_be_asked_for(make):
    folder, *_ = make("ForQuestionAnswering", None)
    model = library.load(folder)
    with pytest.raises(InputError) as error:
        model("who", "the door", n_best=-1, max_answer_tokens=0)
    assert error.value.faults == ["n_best=-1: give a whole number from 1", "max_answer_tokens=0: give a whole number from 1"]
    torch.nn.init.constant_(model.net.get_submodule("encoder.embed.tokens").weight, float("nan"))
    with pytest.raises(InputError, match="scores are not numbers"):
        model("who", "the door")
    folder, *_ = make("ForSequenceClassification")
    with pytest.raises(InputError, match="3 texts in one tuple"):
        library.load(folder)(("the", "door", "is"))
