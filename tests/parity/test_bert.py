"""BERT against the reference implementation: tiny models with random weights, every option that changes what is computed."""

from dataclasses import asdict, replace

import pytest
import torch
from torch.testing import assert_close

from plait.core.stream import Stream
from plait.errors import InputError
from plait.models import bert
from plait.weights import config as keys
from plait.weights import rules as table
from plait.weights.source import Held

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

SIZES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, vocab_size=31, max_position_embeddings=16)
OURS = bert.Config(vocab_size=31, d_model=24, n_heads=3, n_layers=2, d_ff=40, max_length=16)
CLASSES = {
    "mlm": "BertForMaskedLM",
    "classify": "BertForSequenceClassification",
    "tag": "BertForTokenClassification",
    "answer": "BertForQuestionAnswering",
    "pool": "BertModel",
}


def reference(head="mlm", **options):
    torch.manual_seed(0)
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_implementation": "eager", **options}
    net = getattr(transformers, CLASSES[head])(transformers.BertConfig(**SIZES, **options)).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    return net


def loaded(theirs, config):
    net = bert.build(config).eval()
    held = Held(theirs.state_dict())
    certificate = table.load(net, held, bert.rules(config))
    back = table.export(net, bert.rules(config), certificate)
    assert list(back) and all(torch.equal(back[name], held.tensors[name]) for name in held.tensors if name not in certificate.dropped)
    return net


def batch():
    draw = torch.Generator().manual_seed(1)
    ids, types = torch.randint(31, (3, 9), generator=draw), torch.randint(2, (3, 9), generator=draw)
    real = torch.arange(9) < torch.tensor([[9], [4], [7]])
    return ids, types, real


@pytest.mark.parametrize("head", CLASSES)
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"hidden_act": "relu"}, {"activation": "relu"}),
        ({"hidden_act": "gelu_new"}, {"activation": "gelu_tanh"}),
        ({"hidden_act": "silu"}, {"activation": "silu"}),
        ({"layer_norm_eps": 1e-3}, {"norm_eps": 1e-3}),
        ({"type_vocab_size": 5}, {"types": 5}),
        ({"tie_word_embeddings": False}, {"tie": False}),
        ({"num_labels": 4}, {"labels": 4}),
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()) or "plain",
)
@torch.no_grad()
def test_logits_are_the_reference(head, theirs, ours):
    if head == "answer" and "num_labels" in theirs:
        pytest.skip("not applicable: a span has a start and an end")
    peer = reference(head, **theirs).double()
    net = loaded(peer, replace(OURS, **ours, head=head)).double()
    ids, types, real = batch()
    for kinds, mask in ((None, None), (types, None), (types, real)):
        out = peer(input_ids=ids, token_type_ids=kinds, attention_mask=None if mask is None else mask.long())
        hidden = net(encoder=Stream(ids, types=kinds, real=mask))["encoder"].x
        seen = torch.ones(3, 9, dtype=torch.bool) if mask is None else mask
        if head == "pool":
            assert_close(hidden[seen], out.last_hidden_state[seen], rtol=0, atol=1e-9)
            assert_close(net.heads["pool"](hidden[:, 0]), out.pooler_output, rtol=0, atol=1e-9)
        elif head == "answer":
            assert_close(net.heads["answer"](hidden)[seen], torch.stack([out.start_logits, out.end_logits], -1)[seen], rtol=0, atol=1e-9)
        elif head == "classify":
            assert_close(net.heads["classify"](hidden[:, 0]), out.logits, rtol=0, atol=1e-9)
        else:
            assert_close(net.heads[head](hidden)[seen], out.logits[seen], rtol=0, atol=1e-9)


@torch.no_grad()
def test_plain_float32_is_close():
    peer = reference()
    ids, types, real = batch()
    out = peer(input_ids=ids, token_type_ids=types, attention_mask=real.long()).logits
    net = loaded(peer, OURS)
    assert_close(net.heads["mlm"](net(encoder=Stream(ids, types=types, real=real))["encoder"].x)[real], out[real], rtol=0, atol=5e-5)


def test_the_loss_is_theirs():
    peer = reference().double()
    ids, types, real = batch()
    labels = torch.where(torch.rand(3, 9, generator=torch.Generator().manual_seed(3)) < 0.3, ids, -100).masked_fill(~real, -100)
    wanted = peer(input_ids=ids, token_type_ids=types, attention_mask=real.long(), labels=labels).loss
    net = loaded(peer, OURS).double()
    scores = net.heads["mlm"](net(encoder=Stream(ids, types=types, real=real))["encoder"].x)
    assert_close(torch.nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten()), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("head", CLASSES)
def test_the_config_is_read_and_written(head):
    """From the reference's own config.json; what we write is read by the reference as the same model, and by us."""
    options = {"layer_norm_eps": 1e-5, "hidden_act": "relu", "type_vocab_size": 3, "tie_word_embeddings": False, "num_labels": 4}
    raw = {**reference(head, **options).config.to_dict(), "architectures": [CLASSES[head]]}
    read = bert.Config(**keys.read(bert.KEYS, raw))
    wanted = replace(OURS, norm_eps=1e-5, activation="relu", types=3, tie=False, labels=4, head=head, dropout=0.0)
    assert read == replace(wanted, attention_dropout=0.0)
    back = keys.write(bert.KEYS, asdict(read))
    again = {**transformers.BertConfig(**back).to_dict(), "architectures": back["architectures"]}
    assert bert.Config(**keys.read(bert.KEYS, again)) == bert.Config(**keys.read(bert.KEYS, back)) == read


@pytest.mark.parametrize("said", [{"position_embedding_type": "relative_key"}, {"is_decoder": True}, {"hidden_act": "odd"}, {"new": 1}])
def test_what_is_not_understood_is_refused_by_name(said):
    with pytest.raises(InputError, match=next(iter(said))):
        keys.read(bert.KEYS, {**reference().config.to_dict(), **said})


def test_two_biases_of_one_output_must_be_one():
    """Files hold the bias of the scores under two names; the reference reads one of them."""
    state = reference().state_dict()
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"] + 1
    with pytest.raises(InputError, match=r"cls.predictions.decoder.bias .* differ in the file"):
        table.load(bert.build(OURS), Held(state), bert.rules(OURS))
