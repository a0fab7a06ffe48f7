"""Schedules against their formulas; recipes; sizing."""

from types import SimpleNamespace

import pytest

from plait.train import sizing
from plait.train.recipes import recipe_for
from plait.train.schedules import inverse_sqrt, linear_decay
from plait.verbs.lessons.lesson import usual_recipe

WISHES = dict(optimizer=None, learning_rate=None, schedule=None, warmup=None, weight_decay=None, layer_decay=None)


def recipe(arch="vaswani", d_model=512, **wishes):
    return recipe_for(SimpleNamespace(**{**WISHES, **wishes}), usual_recipe(arch, {"d_model": d_model}), d_model)


@pytest.mark.parametrize("d_model", [64, 512, 1024])
def test_the_papers_learning_rate(d_model):
    """lrate = d_model^-0.5 · min(step^-0.5, step · warmup^-1.5), section 5.3, with 4,000 steps of warm-up."""
    made = recipe(d_model=d_model)
    factor = made.schedule()
    for step in (1, 10, 3999, 4000, 4001, 100_000):
        assert made.rate * factor(step, 0.5) == pytest.approx(d_model**-0.5 * min(step**-0.5, step * 4000**-1.5), rel=1e-12)
    assert (made.kind, made.decay) == ("adam", 0.0)


@pytest.mark.parametrize("warmup", [1, 7, 400])
def test_inverse_sqrt_peaks_at_its_warmup(warmup):
    factor = inverse_sqrt(warmup)
    values = [factor(step, 0.0) for step in range(1, 3 * warmup + 3)]
    assert max(values) == values[warmup - 1] == 1.0
    assert factor(4 * warmup, 0.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("warmup", "hold", "final", "step", "progress", "wanted"),
    [
        (10, 0.0, 0.0, 5, 0.0, 0.5),
        (10, 0.0, 0.0, 10, 0.25, 0.75),
        (10, 0.0, 0.0, 5, 0.9, 0.05),  # half way up of what is left
        (0, 0.0, 0.0, 1, 0.0, 1.0),
        (1, 0.4, 0.1, 9, 0.4, 1.0),
        (1, 0.4, 0.1, 9, 0.7, 0.55),
        (1, 0.4, 0.1, 9, 1.0, 0.1),
        (1, 0.0, 0.0, 9, 1.2, 0.0),  # never negative
    ],
)
def test_linear_decay(warmup, hold, final, step, progress, wanted):
    assert linear_decay(warmup, hold, final)(step, progress) == pytest.approx(wanted)


def test_what_the_user_sets_stands():
    made = recipe("modern", optimizer="adam", learning_rate=0.5, schedule="inverse-sqrt", warmup=7, weight_decay=0.2)
    assert (made.kind, made.rate, made.shape, made.warmup, made.decay) == ("adam", 0.5, "inverse-sqrt", 7, 0.2)
    assert recipe("modern").kind == "muon" and recipe("vaswani").kind == "adam"


LETTERS = [f"{a}{b}{c}" for a in ("ab", "z", "qu", "don'") for b in "aeiou" for c in ("ndon", "bra", "ck", "t", "")]
PHONEMES = ["AH B AE N D AH N", "Z IY B R AH", "K W IH K"] * 40
SENTENCES = [f"The {a} of {b} number {i} was left open." for i, (a, b) in enumerate([("door", "house"), ("box", "tool")] * 60)]


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (LETTERS, "characters"),
        (PHONEMES, "words"),
        (SENTENCES, "bpe"),
        ([], "bpe"),
        ([*LETTERS, *SENTENCES], "bpe"),
        (["x" * 70, *LETTERS], "bpe"),  # no word is so long
    ],
)
def test_the_kind_of_text(texts, kind):
    assert sizing.text_kind(texts) == kind


def test_the_vocabulary_grows_with_the_text():
    sizes = [sizing.vocabulary(10**k) for k in range(11)]
    assert sizes == sorted(sizes) and sizes[0] >= 260 and sizes[-1] == 32000
    assert sizing.vocabulary(0) == sizes[0] and all(size % 500 == 0 for size in sizes)
    assert sizing.vocabulary(150_000) == 4000 and abs(sizing.vocabulary(230_000_000) - 32000) <= 500


COUNTS = {"s": 200_000, "m": 1_500_000, "l": 10_000_000, "xl": 60_000_000}


def size_of(tokens, minutes=None, flops=50e9):
    return COUNTS[sizing.pick(COUNTS, tokens, seconds=minutes and 60 * minutes, flops=flops)]


def test_more_time_never_means_a_smaller_model_nor_does_more_data_without_a_clock():
    for tokens in (1, 10**5, 10**6, 10**7, 10**8):
        sizes = [size_of(tokens, minutes) for minutes in (0.01, 0.1, 1, 5, 30, 60, 600, 6000)]
        assert sizes == sorted(sizes), tokens
        assert size_of(tokens, 5, flops=1e12) >= size_of(tokens, 5, flops=1e10)
    sizes = [size_of(10**k) for k in range(10)]
    assert sizes == sorted(sizes) and sizes[0] == COUNTS["s"] and sizes[-1] == COUNTS["xl"]
    assert size_of(10**6, 60_000) == size_of(10**6)  # with all the time in the world the data decide


def test_epochs_are_the_budget_over_the_work():
    """6 operations a weight and token (forward and twice that backward), at the share of the product rate that training reaches."""
    assert sizing.epochs_for(10**6, 10**6, 600, 1e11) == pytest.approx(sizing.UTILISATION * 1e11 * 600 / (6 * 10**12))
    assert sizing.epochs_for(10**6, 0, 600, 1e11) > 0


def test_more_epochs_never_mean_less_regularisation():
    chosen = [sizing.regularisation(epochs) for epochs in (0, 1, 5, 10, 30, 60, 100, 10**4)]
    assert chosen == sorted(chosen) and chosen[0] == (0.0, 0.0) and all(0 <= p < 1 and 0 <= s < 1 for p, s in chosen)


def test_the_machine_can_multiply():
    assert 1e7 < sizing.product_rate() < 1e15


def test_batches_stay_within_reason():
    sizes = [sizing.batch_tokens(10**k, 3.0) for k in range(10)]
    assert sizes == sorted(sizes) and sizes[0] == 1024 and sizes[-1] == 8192
    assert sizing.batch_tokens(10**6, 2.0) == sizing.batch_tokens(2 * 10**6, 1.0)  # what counts is how much is seen in all
