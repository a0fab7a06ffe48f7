"""The operations a job needs, against counts made another way."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from plait.bench.operations import Shape, decoding, encoder, training
from plait.bench.peers import ours
from plait.core.kernels import reference


def test_the_encoder_by_hand():
    s = Shape(d_model=4, n_heads=2, n_layers=1, d_ff=8, source_vocab=10, target_vocab=10)
    # Per token: q k v o are 4 products of 4 x 4, the feed-forward 4 x 8 and 8 x 4: 64 + 64 multiply-adds. 3 tokens: 768 operations.
    # Scores 3 x 3 x 4 multiply-adds, weighted sums as many: 144 operations. Two rows.
    assert encoder(s, rows=2, source=3) == 2 * (768 + 144)


def test_the_papers_shape_by_hand():
    """4+4 x 256, vocabulary 8000: 28.2 M operations a token of either side, so 130 G operations a second allow 4600 tokens/s."""
    s = Shape(256, 4, 4, 1024, 8000, 8000)
    weights = 4 * (4 * 256**2 + 2 * 256 * 1024) + 4 * (8 * 256**2 + 2 * 256 * 1024) + 256 * 8000  # of a source and a target token
    found = training(s, rows=32, source=32, target=32) / (32 * 64)
    attention = 3 * 4 * 4 * 256 * (32 + 16.5 + 32) / 2  # encoder, causal, cross; a pair of tokens is two
    assert found == pytest.approx(3 * 2 * weights / 2 + attention)
    assert found == pytest.approx(28.2e6, rel=0.02)


@pytest.mark.parametrize("layers", [None, 1])
def test_a_training_step_as_torch_counts_it(layers):
    """FlopCounterMode sees every product that our model computes; it counts the whole square of causal attention, we the half."""
    s = replace(Shape(16, 2, 2, 32, 40, 40), n_decoder_layers=layers)
    rows, source, target = 3, 5, 7
    net = ours(s, dropout=0.0).train()
    net.kernel = reference  # its products are counted, those inside torch's fused attention are not
    ids = torch.randint(4, 40, (rows, source)), torch.randint(4, 40, (rows, target))
    with FlopCounterMode(display=False) as counter:
        hidden = net(encoder=ids[0], decoder=ids[1])["decoder"].x
        net.heads["lm"](hidden).sum().backward()
    unseen = s.decoder_layers * rows * 4 * 16 * (target**2 - target * (target + 1) // 2)
    assert training(s, rows, source, target) == counter.get_total_flops() - 3 * unseen


def test_decoding_as_its_steps():
    s = Shape(16, 2, 3, 32, 50, 50)
    rows, source, target, beams = 2, 5, 4, 3
    total = encoder(s, rows, source) + 3 * rows * source * 2 * 2 * 16**2
    for step in range(1, target + 1):
        entries = rows * (1 if step == 1 else beams)
        block = 2 * (6 * 16**2 + 2 * 16 * 32) + 4 * 16 * step + 4 * 16 * source
        total += entries * (3 * block + 2 * 16 * 50)
    assert decoding(s, rows, source, target, beams) == total
    assert decoding(s, rows, source, 1, beams) == decoding(s, rows, source, 1, 1)


def test_a_shape_is_told_in_words():
    assert str(Shape(256, 4, 4, 1024, 8000, 8000)) == "4+4 x 256, d_ff 1024, 4 heads, vocabulary 8,000"
    assert str(Shape(128, 4, 3, 512, 33, 43, False, 1)) == "3+1 x 128, d_ff 512, 4 heads, vocabulary 33 and 43"
