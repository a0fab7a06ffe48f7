"""How the loop goes: accumulation, clipping, evaluation, early stopping, averages, and what a broken loss leaves behind."""

import errno
import math
import os

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from plait.core.stream import Stream
from plait.errors import InputError
from plait.train.checkpoints import read_tensors
from plait.train.optimizers import Adam, Together
from plait.train.state import Budget, Settings

EXACT = dict(rtol=0, atol=1e-12)


@pytest.mark.parametrize("arch", ["vaswani", "modern"])
@pytest.mark.parametrize("parts", [2, 5, 1000])
def test_accumulated_is_the_full_batch(arch, parts, toy, tmp_path):
    """Without dropout, in float64: gradients and the weights after three steps; more parts than rows means row by row."""
    ends = []
    for k in (1, parts):
        trainer = toy(tmp_path / str(k), Budget(steps=3), Settings(accumulate=k), arch=arch, dropout=0.0, dtype=torch.float64)
        batch = next(trainer.feed.stream(0, 0))[2]
        assert len(batch) > 5 and len(trainer.objective.parts(batch, k)) == min(k, len(batch))
        trainer.step(batch)
        grads = {name: p.grad.clone() for name, p in trainer.net.named_parameters()}
        trainer.recent.clear()
        trainer.state.step, trainer.state.tokens = 0, 0
        trainer.fit()
        ends.append((grads, trainer.net.state_dict(), trainer.state.tokens, trainer.state.best))
    (grads, weights, tokens, best), (other_grads, other_weights, other_tokens, other_best) = ends
    for name in grads:
        assert_close(grads[name], other_grads[name], **EXACT)
        if not name.endswith("k_proj.bias"):  # softmax does not see it: Adam makes steps of the rounding of its zero gradient
            assert_close(weights[name], other_weights[name], **EXACT)
    assert tokens == other_tokens and best == pytest.approx(other_best, abs=1e-12)


def plain_adam(net):
    return Together(adam=Adam(dict(net.named_parameters()), 1e-3))


@pytest.mark.parametrize("clip", [None, 1e-3, 1e3])
def test_the_gradient_is_the_mean_over_tokens_and_clipped(clip, toy, tmp_path):
    settings = Settings(clip=clip)
    trainer = toy(tmp_path, settings=settings, dropout=0.0, dtype=torch.float64, optimizer=plain_adam)
    batch = next(trainer.feed.stream(0, 0))[2]
    net = trainer.net
    hidden = net(encoder=Stream(batch.source, real=batch.source_real), decoder=Stream(batch.target_in, real=batch.target_real))
    logits = net.heads["lm"](hidden["decoder"].x)[batch.target_real]
    mean = torch.nn.functional.cross_entropy(logits, batch.target_out[batch.target_real], label_smoothing=0.1)
    wanted = torch.autograd.grad(mean, list(net.parameters()))
    norm = torch.stack([g.square().sum() for g in wanted]).sum().sqrt()
    factor = 1.0 if clip is None else min(1.0, clip / (float(norm) + 1e-6))
    trainer.step(batch)
    for p, g in zip(net.parameters(), wanted, strict=True):
        assert_close(p.grad, g * factor, **EXACT)


@torch.no_grad()
def test_the_validation_loss_is_the_mean_over_all_tokens(toy, tmp_path):
    """Nats a token over batches of different sizes, without dropout or smoothing, against log-softmax row by row."""
    one = toy(tmp_path / "a", dtype=torch.float64, dropout=0.5)
    rows = [next(iter(one.feed.stream(0, at)))[2] for at in (0, 1)]
    trainer = toy(tmp_path / "b", dtype=torch.float64, dropout=0.5, valid=[rows[0], rows[1], one.judge.valid[0]])
    trainer.net.train()
    found = trainer.valid_loss()
    assert trainer.net.training
    trainer.net.eval()
    nats, tokens = 0.0, 0
    for batch in trainer.judge.valid:
        for i in range(len(batch)):
            source, target = batch.source[i][batch.source_real[i]], batch.target_in[i][batch.target_real[i]]
            logits = trainer.net.heads["lm"](trainer.net(encoder=source[None], decoder=target[None])["decoder"].x)[0]
            answer = batch.target_out[i][batch.target_real[i]]
            nats -= float(logits.log_softmax(-1)[torch.arange(len(answer)), answer].sum())
            tokens += len(answer)
    assert found == pytest.approx(nats / tokens, abs=1e-12)


