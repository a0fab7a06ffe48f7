"""Every way of decoding on a run of `plait train`, against lists of all its answers and plain loops without a cache; ensembles of runs."""

import json
import shutil
from itertools import pairwise, product

import pytest
import torch
from safetensors.torch import save_file

import plait as library
from plait import cli
from plait.errors import InputError
from plait.generate.search import gnmt
from plait.models import build

LETTERS = "ABCDEFGH"
TEXT = "a d b"


def next_logs(models, text, ids):
    """[V]: the mean of the models' log-probabilities after these ids, made to sum to one; what no translation holds left out after that."""
    with torch.no_grad():
        rows = []
        for model in models:
            source, target = torch.tensor([model.encode(text)]), torch.tensor([[model.target_tokenizer.bos_id, *ids]])
            hidden = model.net(encoder=source, decoder=target)["decoder"].x[0, -1]
            rows.append(model.net.heads["lm"](hidden).double().log_softmax(-1))
        logs = torch.stack(rows).mean(0).log_softmax(-1)
    tokenizer = models[0].target_tokenizer
    logs[[id for id in (tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id) if id != tokenizer.eos_id]] = float("-inf")
    return logs


def every_answer(models, text, may, certain=0, most=3):
    """(score, answer) of all that end within `most` tokens and `may` be, best first; the first `certain` tokens cost nothing."""
    end, known, found = models[0].target_tokenizer.eos_id, {}, []
    for n in range(most):
        for letters in product(LETTERS, repeat=n):
            if not may(letters):
                continue
            ids, total = [models[0].target_tokenizer.encode(letter)[0] for letter in letters], 0.0
            for i, id in enumerate([*ids, end]):
                if letters[:i] not in known:
                    known[letters[:i]] = next_logs(models, text, ids[:i])
                total += float(known[letters[:i]][id]) * (i >= certain)
            found.append((total / gnmt(0.6)(n + 1), " ".join(letters)))
    return sorted(found, reverse=True)


ALL = dict(beams=80, max_new_tokens=3)  # there are 73 answers


@pytest.mark.parametrize(
    ("options", "may", "certain"),
    [
        (dict(required="C"), lambda w: "C" in w, 0),
        (dict(required=["C", "H"]), lambda w: {"C", "H"} <= {*w}, 0),
        (dict(required=["C D"], min_new_tokens=1), lambda w: ("C", "D") in pairwise(w), 0),
        (dict(target_prefix="B G"), lambda w: w[:2] == ("B", "G"), 2),
        (dict(target_prefix="B", required="A"), lambda w: w[:1] == ("B",) and "A" in w, 1),
        (dict(min_new_tokens=2), lambda w: len(w) >= 2, 0),
        (dict(no_repeat_ngram_size=1), lambda w: len({*w}) == len(w), 0),
        (dict(bad_words_ids=[[5], [6, 7]]), lambda w: "B" not in w and ("C", "D") not in pairwise(w), 0),
    ],
)
def test_enough_beams_find_the_best_of_all_answers_that_may_be(run, options, may, certain):
    model = library.load(run)
    assert model.target_tokenizer.encode("B C D") == [5, 6, 7]
    (answer,) = model.answers([TEXT], n_best=5, **ALL, **options)
    wanted = every_answer([model], TEXT, may, certain)[:5]
    said = [(answer.score, answer.text), *((score, text) for text, score in answer.alternatives)][: len(wanted)]  # then what was cut off
    assert [text for _, text in said] == [text for _, text in wanted]
    assert [score for score, _ in said] == pytest.approx([score for score, _ in wanted], abs=2e-5)


def test_greedy_is_the_likeliest_token_each_time_and_guesses_change_nothing(run):
    model = library.load(run)
    for text in (TEXT, "b", "h g f e", "c c c"):
        ids = []
        while len(ids) < 9 and (best := int(next_logs([model], text, ids).argmax())) != model.target_tokenizer.eos_id:
            ids.append(best)
        greedy = model.decode(ids)
        assert model.generate(text) == model(text, beams=1) == model.generate(text, speculate="lookup") == greedy
        assert "".join(model.generate(text, stream=True)) == "".join(model.generate(text, stream=True, speculate="lookup")) == greedy
        assert model.generate(model.encode(text)) == ids == list(model.generate(model.encode(text), stream=True))
        smaller = library.load(run, bits=4)
        assert model.generate(text, speculate=smaller) == greedy
        word = greedy.split()[-1] if greedy else "A"
        assert model.generate(text, stop=word) == greedy[: greedy.find(word)] if greedy else True
        assert model.generate(text, target_prefix="H A").startswith("H A")


