"""Learned keys and values stand before the sequence's own; everyone sees them."""

import pytest
import torch
from torch.testing import assert_close

from plait.core.attention import Attention, CrossAttention
from plait.core.kernels import reference, sdpa
from plait.core.masks import causal
from plait.core.memory import Memory
from plait.core.stream import Call, Places, Stream

REAL = torch.tensor([[True, True, False, False], [True, True, True, True]])


@pytest.mark.parametrize("kernel", [reference, sdpa])
@pytest.mark.parametrize("mask", [None, causal])
@pytest.mark.parametrize("real", [None, REAL])
@pytest.mark.parametrize("n_kv", [2, 1])
def test_memory_is_keys_and_values_joined_by_hand(kernel, mask, real, n_kv):
    torch.manual_seed(0)
    memory = Memory(3, n_kv, 4)
    attention = Attention(8, 2, n_kv_heads=n_kv, mask=mask, memory=memory).double()
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    out = attention(x, Call(Stream(x, real=real), kernel), ())

    for b in range(2):
        for i in range(4):
            heads = []
            for h in range(2):
                g = h * n_kv // 2
                q = attention.q_proj(x[b, i]).unflatten(-1, (2, 4))[h]
                own = [j for j in range(4) if (mask is None or j <= i) and (real is None or real[b, j])]
                keys = [*memory.k[g], *(attention.k_proj(x[b, j]).unflatten(-1, (n_kv, 4))[g] for j in own)]
                values = [*memory.v[g], *(attention.v_proj(x[b, j]).unflatten(-1, (n_kv, 4))[g] for j in own)]
                weights = torch.stack([(q * k).sum() / 2.0 for k in keys]).softmax(0)
                heads.append(sum(w * v for w, v in zip(weights, values, strict=True)))
            assert_close(out[b, i], attention.o_proj(torch.cat(heads)), rtol=1e-10, atol=1e-12)


def test_memory_learns_and_is_stored_with_its_attention():
    torch.manual_seed(0)
    attention = Attention(8, 2, memory=Memory(3, 2, 4))
    x = torch.randn(2, 4, 8)
    attention(x, Call(Stream(x), sdpa), ()).square().sum().backward()
    assert attention.memory.k.grad.abs().min() > 0
    assert attention.memory.v.grad.abs().min() > 0
    assert {"memory.k", "memory.v"} <= set(attention.state_dict())


def test_cross_attention_has_it_too():
    torch.manual_seed(0)
    attention = CrossAttention(8, 2, memory=Memory(3, 2, 4))
    x = torch.randn(2, 4, 8)
    blind = Stream(torch.randn(2, 5, 8), real=torch.zeros(2, 5, dtype=torch.bool))  # nothing but the memory is seen
    a = attention(x, Call(Stream(x), sdpa, {"encoder": blind}), ())
    b = attention(x, Call(Stream(x), sdpa, {"encoder": blind.having(x=blind.x * 3)}), ())
    assert torch.equal(a, b)
    assert a.abs().max() > 0


def test_two_layers_share_the_places_but_not_the_vectors():
    places, call = Places(4, real=REAL), Call(Stream(torch.zeros(2, 4, 8)), sdpa)
    k = torch.zeros(2, 2, 4, 4)
    first, second = Memory(3, 2, 4)(k, k, places, call), Memory(3, 2, 4)(k, k, places, call)
    assert first[2] is second[2]
    assert not torch.equal(first[0], second[0])
    assert first[2].slots.tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert first[2].real.tolist() == [[True] * 3 + row for row in REAL.tolist()]


@pytest.mark.parametrize("kernel", [reference, sdpa])
def test_packed_documents_all_see_it_and_not_each_other(kernel):
    """Two documents in one row are what each of them is alone."""
    torch.manual_seed(0)
    step = Attention(8, 2, mask=causal, memory=Memory(3, 2, 4)).double()
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    segment = torch.tensor([[0, 0, 1, 1, 1]])
    packed = step(x, Call(Stream(x, segment=segment), kernel), ())
    alone = [step(part, Call(Stream(part), kernel), ()) for part in (x[:, :2], x[:, 2:])]
    assert_close(packed, torch.cat(alone, 1))
