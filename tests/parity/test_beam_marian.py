"""Our beam search against Hugging Face's `generate` on a Marian model of random weights, the same weights in our 2017 page."""

import pytest
import torch

from plait.bench.operations import Shape
from plait.core.stream import Stream
from plait.generate.search import mean, search

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

SHAPE = Shape(32, 4, 2, 64, 60, 60)
END, PAD = 0, 59
LENGTH = 24


def peer_of(seed: int, end_bias: float, shape: Shape = SHAPE):
    """A model whose scores are far apart, and which ends its sentences about as often as `end_bias` says."""
    from plait.bench.peers import marian

    torch.manual_seed(seed)
    peer = marian(shape, pad=PAD, start=PAD, end=END, dropout=0.0).double().eval()
    for name, p in peer.named_parameters():
        if "embed_positions" not in name:
            torch.nn.init.normal_(p, mean=float("norm.weight" in name), std=0.3)
    with torch.no_grad():
        for name, p in peer.named_parameters():
            if name.endswith("embed_tokens.weight") or name.endswith("shared.weight"):
                p[PAD] = 0.0
        peer.final_logits_bias.normal_(std=0.5)
        peer.final_logits_bias[0, END] = end_bias
    return peer


def theirs(peer, ids, real, beams, **options):
    out = peer.generate(
        ids,
        attention_mask=real.long(),
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        early_stopping="never",  # the exact rule, which is ours: go on while a running beam could still win
        bad_words_ids=[[PAD]],
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    rows = []
    for row in out.sequences[:, 1:].tolist():
        stop = row.index(END) if END in row else len(row)
        rows.append([i for i in row[:stop] if i != PAD])
    scores = out.sequences_scores.tolist() if beams > 1 else [None] * len(rows)
    return [list(zip(rows, scores, strict=True))[i : i + beams] for i in range(0, len(rows), beams)]


def sources(seed: int, padded: bool):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, PAD, (5, 9), generator=draw)
    lengths = torch.randint(3, 10, (5,), generator=draw) if padded else torch.full((5,), 9)
    real = torch.arange(9) < lengths[:, None]
    return ids.masked_fill(~real, PAD), real


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_same_answers_and_scores(seed, padded, joint):
    from plait.bench.peers import with_weights_of

    shape = SHAPE if joint else Shape(32, 4, 2, 64, 60, 60, joint=False)
    peer = peer_of(seed, end_bias=3.0, shape=shape)
    net = with_weights_of(peer, shape).double()
    ids, real = sources(seed, padded)
    for beams in (2, 4):
        for alpha in (1.0, 0.5):
            expected = theirs(peer, ids, real, beams, max_new_tokens=LENGTH, length_penalty=alpha)
            stream = Stream(ids, real=real if padded else None)
            found = search(
                net, stream, start=PAD, end=END, max_length=LENGTH, beams=beams, n_best=beams, penalty=mean(alpha), forbidden=[PAD]
            )
            for mine, other in zip(found, expected, strict=True):
                if not all(h.ended for h in mine):
                    continue  # see test_an_answer_that_ended_is_preferred
                assert [h.ids for h in mine] == [ids for ids, _ in other]
                assert [h.score for h in mine] == pytest.approx([score for _, score in other], abs=1e-4)
