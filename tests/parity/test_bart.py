"""BART and Marian against the reference implementation: tiny models with random weights, every option that changes what is computed."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from plait.core.cache import Cache
from plait.core.stream import Stream
from plait.errors import InputError
from plait.models import bart
from plait.weights import config as keys
from plait.weights import rules as table
from plait.weights.source import Held

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

SIZES = dict(d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3, decoder_attention_heads=3, vocab_size=31)
SIZES |= dict(encoder_ffn_dim=40, decoder_ffn_dim=40, max_position_embeddings=20, pad_token_id=1, decoder_start_token_id=2, eos_token_id=2)
BART = bart.Config(vocab_size=31, d_model=24, n_heads=3, n_layers=2, d_ff=40, max_length=20)
MARIAN = replace(BART, positions="sinusoid")
UNSHARED = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 37}


def reference(family, options):
    torch.manual_seed(0)
    options = {**SIZES, "dropout": 0.0, "bos_token_id": 0, "forced_eos_token_id": 2, **options}
    if family == "bart":
        peer = transformers.BartForConditionalGeneration(transformers.BartConfig(**options, attn_implementation="eager"))
    else:
        peer = transformers.MarianMTModel(transformers.MarianConfig(**options, attn_implementation="eager"))
    for name, p in peer.named_parameters():
        if family == "bart" or "embed_positions" not in name:
            torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    peer.final_logits_bias.normal_()
    return peer.eval()


def loaded(peer, config):
    net, held = bart.build(config).eval(), Held(peer.state_dict())
    certificate = table.load(net, held, bart.rules(config))
    back = table.export(net, bart.rules(config), certificate)
    rounded = {name for name, made in certificate.computed.items() if not made.exact}  # float64: two libraries' last bits
    assert not certificate.dropped and (not rounded or peer.dtype == torch.float64)
    assert all(torch.equal(back[name], held.tensors[name]) for name in held.tensors if name not in rounded)
    return net


OPTIONS = [
    ("bart", {}, BART),
    ("bart", {"scale_embedding": True}, replace(BART, scale_embedding=True)),
    ("bart", {"activation_function": "relu"}, replace(BART, activation="relu")),
    ("bart", {"decoder_layers": 1, "decoder_attention_heads": 2}, replace(BART, n_decoder_layers=1, n_decoder_heads=2)),
    ("bart", {"decoder_ffn_dim": 16, "encoder_layers": 3}, replace(BART, d_decoder_ff=16, n_layers=3, n_decoder_layers=2)),
    ("marian", {}, MARIAN),
    ("marian", {"scale_embedding": True, "activation_function": "swish"}, replace(MARIAN, scale_embedding=True, activation="silu")),
    ("marian", UNSHARED, replace(MARIAN, target_vocab=37)),
]
named = pytest.mark.parametrize(("family", "theirs", "ours"), OPTIONS, ids=lambda o: str(o)[:40] if isinstance(o, str | dict) else "")


def batch():
    draw = torch.Generator().manual_seed(1)
    source, target = torch.randint(3, 31, (3, 17), generator=draw), torch.randint(3, 31, (3, 11), generator=draw)
    return source, target, torch.arange(17) < torch.tensor([[17], [4], [12]])


def unrounded(peer, d=24):
    """Marian stores its sinusoids in float32; in float64 they are those of the formula (Vaswani et al. 2017, section 3.5)."""
    place, channel = np.arange(SIZES["max_position_embeddings"])[:, None], np.arange(d // 2)
    angle = place / 10000.0 ** (2 * channel / d)
    for side in (peer.model.encoder, peer.model.decoder):
        if "Sinusoidal" in type(side.embed_positions).__name__:
            side.embed_positions.weight.data = torch.from_numpy(np.concatenate([np.sin(angle), np.cos(angle)], 1))
    return peer


@named
@torch.no_grad()
def test_logits_and_loss_are_the_reference(family, theirs, ours):
    peer = unrounded(reference(family, theirs).double())
    net = loaded(peer, ours).double()
    source, target, real = batch()
    for mask in (None, real):
        inputs = dict(input_ids=source, decoder_input_ids=target, attention_mask=None if mask is None else mask.long())
        out = peer(**inputs, labels=target.roll(-1, 1))
        scores = net.heads["lm"](net(encoder=Stream(source, real=mask), decoder=target)["decoder"].x)
        assert_close(scores, out.logits, rtol=0, atol=1e-9)
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), target.roll(-1, 1).flatten())
        assert_close(loss, out.loss, rtol=0, atol=1e-9)


@named
@torch.no_grad()
def test_cached_is_the_reference(family, theirs, ours):
    peer = reference(family, theirs)
    net = loaded(peer, ours)
    source, target, real = batch()
    wanted = peer(input_ids=source, decoder_input_ids=target, attention_mask=real.long()).logits
    memory, cache, at, parts = net.run("encoder", Stream(source, real=real)), Cache(11), 0, []
    for n in (1, 4, 1, 5):
        parts.append(net.heads["lm"](net.run("decoder", target[:, at : at + n], {"encoder": memory}, cache).x))
        at += n
    assert_close(torch.cat(parts, 1), wanted, rtol=0, atol=5e-5)


@named
def test_the_config_is_read_and_written(family, theirs, ours):
    """From the reference's own config.json; what we write is read by the reference as the same model, and by us."""
    peer = reference(family, theirs)
    read = bart.Config(**keys.read(bart.KEYS, peer.config.to_dict()))
    whole = replace(
        ours,
        n_decoder_heads=ours.n_decoder_heads or ours.n_heads,
        n_decoder_layers=ours.n_decoder_layers or ours.n_layers,
        d_decoder_ff=ours.d_decoder_ff or ours.d_ff,
        dropout=0.0,
    )
    assert read == whole
    raw = keys.write(bart.KEYS, asdict(read))
    back = (transformers.BartConfig if family == "bart" else transformers.MarianConfig)(**raw)
    for name in ("d_model", "encoder_layers", "decoder_layers", "decoder_attention_heads", "scale_embedding"):
        assert getattr(back, name) == getattr(peer.config, name), name
    assert bart.Config(**keys.read(bart.KEYS, back.to_dict())) == read  # swish may have become silu, its other name
    assert bart.Config(**keys.read(bart.KEYS, raw)) == read


@torch.no_grad()
def test_a_model_saved_without_its_head_scores_without_a_bias():
    """facebook/bart-base and bart-large are such files; the first ones also hold the number of their format."""
    whole = reference("bart", {})
    whole.final_logits_bias.zero_()
    bare = {**whole.model.state_dict(), "encoder.version": torch.ones(1), "decoder.version": torch.ones(1)}
    config = bart.fitted(BART, bare)
    net = bart.build(config).eval()
    certificate = table.load(net, Held(bare), bart.rules(config))
    assert set(certificate.dropped) == {"encoder.version", "decoder.version"} and certificate.bare == "model."
    source, target, _ = batch()
    scores = net.heads["lm"](net(encoder=source, decoder=target)["decoder"].x)
    assert_close(scores, whole(input_ids=source, decoder_input_ids=target).logits, rtol=0, atol=5e-5)
    assert bart.fitted(BART, whole.state_dict()) == BART


@pytest.mark.parametrize("said", [{"activation_function": "odd"}, {"tie_word_embeddings": False}, {"normalize_before": True}, {"new": 1}])
def test_what_is_not_understood_is_refused_by_name(said):
    with pytest.raises(InputError, match=next(iter(said))):
        keys.read(bart.KEYS, {**reference("bart", {}).config.to_dict(), **said})
