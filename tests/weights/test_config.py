"""config.json both ways: what is understood, what changes nothing, and what is refused by name."""

import pytest
import torch

from plait.core import feedforward
from plait.errors import InputError
from plait.weights.config import ACTIVATIONS, Keys, fixed, group, key, read, write


def _read_pair(raw):
    if raw.get("low", 0) > raw.get("high", 1):
        raise ValueError(f"low={raw['low']} is above high")
    return {"span": [raw.get("low", 0), raw.get("high", 1)]}


TABLES = (
    Keys(
        "toy",
        (
            key("hidden", "d_model", 8, also=["n_embd"]),
            key("heads", "n_heads", None, kind=int),
            key("act", "activation", "swish", values={"swish": "silu", "silu": "silu", "relu": "relu"}),
            key("eps", "eps", 1e-5),
            key("window", "window", 4, optional=True),
            key("tied", "tie", True),
            group(("low", "high"), _read_pair, lambda s: dict(zip(("low", "high"), s["span"], strict=True))),
            fixed("mode", "usual", "others are not built"),
        ),
        ignored=("colour",),
        extra={"architectures": ["Toy"]},
    ),
    Keys("windowless", (key("hidden", "d_model", 16), group((), lambda raw: {"window": None}, lambda s: {})), ("heads",)),
)
DEFAULTS = dict(d_model=8, n_heads=None, activation="silu", eps=1e-5, window=4, tie=True, span=[0, 1])


def toy(**raw):
    return read(TABLES, {"model_type": "toy", **raw})


def test_missing_keys_have_the_references_defaults():
    assert toy() == DEFAULTS


def test_keys_are_read():
    assert toy(hidden=5, heads=2, act="relu", eps=1, window=None, tied=False, low=3, high=4) == dict(
        d_model=5, n_heads=2, activation="relu", eps=1.0, window=None, tie=False, span=[3, 4]
    )
    assert toy(n_embd=5)["d_model"] == 5
    assert toy(heads=None)["n_heads"] is None


def test_what_does_not_change_the_computation_is_let_through():
    assert toy(colour="red", torch_dtype="float16", architectures=["X"], is_encoder_decoder=False, mode="usual", unknown=None) == DEFAULTS
    assert read(TABLES, {"model_type": "toy", "novelty": 3}, ignore=["novelty"]) == DEFAULTS


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (dict(novelty=3), "novelty=3 is not understood"),
        (dict(novelty=False), "novelty=False is not understood"),
        (dict(is_encoder_decoder=True), "is_encoder_decoder=True is not understood: only False is"),
        (dict(mode="odd"), r"mode='odd' is not understood \(others are not built\): only 'usual' is"),
        (dict(act="mish"), "act='mish' is not known here: there is 'swish', 'silu' or 'relu'"),
        (dict(hidden="8"), "hidden='8' must be of type int"),
        (dict(hidden=None), "hidden=None must be of type int"),
        (dict(hidden=True), "hidden=True must be of type int"),
        (dict(hidden=8.0), "hidden=8.0 must be of type int"),
        (dict(heads="2"), "heads='2' must be of type int"),
        (dict(tied=1), "tied=1 must be of type bool"),
        (dict(eps=True), "eps=True must be of type float"),
        (dict(novelty={}), "novelty={} is not understood"),
        (dict(hidden=-8), "hidden=-8 must be a whole number from 0"),
        (dict(eps=float("nan")), "eps=nan must be a finite number"),
        (dict(hidden=5, n_embd=6), "hidden=5, n_embd=6 are names of one setting"),
        (dict(low=5), "low=5 is above high"),
        (dict(low="5"), "low='5': one of these is of a kind that cannot be understood"),
    ],
)
def test_what_is_not_understood_is_an_error(raw, message):
    with pytest.raises(InputError, match=message):
        toy(**raw)


def test_all_at_once():
    with pytest.raises(InputError) as refused:
        toy(novelty=3, act="mish", hidden="8", low=5)
    assert len(refused.value.faults) == 4


def test_other_families_are_named():
    with pytest.raises(InputError, match="model_type='gpt9': this page reads 'toy' or 'windowless'"):
        read(TABLES, {"model_type": "gpt9"})
    with pytest.raises(InputError, match="model_type=None"):
        read(TABLES, {})


@pytest.mark.parametrize("changes", [{}, dict(activation="relu"), dict(window=None), dict(n_heads=3, d_model=2, span=[5, 9])])
def test_written_is_read(changes):
    settings = {**DEFAULTS, **changes}
    written = write(TABLES, settings)
    assert written["model_type"] == "toy" and written["architectures"] == ["Toy"]
    assert read(TABLES, written) == settings
    assert ("heads" in written) == (settings["n_heads"] is not None)


def test_keys_of_the_file_it_came_from_are_kept():
    raw = {"model_type": "toy", "colour": "red", "bos_token_id": 3, "hidden": 5}
    written = write(TABLES, {**read(TABLES, raw), "d_model": 6}, like=raw)
    assert (written["colour"], written["bos_token_id"], written["hidden"]) == ("red", 3, 6)
    assert "colour" not in write(TABLES, DEFAULTS, like={**raw, "model_type": "windowless"})


def test_the_first_family_that_can_say_it():
    assert write(TABLES[::-1], {"d_model": 4, "window": None}) == {"model_type": "windowless", "hidden": 4}
    assert write(TABLES[::-1], DEFAULTS)["model_type"] == "toy"


def test_what_no_family_can_say():
    with pytest.raises(InputError) as refused:
        write(TABLES, {**DEFAULTS, "activation": "gelu"})
    assert refused.value.faults == ["toy: act cannot say activation='gelu'", "windowless: it cannot say window=4"]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_the_reference(name):
    theirs = pytest.importorskip("transformers.activations", reason="transformers is not installed (pip install 'plait[bench]')").ACT2FN
    if name not in theirs:
        pytest.skip("a name of earlier releases")
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    # gelu_fast writes sqrt(2 / pi) with ten digits.
    torch.testing.assert_close(feedforward.ACTIVATIONS[ACTIVATIONS[name]](x), theirs[name](x), rtol=0, atol=1e-9)
