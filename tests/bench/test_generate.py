"""`plait bench generate` on toy shapes: every contestant computes what ours does, and the figures say what the turns were."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest

from plait.bench import generate_figures, generate_speed
from plait.bench.generate_cases import CASES, ENTRANTS, Case
from plait.bench.operations import continuing
from plait.bench.prepared import Prepared
from plait.errors import InputError

SHAPES = {
    "gpt2": dict(vocab_size=300, n_positions=128, n_embd=64, n_layer=2, n_head=2),
    "marian": dict(d_model=32, n_heads=2, n_layers=2, d_ff=64, source_vocab=300, target_vocab=300),
}


def there(*names: str) -> list[str]:
    """Of these contestants those whose libraries are installed."""
    needed = {"LlamaCpp": ["xllamacpp", "gguf"], "CTranslate2": ["ctranslate2"], "OnnxRuntime": ["onnxruntime", "onnxscript"]}
    return [name for name in names if all(map(importlib.util.find_spec, needed.get(ENTRANTS[name].make, [])))]


@pytest.fixture
def small(monkeypatch, peers):
    monkeypatch.setattr(
        generate_speed, "CASES", {name: replace(case, new=6, prompt=8, rows=min(case.rows, 2)) for name, case in CASES.items()}
    )


def test_causal_models_continue_alike(small, tmp_path):
    names = there("plait", "plait int8", "ctranslate2", "llama.cpp f32")
    found = generate_speed.run(["gpt2"], names, 1, tmp_path, 1, shapes=SHAPES)
    json.dumps(found)
    case = found["cases"]["gpt2"]
    assert case["failed"] == {} and list(case["contestants"]) == names
    for name, row in case["contestants"].items():
        assert len(row["seconds"]) == 1 and row["tokens"] == 6
        assert row["error"]["largest"] < (2e-2 if ENTRANTS[name].bits < 32 else 2e-3)
        if ENTRANTS[name].bits == 32:
            assert row["same_ids_until"] == 6
    assert case["contestants"]["plait int8"]["error"]["rms"] > 10 * case["contestants"]["plait"]["error"]["rms"]
    assert case["ratios"]["ctranslate2"]["ours"] == "plait"
    table = generate_speed.shown(found)
    assert "GPT-2" in table and "ctranslate2" in table and "weights read a token" in table


def test_translators_find_the_same(small, tmp_path):
    names = there("plait", "ctranslate2")
    case = generate_speed.run(["translate"], names, 1, tmp_path, 1, shapes=SHAPES)["cases"]["translate"]
    assert case["failed"] == {} and list(case["contestants"]) == names
    for name in names:
        assert case["contestants"][name]["tokens"] == 12 and case["contestants"][name]["same_ids_until"] == 6
        assert case["contestants"][name]["error"]["largest"] < 1e-3


def test_one_that_cannot_start_or_fails_is_told_of_and_the_others_run(small, tmp_path, monkeypatch):
    monkeypatch.setitem(ENTRANTS, "onnxruntime", replace(ENTRANTS["onnxruntime"], make="Nobody"))
    monkeypatch.setitem(ENTRANTS, "transformers static", replace(ENTRANTS["transformers static"], options={"nonsense": 1}))
    case = generate_speed.run(["gpt2"], ["transformers static", "onnxruntime", "plait"], 1, tmp_path, 1, shapes=SHAPES)["cases"]["gpt2"]
    assert list(case["contestants"]) == ["plait"] and set(case["failed"]) == {"transformers static", "onnxruntime"}
    assert "onnxruntime takes no part" in generate_figures.table("gpt2", case)


def turns(seconds, answer=((1, 2, 3, 4),)):
    return [{"seconds": s, "answer": [list(row) for row in answer], "peak_bytes": 10**8} for s in seconds]


def saved(tmp_path, array) -> bytes:
    np.save(tmp_path / "a.npy", array)
    return (tmp_path / "a.npy").read_bytes()


def test_figures_of_turns(tmp_path):
    case = Case("toy", "gpt2", (), prompt=3, new=4)
    told = {
        "plait": turns([2.0, 1.0, 4.0]),
        "plait int8": turns([0.5, 0.5, 1.0]),
        "llama.cpp q8_0": turns([1.0, 2.0, 1.0], [[1, 2, 9, 4]]),
        "transformers": turns([1, 1, 1]),
        "limit": [{"answer": 1e9}, {"answer": 3e9}, {"answer": 2e9}],
    }
    truth = np.zeros((2, 5))
    apart = {"reference": 0, "plait": 1e-6, "plait int8": [[3e-2, 0, 0, 0, 0], [0] * 5], "llama.cpp q8_0": 1e-3, "transformers": 0.5}
    probabilities = {name: saved(tmp_path, truth + gap) for name, gap in apart.items()}
    loaded = {name: {"seconds": 1.0} for name in told}
    sizes = {"body": 10**8, "head": 10**7, "width": 64}
    found = generate_figures.figures(case, loaded, told, {}, probabilities, sizes, 3, SHAPES)
    rows = found["contestants"]
    assert list(found["failed"]) == ["transformers"] and "transformers" not in rows
    assert rows["plait"]["tokens_per_second"] == 2.0  # 4 ids in the median's 2 seconds
    assert rows["plait"]["of_limit"] == pytest.approx(4 * 1.1e8 * 4 / 2e9 / 2)  # every id reads 110 M float32 weights at 2 GB/s
    assert rows["llama.cpp q8_0"]["same_ids_until"] == 2
    assert rows["plait int8"]["error"] == pytest.approx({"largest": 3e-2, "rms": 3e-2 / 10**0.5})
    ratio = found["ratios"]["llama.cpp q8_0"]
    assert (ratio["ours"], ratio["median"], ratio["error_no_larger"]) == ("plait int8", 2.0, False)  # of 2, 4 and 1
    assert "but its error is larger" in generate_figures.table("toy", found)


def test_operations_of_a_continuation():
    # 2 prompts of 3 ids and 2 new: 4 ids of each pass the blocks, seeing 1, 2, 3 and 4; the output is asked for twice.
    assert continuing(100, 50, 8, 2, 3, 2) == 2 * (2 * 100 * 4 + 4 * 8 * (1 + 2 + 3 + 4) + 2 * 50 * 2)


def test_every_case_names_contestants_that_there_are():
    for case in CASES.values():
        assert set(case.entrants) <= set(ENTRANTS)
        assert {ENTRANTS[name].own for name in case.entrants} <= set(case.entrants)


def test_a_model_that_is_no_gguf_has_no_released_one(peers, tmp_path):
    prepared = Prepared("gpt2", str(tmp_path), SHAPES["gpt2"])
    with pytest.raises(InputError):
        prepared.file("gguf released")