def test_the_source_is_where_guesses_come_from_if_it_has_the_same_ids(run, monkeypatch):
    seen = []
    monkeypatch.setattr("plait.tasks.sequences.Lookup", lambda source: seen.append(source) or (lambda text, most: []))
    model = library.load(run)
    model.generate(TEXT, speculate="lookup")
    (run / "target_tokenizer.json").unlink()
    model = library.load(run)
    model.generate(TEXT, speculate="lookup")
    assert seen == [(), model.encode(TEXT)]


def test_drawn_tokens_have_the_models_distribution(run):
    model, n, temperature = library.load(run), 1000, 1.7
    drawn = [ids[0] if ids else model.target_tokenizer.eos_id
             for ids in model.generate(model.encode(TEXT), 1, temperature=temperature, top_k=6, n=n, seed=5)]  # fmt: skip
    logs = next_logs([model], TEXT, []) / temperature
    logs[logs < logs.topk(6).values[-1]] = float("-inf")
    wanted = logs.softmax(-1) * n
    counts = torch.bincount(torch.tensor(drawn), minlength=len(wanted)).double()
    assert (counts[wanted == 0] == 0).all() and counts.sum() == n
    chi_square = float(((counts - wanted) ** 2 / wanted)[wanted > 0].sum())
    assert chi_square < 20.5  # five degrees of freedom: one in a thousand draws is further away
    assert model(TEXT, temperature=1.0, seed=1, n=3) == model([TEXT, "b"], temperature=1.0, seed=1, n=3)[0]