@pytest.mark.parametrize(
    ("steps", "evaluations", "wanted"),
    [(12, 4, [4, 7, 10, 12]), (12, 1, [12]), (4, 4, [2, 3, 4]), (3, 50, [2, 3]), (1, 20, [1])],
)
def test_evaluations_are_spread_and_no_step_has_two_rows(steps, evaluations, wanted, toy, tmp_path):
    trainer = toy(tmp_path, Budget(steps=steps), Settings(evaluations=evaluations))
    trainer.fit()
    rows = trainer.metrics.rows()
    assert [row["step"] for row in rows] == wanted
    assert rows[-1]["tokens"] == trainer.state.tokens
    assert all(math.isfinite(row["train_loss"]) and row["train_loss"] > 0 for row in rows)


def test_evaluations_leave_the_time_to_training(toy, before_step, tmp_path, clock, monkeypatch):
    """Of 120 s, 20 evaluations of 3 s each would be half, and a twentieth is two. None is made for what reading the data took."""
    monkeypatch.setattr("plait.train.judging.time", clock)
    trainer = toy(tmp_path, Budget(minutes=2, started=clock.now - 10), Settings(evaluations=20))
    stream, loss = trainer.feed.stream, trainer.judge.loss

    def later(seconds, value):
        clock.now += seconds
        return value

    monkeypatch.setattr(trainer.feed, "stream", lambda *at: (later(1.0, item) for item in stream(*at)))
    monkeypatch.setattr(trainer.judge, "loss", lambda: later(3.0, loss()))
    trainer.fit()
    steps = [row["step"] for row in trainer.metrics.rows()]
    assert 2 <= len(steps) <= 3 and steps[0] > 1 and trainer.state.step > 90


def test_the_training_loss_of_a_row_is_that_of_the_steps_since_the_last(toy, tmp_path):
    trainer = toy(tmp_path, Budget(steps=6), Settings(evaluations=2))
    sums, step = [], trainer.step

    def watched(batch):
        step(batch)
        sums.append(trainer.recent[-1])

    trainer.step = watched
    trainer.fit()
    first, second = (float(sum(total for total, _ in part)) / sum(n for _, n in part) for part in (sums[:4], sums[4:]))
    assert [row["train_loss"] for row in trainer.metrics.rows()] == pytest.approx([first, second], rel=1e-6)


def losses(trainer, values):
    left = iter(values)
    trainer.judge.loss = lambda: next(left)
    return trainer


def test_patience_stops_and_the_best_is_kept(toy, tmp_path):
    trainer = losses(toy(tmp_path, Budget(steps=30), Settings(evaluations=10, patience=3)), [3.0, 2.0, 2.5, 2.0, 2.1, 1.0])
    kept = {}
    evaluate = trainer.evaluate

    def watched(speed):
        evaluate(speed)
        kept[trainer.state.step] = {name: t.clone() for name, t in trainer.net.state_dict().items()}

    trainer.evaluate = watched
    state = trainer.fit()
    rows = trainer.metrics.rows()
    assert [row["valid_loss"] for row in rows] == [3.0, 2.0, 2.5, 2.0, 2.1]  # a draw is no better; and no sixth
    assert (state.best, state.best_step, state.stale, state.finished) == (2.0, rows[1]["step"], 3, True)
    best, note = read_tensors(trainer.keeper.folder / "best.safetensors")
    assert note["step"] == state.best_step
    assert all(torch.equal(best[name], t) for name, t in kept[state.best_step].items())
    assert any(not torch.equal(best[name], t) for name, t in trainer.net.state_dict().items())


