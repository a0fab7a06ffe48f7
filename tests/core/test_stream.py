"""Streams, places, the object of one forward, and what is lent."""

import copy
import pickle

import pytest
import torch
from torch import nn

from plait.core.kernels import reference
from plait.core.stream import Call, Lent, Places, Stream, stream


def test_slots_follow_the_start():
    assert Places(3, 4).slots.tolist() == [4, 5, 6]
    s = Stream(torch.zeros(2, 3, 5), start=4)
    assert (s.length, s.places.length, s.places.slots.tolist()) == (3, 3, [4, 5, 6])
    assert s.places is s.places


def test_positions_count_real_entries_only():
    assert Stream(torch.zeros(1, 3), start=4).at_positions().tolist() == [4, 5, 6]
    left = torch.tensor([[False, False, True, True], [True, True, True, True]])
    right = torch.tensor([[True, True, False, False], [True, True, True, True]])
    assert Stream(torch.zeros(2, 4), real=left).at_positions().tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert Stream(torch.zeros(2, 4), real=right).at_positions()[0, :2].tolist() == [0, 1]
    given = torch.tensor([[7, 7, 9]])
    assert Stream(torch.zeros(1, 3), positions=given).at_positions() is given


def test_having_changes_only_what_is_named():
    s = Stream(torch.zeros(2, 3, 5), start=4, grid=(1, 3))
    t = s.having(start=6)
    assert (t.start, t.grid, t.x is s.x, s.start) == (6, (1, 3), True, 4)
    assert t.places.slots.tolist() == [6, 7, 8]  # not those of the old one
    assert stream(s) is s
    assert stream(s.x).x is s.x


def test_once_makes_once():
    made = []
    call = Call(Stream(torch.zeros(1, 1, 1)), reference)
    assert [call.once("a", lambda: made.append(0) or len(made)) for _ in range(3)] == [1, 1, 1]
    assert call.once("b", lambda: 5) == 5
    assert Call(call.stream, reference).memo == {}  # a forward of its own has a memo of its own


class Owner(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = nn.Linear(2, 2)
        self.user = nn.Module()
        self.user.borrowed = Lent(self.part)


def test_a_lent_part_works_but_is_not_registered():
    owner = Owner()
    x = torch.randn(3, 2)
    assert torch.equal(owner.user.borrowed(x), owner.part(x))
    assert owner.user.borrowed.in_features == 2
    assert sorted(owner.state_dict()) == ["part.bias", "part.weight"]
    assert len(list(owner.parameters())) == 2
    assert list(owner.user.parameters()) == []
    with pytest.raises(AttributeError):
        _ = owner.user.borrowed.nothing_of_the_kind


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_borrows_from_the_copy(way):
    owner = Owner()
    twin = way(owner)
    assert twin.user.borrowed.part is twin.part
    assert twin.part is not owner.part
    assert owner.double().user.borrowed.weight.dtype == torch.float64  # moved with its owner