def test_diverse_beams_are_options_of_every_translator(run, capsys):
    model = library.load(run)
    how = dict(beams=4, beam_groups=4, diversity_penalty=30.0, min_new_tokens=2, n=4)
    (answer,) = model.answers([TEXT], **how)
    said = [answer.text, *(text for text, _ in answer.alternatives)]
    assert len({text[0] for text in said}) == 4
    assert model.answers([TEXT], num_beams=4, num_beam_groups=4, diversity_penalty=30.0, min_new_tokens=2, n_best=4) == [answer]
    words = ["--beams", "4", "--beam-groups", "4", "--diversity-penalty", "30", "--min-new-tokens", "2", "--n", "4", "--json"]
    assert cli.main(["run", str(run), TEXT, *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found["answer"], *(other["answer"] for other in found["alternatives"])] == said


def test_words_of_the_answer_on_the_command_line(run, capsys):
    wanted = library.load(run)(TEXT, target_prefix="G", required=["A", "C"])
    words = ["--target-prefix", "G", "--required", "A", "--required", "C"]
    assert cli.main(["run", str(run), TEXT, *words]) == 0 and capsys.readouterr().out == wanted + "\n"
    assert wanted.startswith("G") and {"A", "C"} <= {*wanted.split()}


@pytest.mark.parametrize(
    ("options", "faults"),
    [
        (
            dict(top_k=3, beams=2, n=3, stop="A"),
            ["top_k=3: is of sampling", "n=3 answers: at most as many", "stop strings go with one beam"],
        ),
        (dict(temperature=0.5, beams=4), ["beams are searched, not drawn"]),
        (dict(beams=4, beam_groups=3, required="A z", target_prefix=" "), ["beam_groups=3", "'A z': holds what", "target_prefix=' '"]),
        (
            dict(diversity_penalty=1.0, speculate="lookup"),
            ["diversity_penalty=1.0: groups of beams pay it", "speculation goes with one beam"],
        ),
        (dict(required=["A B C", "D E"], max_new_tokens=5), ["an answer of 5 tokens has no room for what it must hold, which is 5"]),
        (dict(beamz=3, lenght_penalty=1.0), ["beamz=3: there is no such setting", "lenght_penalty=1.0"]),
        (dict(prefix="a", guidance_scale=3.0), ["prefix='a': there is no such setting", "guidance_scale=3.0 is not built"]),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_all_at_once(run, options, faults):
    with pytest.raises(InputError) as error:
        library.load(run)(TEXT, **options)
    assert len(error.value.faults) == len(faults) and all(fault in str(error.value) for fault in faults), str(error.value)


def test_words_of_one_answer_do_not_go_with_a_text_in_pieces(run):
    model = library.load(run)
    assert model("a b c. " * 9) and model("a b c. " * 9, temperature=1.0)
    with pytest.raises(InputError, match="input 2: goes in 2 pieces, and what was asked is of one answer"):
        model([TEXT, "a b c. " * 9], required="A")


def another(run, name, seed=8, **changes):
    """A run with other weights (and shape) than `run`, and its tokenizers."""
    folder = run.parent / name
    shutil.copytree(run, folder)
    described = json.loads((run / "config.json").read_text())
    described["config"] |= changes
    torch.manual_seed(seed)
    net = build("modern", described["config"])
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    save_file(net.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def test_runs_answer_together_by_the_mean_of_their_log_probabilities(run, capsys):
    other = another(run, "other", d_model=24, n_layers=1)
    alone, both = [library.load(run), library.load(other)], library.load([run, other])
    (answer,) = both.answers([TEXT], n_best=5, **ALL)
    wanted = every_answer(alone, TEXT, lambda w: True)[:5]
    assert [answer.text, *(text for text, _ in answer.alternatives)] == [text for _, text in wanted]
    assert [answer.score, *(s for _, s in answer.alternatives)] == pytest.approx([score for score, _ in wanted], abs=2e-5)
    assert every_answer(alone[:1], TEXT, lambda w: True)[:5] != wanted
    texts = [TEXT, "b", "h g f e"]
    assert cli.main(["run", str(run), *texts, "--ensemble", str(other), "--beams", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [both.generate(text) for text in texts]
    assert [both.generate(text, speculate="lookup") for text in texts] == both(texts, beams=1)
    assert len(both.generate(both.encode(TEXT), temperature=1.0, n=3)) == 3
    assert library.load([run])(texts) == alone[0](texts) and library.load([run, run])(texts) == alone[0](texts)
    assert library.load([run, other], bits=8).net.decoder.towers[0].blocks is not None


def test_what_cannot_answer_together_is_said_at_once(run, refused_load):
    other, third = another(run, "other"), another(run, "third")
    shutil.copy(run / "target_tokenizer.json", other / "tokenizer.json")
    (third / "target_tokenizer.json").unlink()
    said = refused_load([run, other, third])
    assert f"{other}: its tokenizer of the input (12 tokens) is not that of {run} (12)" in said
    assert f"{third}: its tokenizer of the output" in said
    assert "at least one" in refused_load([])


@pytest.fixture
def refused_load():
    def check(names):
        with pytest.raises(InputError) as error:
            library.load(names)
        return str(error.value)

    return check


def test_released_models_answer_together(peer_of, tmp_path, refused_load):
    """On ids, since these have no tokenizer: a language model and a pair."""
    places = {}
    for kind in ("gpt2", "bart"):
        for i in (1, 2):
            torch.manual_seed(i)
            places[kind, i] = tmp_path / f"{kind}{i}"
            peer_of(kind).save_pretrained(places[kind, i])
    ids = [3, 7, 11, 5]
    alone = [library.load(places["gpt2", i]) for i in (1, 2)]
    both, text = library.load([places["gpt2", 1], places["gpt2", 2]]), list(ids)
    for _ in range(6):
        text.append(int(torch.stack([torch.tensor(model.logits(text)[0, -1]).log_softmax(-1) for model in alone]).sum(0).argmax()))
    assert both.generate(ids, 6) == text[4:]
    both, alone = library.load([places["bart", 1], places["bart", 2]]), [library.load(places["bart", i]) for i in (1, 2)]
    wanted = torch.stack([torch.tensor(model.logits(ids, [2, 9])).log_softmax(-1) for model in alone]).mean(0)
    assert torch.allclose(torch.tensor(both.logits(ids, [2, 9])).log_softmax(-1), wanted.log_softmax(-1), atol=1e-5)
    assert "its task is generate, that of" in refused_load([places["bart", 1], places["gpt2", 1]])
