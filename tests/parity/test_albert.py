"""ALBERT against the reference implementation: tiny models with random weights, every option that changes what is computed."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from plait.core.stream import Stream
from plait.errors import InputError
from plait.models import albert
from plait.weights import config as keys
from plait.weights import rules as table
from plait.weights.source import Held

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

SIZES = dict(
    embedding_size=12,
    hidden_size=24,
    num_hidden_layers=4,
    num_attention_heads=3,
    intermediate_size=40,
    vocab_size=31,
    max_position_embeddings=16,
)
OURS = albert.Config(vocab_size=31, d_embed=12, d_model=24, n_heads=3, n_layers=4, d_ff=40, max_length=16)
CLASSES = {
    "mlm": "AlbertForMaskedLM",
    "classify": "AlbertForSequenceClassification",
    "tag": "AlbertForTokenClassification",
    "answer": "AlbertForQuestionAnswering",
    "pool": "AlbertModel",
}


@pytest.mark.parametrize("head", CLASSES)
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"num_hidden_groups": 2}, {"groups": 2}),
        ({"num_hidden_groups": 4}, {"groups": 4}),
        ({"hidden_act": "gelu"}, {"activation": "gelu"}),
        ({"layer_norm_eps": 1e-3}, {"norm_eps": 1e-3}),
        ({"type_vocab_size": 5}, {"types": 5}),
        ({"tie_word_embeddings": False}, {"tie": False}),
        ({"embedding_size": 24}, {"d_embed": 24}),
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()) or "plain",
)
@torch.no_grad()
def test_logits_are_the_reference(head, theirs, ours):
    torch.manual_seed(0)
    peer = (
        getattr(transformers, CLASSES[head])(transformers.AlbertConfig(**{**SIZES, **theirs}, attn_implementation="eager")).eval().double()
    )
    for p in peer.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    config = replace(OURS, **ours, head=head)
    net, held = albert.build(config).eval(), Held(peer.state_dict())
    certificate = table.load(net, held, albert.rules(config))
    back = table.export(net, albert.rules(config), certificate)
    assert all(torch.equal(back[name], held.tensors[name]) for name in held.tensors if name not in certificate.dropped)
    draw = torch.Generator().manual_seed(1)
    ids, types = torch.randint(31, (3, 9), generator=draw), torch.randint(2, (3, 9), generator=draw)
    for mask in (None, torch.arange(9) < torch.tensor([[9], [4], [7]])):
        out = peer(input_ids=ids, token_type_ids=types, attention_mask=None if mask is None else mask.long())
        hidden = net(encoder=Stream(ids, types=types, real=mask))["encoder"].x
        seen = torch.ones(3, 9, dtype=torch.bool) if mask is None else mask
        if head == "pool":
            assert_close(net.heads["pool"](hidden[:, 0]), out.pooler_output, rtol=0, atol=1e-9)
        elif head == "answer":
            assert_close(net.heads["answer"](hidden)[seen], torch.stack([out.start_logits, out.end_logits], -1)[seen], rtol=0, atol=1e-9)
        elif head == "classify":
            assert_close(net.heads["classify"](hidden[:, 0]), out.logits, rtol=0, atol=1e-9)
        else:
            assert_close(net.heads[head](hidden)[seen], out.logits[seen], rtol=0, atol=1e-9)


@pytest.mark.parametrize("said", [{"inner_group_num": 2}, {"hidden_act": "odd"}, {"is_decoder": True}, {"new": 1}])
def test_what_is_not_understood_is_refused_by_name(said):
    with pytest.raises(InputError, match=next(iter(said))):
        keys.read(albert.KEYS, {"model_type": "albert", **said})
