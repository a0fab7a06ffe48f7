"""T5 against the reference implementation: tiny models with random weights, every option that changes what is computed."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from plait.core.cache import Cache
from plait.core.stream import Stream
from plait.data.corpus import Flat
from plait.data.packing import Documents
from plait.data.spans import Corruption, SpanFeed
from plait.errors import InputError
from plait.models import t5
from plait.tasks.translation import TeacherForcing
from plait.weights import config as keys
from plait.weights import rules as table
from plait.weights.source import Held

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

SIZES = dict(d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=3, vocab_size=31)
OURS = t5.Config(vocab_size=31, d_model=24, d_head=6, n_heads=3, n_layers=2, d_ff=40)


@pytest.fixture
def in_float64(monkeypatch):
    """The reference computes its norms and softmax in float32 whatever the model's dtype; here it may not."""
    from transformers.models.t5 import modeling_t5

    def norm(self, hidden):
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(modeling_t5.T5LayerNorm, "forward", norm)
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim=None, dtype=None: softmax(x, dim=dim))
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self if self.dtype == torch.float64 else self.to(torch.float32))


def reference(options):
    torch.manual_seed(0)
    untied = options.get("tie_word_embeddings") is False
    peer = transformers.T5ForConditionalGeneration(transformers.T5Config(**{**SIZES, **options}, attn_implementation="eager")).eval()
    if untied:
        peer.lm_head.weight = torch.nn.Parameter(torch.empty_like(peer.lm_head.weight))
    for p in peer.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    return peer


def loaded(peer, config):
    net, held = t5.build(config).eval(), Held(peer.state_dict())
    certificate = table.load(net, held, t5.rules(config))
    back = table.export(net, t5.rules(config), certificate)
    assert all(torch.equal(back[name], held.tensors[name]) for name in held.tensors)
    return net


OPTIONS = [
    ({}, {}),
    ({"feed_forward_proj": "gated-gelu"}, {"activation": "gelu_tanh", "gated": True}),
    ({"feed_forward_proj": "gated-silu"}, {"activation": "silu", "gated": True}),
    ({"feed_forward_proj": "gelu"}, {"activation": "gelu"}),
    ({"num_decoder_layers": 3}, {"n_decoder_layers": 3}),
    ({"relative_attention_num_buckets": 8, "relative_attention_max_distance": 6}, {"buckets": 8, "max_distance": 6}),
    ({"layer_norm_epsilon": 1e-2}, {"norm_eps": 1e-2}),
    ({"d_kv": 10}, {"d_head": 10}),
    ({"tie_word_embeddings": False, "scale_decoder_outputs": False}, {"tie": False}),
    ({"scale_decoder_outputs": False}, {"scale_output": False}),
]
named = pytest.mark.parametrize(("theirs", "ours"), OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()) or "plain")


def batch():
    draw = torch.Generator().manual_seed(1)
    source, target = torch.randint(31, (3, 17), generator=draw), torch.randint(31, (3, 11), generator=draw)
    return source, target, torch.arange(17) < torch.tensor([[17], [4], [12]])


@named
def test_logits_and_loss_are_the_reference(theirs, ours, in_float64):
    peer = reference(theirs).double()
    net = loaded(peer, replace(OURS, **ours)).double()
    source, target, real = batch()
    with torch.no_grad():
        for mask in (None, real):
            out = peer(
                input_ids=source,
                decoder_input_ids=target,
                attention_mask=None if mask is None else mask.long(),
                labels=target.roll(-1, 1),
            )
            scores = net.heads["lm"](net(encoder=Stream(source, real=mask), decoder=target)["decoder"].x)
            assert_close(scores, out.logits, rtol=0, atol=1e-9)
            loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), target.roll(-1, 1).flatten())
            assert_close(loss, out.loss, rtol=0, atol=1e-9)


