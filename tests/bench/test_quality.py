"""Quality at equal time: what the peer is given, that it learns and answers, and how both are compared."""

from dataclasses import asdict
from pathlib import Path

import pytest

from plait.bench import marian_run, quality
from plait.errors import InputError

OURS = {
    "config": {"d_model": 32, "n_heads": 2, "n_layers": 2, "n_decoder_layers": 1, "d_ff": 64, "dropout": 0.2, "tie": "none"},
    "smoothing": 0.05,
    "batch_tokens": 512,
}


def test_the_peer_gets_what_our_run_has_chosen(tmp_path):
    settings = quality.peer_settings(quality.Job("x", minutes=1), OURS, "same", 1e-3, tmp_path)
    assert settings.size == {"d_model": 32, "n_heads": 2, "n_layers": 2, "n_decoder_layers": 1, "d_ff": 64}
    assert (settings.dropout, settings.smoothing, settings.batch_tokens, settings.rate) == (0.2, 0.05, 512, 1e-3)
    job = quality.Job("x", minutes=1, peer_dropout=0.0)
    settings = quality.peer_settings(job, OURS, "64:2+2", 1e-3, tmp_path)
    assert settings.size["d_model"] == 64 and settings.size["n_decoder_layers"] == 2 and settings.dropout == 0.0


@pytest.mark.parametrize("peer", ["64", "64:2", "a:2+2", "66:2+2", "64:2+0"])
def test_a_wrong_peer_is_refused(peer, tmp_path):
    with pytest.raises(InputError, match="--peer "):
        quality.run(quality.Job("x", peers=["same", peer]), ["marian"], tmp_path)


def test_the_peer_trains_and_answers(peers, tmp_path):
    data = tmp_path / "pairs.tsv"
    words = ["".join("abcd"[(i >> 2 * j) & 3] for j in range(4)) for i in range(120)]
    data.write_text("".join(f"{word}\t{' '.join(word.upper())}\n" for word in words))
    job = quality.Job(str(data), steps=4, threads=1)
    settings = quality.peer_settings(job, None, "16:1+1", 1e-2, tmp_path / "peer")
    found = marian_run.train(settings)
    assert found["steps"] == 4 and found["tokens"] > 0 and found["valid_loss"] > 0
    marian_run.write(found, Path(settings.out))
    translate = marian_run.opened(Path(settings.out))
    for beams in (1, 2):
        answers = translate(words[:5], beams)
        assert len(answers) == 5 and all(set(answer.split()) <= set("ABCD") | {"<unk>"} for answer in answers)
    assert asdict(settings)["data"] == str(data)


def scores(symbols: float, bleu: float) -> dict[str, float]:
    return {"symbol_error_rate": symbols, "sequence_error_rate": 2 * symbols, "bleu": bleu, "chrf": bleu}


def test_ours_is_compared_with_the_best_peer():
    row = {"parameters": 1, "steps": 2, "seconds": 3.0, "tokens_per_second": 4.0, "what": "w"}
    contestants = {
        "plait": {**row, "scores": {"1": scores(8.0, 50.0)}},
        "marian 0.001": {**row, "scores": {"1": scores(20.0, 30.0)}},
        "marian 0.002": {**row, "scores": {"1": scores(16.0, 35.0)}},
    }
    ratios = quality.ratios(contestants)
    assert ratios["1"]["symbol_error_rate"] == 0.5 and ratios["1"]["bleu_more"] == 15
    text = quality.shown({"data": "d", "test_sources": 9, "contestants": contestants, "ratios": ratios})
    assert "0.50 x its symbol errors" in text
    assert quality.ratios({"plait": contestants["plait"]}) == {}
