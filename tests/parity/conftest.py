"""What parity tests share: a quiet reference, its float32 islands taken away, and every way of asking a causal model for its scores."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from plait.core.cache import Cache
from plait.core.stream import Stream

VOCAB, LENGTH = 61, 23


@pytest.fixture(autouse=True)
def quiet():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
    before, threads = transformers.logging.get_verbosity(), torch.get_num_threads()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity(before)


@pytest.fixture
def wide(monkeypatch):
    """Where the reference narrows to float32 it stays in float64."""
    for name in ("float", "float32"):
        monkeypatch.setattr(torch, name, torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def padded(left: bool):
    """(ids [3, L], which are real, positions): rows of several lengths, padded on one side."""
    ids = torch.randint(0, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([LENGTH, 9, 1])[:, None]
    places = torch.arange(LENGTH)
    real = places >= LENGTH - lengths if left else places < lengths
    return ids, real, (real.cumsum(1) - 1).clamp_min(0)


@torch.no_grad()
def measured(theirs, net) -> dict[str, float]:
    """The largest difference of logits over real entries, in every way of asking for them, and that of the loss."""
    head, found = net.heads["lm"], {}
    ids, _, _ = padded(False)
    wanted = theirs(input_ids=ids, labels=ids)
    logits = head(net(decoder=ids)["decoder"].x)
    found["alone"] = (logits - wanted.logits).abs().max().item()
    found["loss"] = abs(cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) - wanted.loss).item()
    for left in (False, True):
        ids, real, positions = padded(left)
        wanted = theirs(input_ids=ids, attention_mask=real.long(), position_ids=positions).logits[real]
        found["left" if left else "right"] = (head(net(decoder=Stream(ids, real=real))["decoder"].x)[real] - wanted).abs().max().item()
    past, cache, parts = None, Cache(LENGTH), []
    for chunk in (slice(0, 7), slice(7, 8), slice(8, 12), slice(12, LENGTH)):
        out = theirs(
            input_ids=ids[:, chunk],
            attention_mask=real[:, : chunk.stop].long(),
            position_ids=positions[:, chunk],
            past_key_values=past,
            use_cache=True,
        )
        past = out.past_key_values
        hidden = net.run("decoder", cache.stream(ids[:, chunk], real[:, chunk]), cache=cache).x
        parts.append((head(hidden) - out.logits)[real[:, chunk]])
    found["cached"] = torch.cat(parts).abs().max().item()
    return found


@pytest.fixture
def batch():
    return padded


@pytest.fixture
def gaps():
    return measured