@named
@torch.no_grad()
def test_cached_is_the_reference(theirs, ours, in_float64):
    peer = reference(theirs).double()
    net = loaded(peer, replace(OURS, **ours)).double()
    source, target, real = batch()
    wanted = peer(input_ids=source, decoder_input_ids=target, attention_mask=real.long()).logits
    memory, cache, at, parts = net.run("encoder", Stream(source, real=real)), Cache(11), 0, []
    for n in (1, 4, 1, 5):
        parts.append(net.heads["lm"](net.run("decoder", target[:, at : at + n], {"encoder": memory}, cache).x))
        at += n
    assert_close(torch.cat(parts, 1), wanted, rtol=0, atol=1e-9)


@named
def test_loss_of_hidden_spans_is_the_reference(theirs, ours, in_float64):
    """A batch with padding on both sides; the reference shifts the labels itself, behind its start, which is its pad."""
    peer = reference(theirs).double()
    net = loaded(peer, replace(OURS, **ours)).double()
    texts = Flat.of([list(range(2, 2 + n)) for n in (19, 3, 11, 1)])
    feed = SpanFeed(Documents(texts), Corruption(np.arange(30, 24, -1), 0.3, 2.0), 20, 1000, start=0, end=1, pad=0)
    (batch,) = feed.all()
    assert not batch.source_real.all() and not batch.target_real.all()
    peer.config.decoder_start_token_id = 0
    labels = batch.target_out.masked_fill(~batch.target_real, -100)
    wanted = peer(input_ids=batch.source, attention_mask=batch.source_real.long(), labels=labels).loss
    loss = TeacherForcing(0.0).loss(net, batch)
    assert loss.count == int((labels != -100).sum())
    assert_close(loss.plain / loss.count, wanted.detach(), rtol=0, atol=1e-10)


@named
@torch.no_grad()
def test_plain_float32_is_close(theirs, ours):
    peer = reference(theirs)
    net = loaded(peer, replace(OURS, **ours))
    source, target, real = batch()
    wanted = peer(input_ids=source, decoder_input_ids=target, attention_mask=real.long()).logits
    found = net.heads["lm"](net(encoder=Stream(source, real=real), decoder=target)["decoder"].x)
    assert_close(found, wanted, rtol=0, atol=5e-5 * max(1.0, float(wanted.abs().max())))


@named
def test_the_config_is_read_and_written(theirs, ours):
    """From the reference's own config.json; and what we write is read by the reference as the same model."""
    peer = reference(theirs)
    read = t5.Config(**keys.read(t5.KEYS, {**peer.config.to_dict(), **theirs}))  # the reference says tied of untied models
    wanted = replace(OURS, **ours)
    assert replace(read, n_decoder_layers=wanted.n_decoder_layers, scale_output=wanted.scale_output) == wanted
    assert (read.n_decoder_layers or read.n_layers) == (wanted.n_decoder_layers or wanted.n_layers)
    assert read.tie is False or read.scale_output == wanted.scale_output
    back = transformers.T5Config(**keys.write(t5.KEYS, asdict(read)))
    for name in (
        "d_model",
        "d_kv",
        "d_ff",
        "num_layers",
        "num_decoder_layers",
        "num_heads",
        "dense_act_fn",
        "is_gated_act",
        "layer_norm_epsilon",
    ):
        assert getattr(back, name) == getattr(peer.config, name), name


UNTIED_BUT_SCALED = {"tie_word_embeddings": False, "scale_decoder_outputs": True}


@pytest.mark.parametrize("said", [{"feed_forward_proj": "gated-odd"}, {"is_encoder_decoder": False}, {"new_switch": 1}, UNTIED_BUT_SCALED])
def test_what_is_not_understood_is_refused_by_name(said):
    with pytest.raises(InputError, match=next(iter(said)) if len(said) == 1 else "scale_decoder_outputs"):
        keys.read(t5.KEYS, {**reference({}).config.to_dict(), **said})


def test_a_table_of_the_first_releases_that_nothing_reads_is_dropped():
    peer = reference({})
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    held = Held({**peer.state_dict(), name: torch.ones(32, 3)})
    assert set(table.load(t5.build(OURS), held, t5.rules(OURS)).dropped) == {name}
