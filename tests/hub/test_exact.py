"""`exact`, from Python and on the command line: an answer's bits do not depend on what is beside it."""

import io
import json

import pytest

import plait as library
from plait import cli
from plait.core import native
from plait.errors import InputError

pytestmark = pytest.mark.skipif(native.library("step") is None, reason="nothing native can be built here")
TEXTS = ["a b", "c d e f g h a b c d", "h", "b b a"]


def test_runs_answer_with_the_same_scores_alone_and_together(run):
    model = library.load(run, exact=True)
    for beams in (1, 3):
        together = model.answers(TEXTS, beams=beams)
        alone = [model.answers([text], beams=beams)[0] for text in TEXTS]
        assert [(a.text, a.score) for a in alone] == [(a.text, a.score) for a in together]


def test_an_ensemble_is_as_exact_as_its_members(run):
    assert library.load([run, run], exact=True).net.exact and not library.load([run, run]).net.exact


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_language_models(peer_of, tmp_path, bits):
    peer_of("gpt2").save_pretrained(tmp_path)
    model = library.load(tmp_path, exact=True, bits=bits)
    prompts = [[3, 4, 5], [9], [7, 7, 2, 1, 4, 8, 11], [5, 6]]
    assert model.generate(prompts, 9) == [model.generate(prompt, 9) for prompt in prompts]
    drawn = dict(temperature=1.3, seed=5, n=2)
    assert model.generate(prompts, 9, **drawn) == [model.generate(prompt, 9, **drawn) for prompt in prompts]


def test_on_the_command_line(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(TEXTS).encode())))
    assert cli.main(["run", str(run), "--exact", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert cli.main(["run", str(run), TEXTS[1], "--exact", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == rows[1]["score"]


def test_what_is_not_float32_on_a_cpu_is_refused(peer_of, tmp_path):
    peer_of("gpt2").double().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="exactly"):
        library.load(tmp_path, exact=True)