def test_without_patience_all_is_trained(toy, tmp_path):
    trainer = losses(toy(tmp_path, Budget(steps=8), Settings(evaluations=4)), [1.0, 2.0, 3.0, 4.0])
    assert trainer.fit().step == 8


@pytest.mark.parametrize("n", [2, 3, 50])
def test_the_average_is_the_mean_of_the_last_evaluations(n, toy, tmp_path):
    trainer = toy(tmp_path, Budget(steps=8), Settings(evaluations=4, average=n))
    trainer.fit()
    files = sorted(trainer.keeper.folder.glob("step-*.safetensors"))
    assert [int(f.stem.removeprefix("step-")) for f in files] == [3, 5, 7, 8][-n:]
    found = trainer.keeper.mean(trainer.settings.average)
    parts = [read_tensors(f)[0] for f in files]
    for name, like in trainer.net.state_dict().items():
        wanted = np.mean([part[name].double().numpy() for part in parts], axis=0)
        assert found[name].dtype == like.dtype
        np.testing.assert_allclose(found[name].numpy(), wanted, rtol=1e-6, atol=1e-8)
    assert torch.equal(parts[-1]["encoder.embed.tokens.weight"], trainer.net.state_dict()["encoder.embed.tokens.weight"])


def test_without_averaging_nothing_is_kept_for_it(toy, tmp_path):
    trainer = toy(tmp_path, Budget(steps=4))
    trainer.fit()
    assert trainer.keeper.mean(trainer.settings.average) is None and not list(trainer.keeper.folder.glob("step-*"))


@pytest.mark.parametrize("clip", [1.0, None])
def test_a_loss_that_is_no_number_stops_and_names_its_step(clip, toy, before_step, tmp_path):
    trainer = toy(tmp_path, settings=Settings(save_seconds=0.0, clip=clip))

    def poison():
        with torch.no_grad():
            next(trainer.net.parameters()).fill_(float("nan"))

    before_step(trainer, 6, poison)
    with pytest.raises(InputError, match=r"the loss is no longer a number at step 6 .*last\.safetensors: try a lower --learning-rate"):
        trainer.fit()
    tensors, note = read_tensors(trainer.keeper.last)
    assert note["state"]["step"] == 5 and all(t.isfinite().all() for name, t in tensors.items() if name.startswith("model/"))


def test_a_validation_loss_that_is_no_number_stops(toy, tmp_path):
    trainer = losses(toy(tmp_path), [float("nan")])
    with pytest.raises(InputError, match=r"the validation loss is no longer a number at step 4 .*not saved yet"):
        trainer.fit()


def test_minutes_that_are_over_before_the_first_step_are_said(toy, tmp_path, clock):
    trainer = toy(tmp_path, Budget(minutes=0.1, started=clock.now - 60))
    with pytest.raises(InputError, match="60 s went into reading and preparing, and no time was left to train: give more --minutes"):
        trainer.fit()


def test_epochs_are_whole_passes(toy, tmp_path):
    trainer = toy(tmp_path, Budget(epochs=2))
    state, n = trainer.fit(), [trainer.feed.batches(epoch) for epoch in (0, 1)]
    assert state.step == sum(n) and (state.epoch, state.position) == (1, n[1])


def test_a_full_disk_leaves_the_last_checkpoint(toy, before_step, tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = toy(tmp_path, settings=Settings(save_seconds=0.0))
    before_step(trainer, 6, lambda: (trainer.keeper.wait(), monkeypatch.setattr(os, "fsync", full)))
    with pytest.raises(InputError, match=r"the disk is full .*the file there before is untouched: free some space, then go on"):
        trainer.fit()
    assert read_tensors(trainer.keeper.last)[1]["state"]["step"] == 5
    monkeypatch.undo()
    again = toy(tmp_path)
    again.resume()
    assert again.fit().finished
