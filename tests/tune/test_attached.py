"""Small parts on a frozen model: attached, chosen, saved, merged and taken off."""

import copy
import json

import pytest
import torch

from plait.errors import InputError
from plait.tune import (
    METHODS,
    Adapter,
    HeadOnly,
    LoRA,
    Prefix,
    attach,
    described,
    detach,
    load_small,
    merge,
    names,
    select,
    small,
    tuning_of,
    unmerge,
    using,
)


@torch.no_grad()
def test_merged_is_unmerged_in_float32_and_bits_come_back(model, moved, said):
    net = model(std=0.05).float()
    attach(net, LoRA(rank=4, targets=("*_proj",)))
    moved(net)
    for p in net.parameters():
        p.mul_(0.1 if p.requires_grad else 1)
    answer = said(net)
    bits = {name: p.detach().clone() for name, p in net.named_parameters()}
    merge(net)
    assert ((said(net) - answer).abs().max() / answer.abs().max()) < 1e-6
    with pytest.raises(InputError, match="unmerge"), using(net, None):
        pass
    unmerge(net)
    assert all(torch.equal(p, bits[name]) for name, p in net.named_parameters())
    assert torch.equal(said(net), answer)
    with pytest.raises(InputError, match="nothing is merged"):
        unmerge(net)


@torch.no_grad()
def test_a_new_head_is_trained_saved_and_switched_with_its_tuning(model, moved, said):
    net = model(tie=False)
    plain = said(net)
    learned = attach(net, LoRA(rank=2), "a", also=["heads.*"])
    assert "heads.lm.weight" in learned
    moved(net)
    answer = said(net)
    attach(net, Prefix(length=2), "b")
    select(net, None)
    assert torch.equal(said(net), plain)
    with using(net, "a"):
        assert torch.equal(said(net), answer)
        twin = copy.deepcopy(net)
    assert torch.equal(said(twin), answer)
    fresh = model(tie=False)
    load_small(fresh, LoRA(rank=2), small(net, "a"))
    assert torch.equal(said(fresh), answer)
    detach(net, "a")
    assert names(net) == ["b"]
    detach(net, "b")
    assert torch.equal(said(net), plain)
    assert all(p.requires_grad for p in net.parameters())


def test_what_is_saved_does_not_tell_what_else_is_attached(model):
    net, alone = model(), model()
    attach(alone, LoRA(rank=2))
    attach(net, Adapter(width=3), "first")
    attach(net, LoRA(rank=2))
    assert small(net).keys() == small(alone).keys()


def test_what_was_taken_out_moves_along(model):
    net = model(tie=False)
    attach(net, HeadOnly())
    net.float()
    select(net, None)
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_every_name_of_a_method_can_stand_in_a_file():
    for name in METHODS:
        tuning = tuning_of({"method": name})
        assert tuning.method == name
        assert tuning_of(json.loads(json.dumps(described(tuning)))) == tuning
