"""Our beam search against Hugging Face's `generate`, on Marian models of random weights and on our 2017 page with the same weights.

`early_stopping="never"` is their name for our rule: go on while a running beam could still win. Theirs by default, a guess that
answers grow no better with length, may stop before the best answer is found.
"""

import pytest
import torch

from plait.bench.operations import Shape
from plait.core.stream import Stream
from plait.generate.search import mean, search

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

PAGES_SHOWN = ["vaswani"]  # whose parity this is, in docs/matrix.md
END, PAD, VOCAB = 0, 59, 60
SHAPES = [Shape(32, 4, 2, 64, VOCAB, VOCAB), Shape(32, 4, 2, 64, VOCAB, VOCAB, joint=False, n_decoder_layers=1)]


@pytest.fixture(autouse=True)
def quiet():
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity(before)


def peer_of(seed: int, shape: Shape, end_bias: float = 3.2):
    """Weights large enough that scores lie apart; `end_bias` says how soon its sentences end."""
    from plait.bench.peers import marian

    torch.manual_seed(seed)
    peer = marian(shape, pad=PAD, start=PAD, end=END, dropout=0.0).eval()
    for name, p in peer.named_parameters():
        if "embed_positions" not in name:
            table = "embed_tokens" in name or "shared" in name
            # Small embeddings: with large ones a tied model repeats its last token, and no answer ever ends.
            torch.nn.init.normal_(p, mean=float(name.endswith("norm.weight")), std=0.1 if table else 0.5)
    peer.final_logits_bias.normal_(std=1.0)
    peer.final_logits_bias[0, END] += end_bias
    return peer.double()


def sources(seed: int, padded: bool):
    """(ids [5, 9], which are real [5, 9])."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, PAD, (5, 9), generator=draw)
    lengths = torch.randint(3, 10, (5,), generator=draw) if padded else torch.full((5,), 9)
    real = torch.arange(9) < lengths[:, None]
    return ids.masked_fill(~real, PAD), real


def theirs(peer, ids, real, beams: int, **options):
    """For each source its `beams` answers, best first, as (ids up to the end, score, whether it ended)."""
    options = {"do_sample": False, "early_stopping": "never", **options}
    out = peer.generate(
        ids,
        attention_mask=real.long(),
        num_beams=beams,
        num_return_sequences=beams,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    rows = out.sequences[:, 1:].tolist()
    scores = out.sequences_scores.tolist() if beams > 1 else [0.0] * len(rows)
    found = [(row[: row.index(END)] if END in row else row, score, END in row) for row, score in zip(rows, scores, strict=True)]
    return [found[i : i + beams] for i in range(0, len(found), beams)]


def ends(answers, length: int) -> bool:
    """Whether all of a source's answers ended before the limit, where the rules differ (the last test)."""
    return all(ended and len(answer) < length - 1 for answer, _, ended in answers)


def ending_peer(seed: int, shape: Shape, ids, real, length: int):
    """The least bias with which most sources' answers end in time: neither at once nor never."""
    for bias in (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0):
        peer = peer_of(seed, shape, bias)
        if sum(ends(answers, length) for answers in theirs(peer, ids, real, 4, max_new_tokens=length)) >= 3:
            return peer
    raise AssertionError("no bias makes the answers end")


def ours(net, ids, real, beams: int, length: int, alpha: float = 1.0, forbidden=(), n_best: int | None = None):
    stream = Stream(ids, real=None if bool(real.all()) else real)
    options = {"start": PAD, "end": END, "max_length": length, "forbidden": forbidden}
    return search(net, stream, beams=beams, n_best=n_best or beams, penalty=mean(alpha), **options)


def with_weights(peer, shape):
    from plait.bench.peers import with_weights_of

    return with_weights_of(peer, shape).double()


@pytest.mark.parametrize("shape", SHAPES, ids=["joint", "separate"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_both_write_the_same_function(shape, padded):
    peer = peer_of(0, shape)
    net = with_weights(peer, shape)
    ids, real = sources(1, padded)
    target = torch.randint(1, PAD, (5, 7), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        mine = net.heads["lm"](net(encoder=Stream(ids, real=real), decoder=target)["decoder"].x)
        other = peer(input_ids=ids, attention_mask=real.long(), decoder_input_ids=target).logits
    assert (mine - other).abs().max() < 1e-4  # their sinusoids are computed in float32, whatever the model's type


@pytest.mark.parametrize("shape", SHAPES, ids=["joint", "separate"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("seed", range(3))
def test_same_answers_and_scores(seed, padded, shape):
    ids, real = sources(seed, padded)
    peer = ending_peer(seed, shape, ids, real, 24)
    net = with_weights(peer, shape)
    compared = 0
    for beams, alpha in ((1, 1.0), (2, 0.6), (4, 1.0), (4, 0.6)):
        expected = theirs(peer, ids, real, beams, max_new_tokens=24, **({"length_penalty": alpha} if beams > 1 else {}))
        found = ours(net, ids, real, beams, 24, alpha)
        for mine, other in zip(found, expected, strict=True):
            if beams > 1 and not ends(other, 24):
                continue
            compared += beams > 1
            assert [h.ids for h in mine] == [answer for answer, _, _ in other]
            if beams > 1:
                assert [h.score for h in mine] == pytest.approx([score for _, score, _ in other], abs=1e-4)
    assert compared >= 3


@pytest.mark.parametrize("seed", range(4))
def test_same_answers_of_a_forced_length(seed):
    """What `plait bench translate-speed` runs: the end forbidden on both sides, every beam to the limit."""
    peer = peer_of(seed, SHAPES[0])
    net = with_weights(peer, SHAPES[0])
    ids, real = sources(seed, False)
    for beams in (1, 4):
        expected = theirs(peer, ids, real, beams, min_new_tokens=12, max_new_tokens=12)
        found = ours(net, ids, real, beams, 12, forbidden=[END])
        for mine, other in zip(found, expected, strict=True):
            assert [h.ids for h in mine] == [ids for ids, _, _ in other]
            if beams > 1:
                assert [h.score for h in mine] == pytest.approx([score for _, score, _ in other], abs=1e-4)


def test_at_the_limit_we_prefer_an_answer_that_ended():
    """The one difference: theirs lets beams cut off at the limit compete with answers that ended, ours only fills up with them."""
    differing = 0
    for seed in range(6):
        peer = peer_of(seed, SHAPES[0])
        net = with_weights(peer, SHAPES[0])
        ids, real = sources(seed, False)
        for mine, other in zip(ours(net, ids, real, 4, 6), theirs(peer, ids, real, 4, max_new_tokens=6), strict=True):
            ended = [h.ids for h in mine if h.ended]
            assert [h.ended for h in mine] == sorted((h.ended for h in mine), reverse=True)
            for answer, _, own_end in other:  # whatever ended there has ended here too, in the same order
                assert not own_end or answer in ended
            differing += [h.ids for h in mine] != [answer for answer, _, _ in other]
    assert differing  # else this test shows nothing
