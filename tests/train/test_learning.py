"""The whole road in small: copying and reversing sequences of length 20 is learned without a single error."""

import numpy as np
import pytest
import torch

from plait.data.corpus import Corpus
from plait.data.pairs import Pair
from plait.models import build
from plait.tasks.translation import TeacherForcing, Translator
from plait.text.training import train_tokenizer
from plait.train.log import Reporter
from plait.train.loop import Trainer
from plait.train.optimizers import Adam, Muon, Together, inner_matrices, others
from plait.train.schedules import linear_decay
from plait.train.state import Budget, Settings

LENGTH, LETTERS = 20, "abcdefgh"
BATCH, STEPS = 24, 600  # rows of 12 leave an error in 200 answers for some seeds and machines; four of four seeds have none here


def texts(n: int, seed: int) -> list[str]:
    return ["".join(row) for row in np.random.default_rng(seed).choice(list(LETTERS), (n, LENGTH))]


def muon_and_adam(net) -> Together:
    inner = inner_matrices(net)
    return Together(muon=Muon(inner, 0.03), adam=Adam(others(net, inner), 0.01))


@pytest.mark.parametrize("task", ["reversal"])  # the harder one; copies are learned on the way to it
def test_is_learned_to_the_last_symbol(task, tmp_path):
    def answer(text: str) -> str:
        return text if task == "copy" else text[::-1]

    train, valid, test = texts(BATCH * STEPS, 0), texts(64, 1), texts(200, 2)
    assert not set(train) & {*valid, *test}
    tokenizer = train_tokenizer("characters", [LETTERS])
    corpus, held = (Corpus.encode([Pair(t, answer(t)) for t in part], tokenizer, tokenizer) for part in (train, valid))
    torch.manual_seed(0)
    shape = dict(d_model=32, n_heads=4, n_layers=1, d_ff=64, dropout=0.0, residual="pre")
    net = build("vaswani", dict(source_vocab=tokenizer.vocab_size, target_vocab=tokenizer.vocab_size, **shape))
    trainer = Trainer(
        net,
        TeacherForcing(0.0),
        muon_and_adam,
        linear_decay(10, hold=0.4),
        corpus.feed(BATCH * (2 * LENGTH + 1)),
        [held.batch(np.arange(len(held)))],
        Budget(steps=STEPS),
        Settings(evaluations=2),
        tmp_path,
        Reporter(quiet=True),
    )
    state = trainer.fit()
    assert state.epoch == 0  # no sequence was seen twice
    translate = Translator(net, tokenizer, tokenizer, max_source=LENGTH, max_target=LENGTH + 4)
    for beams in (1, 4):
        assert [a.text for a in translate(test, beams=beams)] == [answer(text) for text in test]
