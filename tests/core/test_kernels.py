"""Kernels: the reference against loops over rows, heads, queries and keys; SDPA against the reference; what is masked is never seen."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from plait.core import kernels
from plait.core.kernels import Lowered, reference, sdpa
from plait.core.masks import Blocks, Window, causal
from plait.core.stream import Places

B, H, L, S, K = 2, 4, 5, 5, 3
KERNELS = pytest.mark.parametrize("kernel", [reference, sdpa], ids=["reference", "sdpa"])
REAL = torch.tensor([[True, True, True, False, False], [False, True, True, True, True]])


def looped(q, k, v, seen, bias, scale):
    """softmax(q·k scale + bias) v over the keys that are seen, in plain Python; zeros where none is."""
    out, groups = torch.zeros(q.shape).tolist(), q.shape[1] // k.shape[1]
    shape = q.shape
    q, k, v, seen, bias = (t.tolist() for t in (q, k, v, seen, bias))
    for b, h, i in itertools.product(*map(range, shape[:3])):
        g = h // groups
        keys = [j for j, yes in enumerate(seen[b][h][i]) if yes]
        scores = [sum(q[b][h][i][c] * k[b][g][j][c] for c in range(K)) * scale + bias[b][h][i][j] for j in keys]
        total = sum(math.exp(s) for s in scores)
        for c in range(K):
            out[b][h][i][c] = sum(math.exp(s) / total * v[b][g][j][c] for j, s in zip(keys, scores, strict=True))
    return torch.tensor(out, dtype=torch.float64)


def qkv(n_kv=H, length=L, source=S, dtype=torch.float64, grad=False):
    torch.manual_seed(0)
    sizes = (H, length), (n_kv, source), (n_kv, source)
    return [torch.randn(B, n, size, K, dtype=dtype, requires_grad=grad) for n, size in sizes]


MASKS = {"none": None, "causal": causal, "window": Window(1), "blocks": Blocks(3, ((True, True), (False, True)))}


@KERNELS
@pytest.mark.parametrize("n_kv", [4, 2, 1])
@pytest.mark.parametrize("biased", ["", "fixed", "own", "both"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_a_kernel_is_the_formula(kernel, name, padded, biased, n_kv):
    mask, (q, k, v) = MASKS[name], qkv(n_kv)
    places = Places(L, real=REAL if padded else None)
    seen = torch.ones(B, H, L, S, dtype=torch.bool)
    for i, j in itertools.product(range(L), range(S)):
        if mask is causal:
            seen[:, :, i, j] &= j <= i
        if name == "window":
            seen[:, :, i, j] &= i - 1 <= j <= i
        if name == "blocks":
            seen[:, :, i, j] &= i < 3 or j >= 3
    if padded:
        seen &= REAL[:, None, None, :]
    none = torch.zeros(B, H, L, S, dtype=torch.float64)
    fixed = torch.randn(1, H, L, S, dtype=torch.float64) if biased in ("fixed", "both") else None
    own = torch.randn(B, H, L, S, dtype=torch.float64) if biased in ("own", "both") else None
    bias = none + (0 if fixed is None else fixed) + (0 if own is None else own)
    out = kernel.attend(q, k, v, kernel.lower(mask, places, places, fixed), own, 0.7)
    assert_close(out, looped(q, k, v, seen, bias, 0.7), rtol=1e-12, atol=1e-12)


@KERNELS
@pytest.mark.parametrize("start", [0, 3])
def test_new_tokens_behind_a_cache_see_what_lies_before_them(kernel, start):
    q, k, v = qkv(length=2, source=start + 2)
    out = kernel.attend(q, k, v, kernel.lower(causal, Places(2, start), Places(start + 2)), scale=1.0)
    seen = torch.ones(B, H, 2, start + 2, dtype=torch.bool)
    seen[:, :, 0, -1] = False
    assert_close(out, looped(q, k, v, seen, torch.zeros_like(seen), 1.0), rtol=1e-12, atol=1e-12)


@KERNELS
def test_one_new_token_needs_no_mask_only_where_all_keys_lie_before_it(kernel):
    assert kernel.lower(causal, Places(1, 4), Places(5)).tensor is None
    q, k, v = qkv(length=1)
    out = kernel.attend(q, k, v, kernel.lower(causal, Places(1, 2), Places(5)), scale=1.0)  # keys 3 and 4 lie ahead
    assert_close(out, kernel.attend(q, k[:, :, :3], v[:, :, :3], Lowered(None), scale=1.0))


@KERNELS
def test_packed_documents_are_kept_apart(kernel):
    q, k, v = qkv()
    segment = torch.tensor([[0, 0, 1, 1, 1], [7, 7, 7, 7, 2]])
    places = Places(L, segment=segment)
    together = kernel.attend(q, k, v, kernel.lower(causal, places, places), scale=1.0)
    for b, cuts in enumerate(((0, 2, 5), (0, 4, 5))):
        for a, z in itertools.pairwise(cuts):
            part, alone = slice(a, z), Places(z - a)
            rows = [t[b : b + 1, :, part] for t in (q, k, v)]
            assert_close(together[b : b + 1, :, part], kernel.attend(*rows, kernel.lower(causal, alone, alone), scale=1.0))


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["bool", "additive", "own bias"])
def test_rows_that_see_nothing_give_zeros_and_no_nan(kernel, dtype, form):
    """Row 0 of the batch sees nothing; with left padding under a causal mask this happens in every batch."""
    q, k, v = qkv(dtype=dtype, grad=True)
    places = Places(L, real=torch.tensor([[False] * 5, [False, False, True, True, True]]))
    fixed = torch.zeros(1, H, L, S, dtype=dtype, requires_grad=True) if form == "additive" else None
    own = torch.zeros(B, H, L, S, dtype=dtype, requires_grad=True) if form == "own bias" else None
    out = kernel.attend(q, k, v, kernel.lower(causal, places, places, fixed), own, 1.0)
    blind = torch.zeros(B, L, dtype=torch.bool)
    blind[0], blind[1, :2] = True, True
    assert out.transpose(1, 2)[blind].abs().max() == 0
    assert out.transpose(1, 2)[~blind].abs().min() > 0
    out.square().sum().backward()
    for t in (q, k, v, fixed, own):
        if t is not None:
            assert t.grad.isfinite().all()
    assert q.grad.transpose(1, 2)[blind].abs().max() == 0
    assert k.grad[0].abs().max() == v.grad[0].abs().max() == 0
    assert q.grad[1, :, 3:].abs().min() > 0


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("huge", [7.0, 1e30])
def test_masked_keys_are_never_seen(kernel, dtype, biased, huge):
    q, k, v = qkv(dtype=dtype)
    places = Places(L, real=REAL)
    bias = torch.randn(1, H, L, S, dtype=dtype) if biased else None
    lowered = kernel.lower(None, places, places, bias)
    before = kernel.attend(q, k, v, lowered, scale=1.0)
    gone = ~REAL[:, None, :, None]
    after = kernel.attend(q, k.masked_fill(gone, huge), v.masked_fill(gone, -huge), lowered, scale=1.0)
    assert torch.equal(before, after)
    seen = kernel.attend(q, k, v.masked_fill(~gone, 3.0), lowered, scale=1.0)
    assert not torch.equal(before, seen)  # the test can fail


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_past_never_sees_the_future(kernel, dtype):
    q, k, v = qkv(dtype=dtype)
    places = Places(L)
    lowered = kernel.lower(causal, places, places)
    before = kernel.attend(q, k, v, lowered, scale=1.0)
    for cut in range(1, L):
        k2, v2 = k.clone(), v.clone()
        k2[:, :, cut:], v2[:, :, cut:] = 1e30, -1e30
        after = kernel.attend(q, k2, v2, lowered, scale=1.0)
        assert torch.equal(before[:, :, :cut], after[:, :, :cut])
        assert not torch.equal(before[:, :, cut:], after[:, :, cut:])


def test_both_kernels_agree_in_values_and_gradients():
    for n_kv, padded in itertools.product((4, 2), (False, True)):
        places = Places(L, real=REAL if padded else None)
        grads = []
        for kernel in (reference, sdpa):
            q, k, v = qkv(n_kv, grad=True)
            own = torch.randn(B, H, L, S, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
            out = kernel.attend(q, k, v, kernel.lower(causal, places, places), own, 0.5)
            grads.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v, own))])
        for a, b in zip(*grads, strict=True):
            assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_weights_sum_to_one_and_their_product_is_the_output():
    q, k, v = qkv(2)
    places = Places(L, real=REAL)
    for kernel in (reference, sdpa):  # a watcher gets what this kernel lowered
        for mask in (None, causal):
            where = Places(L) if mask else places
            lowered = kernel.lower(mask, where, where)
            w = kernels.weights(q, k, lowered, None, 0.4)
            assert_close(w.sum(-1), torch.ones(B, H, L, dtype=torch.float64))
            assert_close(w @ v.repeat_interleave(2, 1), kernel.attend(q, k, v, lowered, scale=0.4))


@KERNELS
def test_dropout_falls_on_the_weights(kernel):
    torch.manual_seed(0)
    n, p = 2000, 0.3
    q, k = torch.zeros(n, 1, 1, 4), torch.zeros(n, 1, 4, 4)
    v = torch.eye(4).expand(n, 1, 4, 4)  # the output is the row of weights: 1/4 each
    out = kernel.attend(q, k, v, Lowered(None), None, 1.0, p)
    assert_close(out[out != 0], torch.full_like(out[out != 0], 0.25 / 0.7))
    assert abs((out == 0).float().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / (4 * n))
    assert_close(kernel.attend(q, k, v, Lowered(None)), torch.full((n, 1, 1, 4), 0.25))


@pytest.mark.parametrize("length", [5, 40])
def test_a_float32_bias_beside_float64_queries(length):
    """torch 2.13 adds it wrongly on a CPU from some 16 keys on."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, length, 8, dtype=torch.float64)
    mask = Lowered(torch.randn(1, 4, length, length))
    assert_close(sdpa.attend(q, k, v, mask, scale=0.3), reference.attend(q, k, v, mask, scale=0.3))
