"""The native parts of a training step against plain autograd in float64, for every instruction set; compiled steps against eager ones."""

import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from plait.core import feedforward, fused, kernels, linear, native
from plait.core.attention import Attention
from plait.core.feedforward import FFN, FUSED
from plait.core.linear import Linear, project
from plait.core.masks import causal
from plait.core.stream import Call, Places, Stream
from plait.models import gpt2


@pytest.fixture(params=native.possible())
def level(request, monkeypatch):
    try:
        native.build("fused", request.param)
    except native.CannotBuild as why:
        pytest.skip(f"no native kernels here: {why}")
    monkeypatch.setenv(native.SWITCH, request.param)
    native.library.cache_clear()
    fused.library.cache_clear()
    yield request.param
    native.library.cache_clear()
    fused.library.cache_clear()


def close(ours, exact, bound=2e-6):
    """Within `bound` of the largest entry: what float32 leaves of sums of some hundred terms."""
    assert ours.dtype == torch.float32
    assert_close(ours.double(), exact, rtol=0, atol=bound * max(1.0, float(exact.detach().abs().max())))


def gradients(y, wanted, grad):
    return [y, *torch.autograd.grad(y, wanted, grad.to(y.dtype))]


SHAPES = {  # rows, heads, key heads, queries, keys, width
    "blocks and a rest": (2, 2, 2, 133, 133, 32),
    "one block": (1, 3, 3, 37, 37, 16),
    "shared keys": (2, 4, 2, 70, 70, 48),
    "more keys": (1, 2, 1, 33, 101, 64),
    "more queries": (1, 2, 2, 130, 7, 16),
    "small blocks": (1, 1, 1, 40, 6000, 16),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_attention(shape, level):
    torch.manual_seed(0)
    b, h, g, n, s, w = SHAPES[shape]
    packed = torch.randn(b, n, h * w), torch.randn(b, s, g * w), 3 * torch.randn(b, s, g * w)  # heads lie as projections leave them
    inputs = [x.requires_grad_() for x in packed]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    grad = torch.randn(b, h, n, w)

    def heads(xs):
        return [x.unflatten(-1, (-1, w)).transpose(1, 2) for x in xs]

    for mask in (None, causal) if n == s else (None,):
        lowered = kernels.sdpa.lower(mask, *[Places(length, 0) for length in (n, s)])
        assert lowered.causal == (mask is causal) and fused.attends(*heads(inputs))
        ours = gradients(kernels.sdpa.attend(*heads(inputs), lowered, scale=0.3), inputs, grad)
        theirs = gradients(kernels.reference.attend(*heads(exact), lowered, scale=0.3), exact, grad)
        for a, e in zip(ours, theirs, strict=True):
            close(a, e, 1e-5)


def test_attention_tells_of_what_is_no_number_and_survives_large_scores(level):
    q, k, v = (torch.randn(1, 1, 40, 16, requires_grad=True) for _ in range(3))
    out = fused.attention(100 * q, 100 * k, v, True, 1.0)
    exact = kernels.reference.attend(100 * q.double(), 100 * k.double(), v.double(), kernels.Lowered(None, causal=True))
    assert_close(out.double(), exact, rtol=1e-3, atol=1e-3)  # scores of 10⁵ have 10⁻² of rounding
    bad = q.detach().clone()
    bad[0, 0, 7, 3] = float("nan")
    out = fused.attention(bad.requires_grad_(), k, v, True, 1.0)
    assert out[0, 0, 7].isnan().all() and out.isnan().sum() == 16


@pytest.mark.parametrize("name", [f.__name__ for f in FUSED])
def test_activations(name, level):
    activation = getattr(feedforward, name)
    x = torch.cat([torch.linspace(-14, 14, 4001), torch.tensor([0.0, -0.0, 1e-30, 60.0, -60.0])]).view(2, -1)  # no whole vectors
    x = torch.cat([x, x.flip(0)])
    bias = torch.linspace(-1, 1, x.shape[1])
    z = (x + bias).double().requires_grad_()
    exact = activation(z)
    slope = x.clone()
    y = fused.activated(FUSED[activation], slope, bias)
    (exact_slope,) = torch.autograd.grad(exact.sum(), z)
    bound = 4e-7 * exact.detach().abs() + 1e-6 * z.detach().abs().clamp(max=1)  # relative, and of Φ where it is small
    assert ((y - exact).abs() <= bound).all()
    assert (slope - exact_slope).abs().max() < 3e-6 * max(1.0, float(exact_slope.abs().max()))
    grad = torch.randn_like(x)
    before = grad.clone()
    sums = fused.scaled(grad, slope)
    assert_close(grad, before * slope, rtol=0, atol=0)
    assert_close(sums, grad.sum(0))
    assert fused.activated(FUSED[activation], torch.full((1, 3), float("nan")), None).isnan().all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [None, "up_proj.weight", "down_proj.weight", "down_proj.bias"])
@pytest.mark.parametrize("activation", list(FUSED))
def test_ffn(activation, frozen, bias, level):
    torch.manual_seed(0)
    ffn = FFN(24, 50, activation, bias=bias)
    for name, p in ffn.named_parameters():
        torch.nn.init.normal_(p, std=0.3)
        p.requires_grad_(name != frozen)
    x, grad = torch.randn(3, 50, 24, requires_grad=True), torch.randn(3, 50, 24)
    assert ffn.in_place(x)
    ours = gradients(ffn(x), [x, *(p for p in ffn.parameters() if p.requires_grad)], grad)
    wide = x.detach().double().requires_grad_()
    assert not ffn.double().in_place(wide)
    for a, e in zip(ours, gradients(ffn(wide), [wide, *(p for p in ffn.parameters() if p.requires_grad)], grad), strict=True):
        close(a, e)


@pytest.mark.parametrize("frozen", [(), (0,), (1, 2), (0, 1, 2)])
def test_projections_of_the_same_rows(frozen):
    torch.manual_seed(0)
    layers = [Linear(6, 8).double(), Linear(6, 4, bias=False).double(), Linear(6, 8).double()]
    for i, layer in enumerate(layers):
        for p in layer.parameters():
            torch.nn.init.normal_(p)
            p.requires_grad_(i not in frozen)
    x = torch.randn(2, 80, 6, dtype=torch.float64, requires_grad=True)
    wanted = [x, *(p for layer in layers for p in layer.parameters() if p.requires_grad)]
    grads = [torch.randn(2, 80, len(layer.weight), dtype=torch.float64) for layer in layers]
    ours, plain = project(x, *layers), [layer(x) for layer in layers]
    for a, e in zip(ours, plain, strict=True):
        assert_close(a, e, rtol=1e-12, atol=1e-12)
    for a, e in zip(torch.autograd.grad(ours, wanted, grads), torch.autograd.grad(plain, wanted, grads), strict=True):
        assert_close(a, e, rtol=1e-12, atol=1e-12)
    only = torch.autograd.grad(project(x, *layers)[1].sum(), x)[0]  # outputs that nobody used send nothing back
    assert_close(only, layers[1].weight.sum(0).detach().expand_as(only))


def test_gradients_of_projections_lie_side_by_side(level, monkeypatch):
    """What attention sends back to its projections is one matrix, so that their weights' gradients are one product."""
    torch.manual_seed(0)
    attention, found = Attention(32, 2, n_kv_heads=1, mask=causal), []
    monkeypatch.setattr(linear, "beside", lambda grads, real=linear.beside: found.append(real(grads)) or found[-1])
    x, grad = torch.randn(3, 50, 32, requires_grad=True), torch.randn(3, 50, 32)
    wide = x.detach().double().requires_grad_()
    results = []
    for start in (x, wide):
        call = Call(Stream(start), kernels.sdpa)
        results.append(gradients(attention(start, call, ()), [start, *attention.parameters()], grad))
        attention.double()
    assert found[0] is not None and found[0].shape == (150, 64) and found[1] is None
    for a, e in zip(*results, strict=True):
        close(a, e, 1e-5)


def test_a_whole_step_has_the_gradients_of_float64(level, monkeypatch):
    torch.manual_seed(0)
    net = gpt2.build(gpt2.Config(40, 64, 64, 4, 2, dropout=0.0))
    ids, grad = torch.randint(40, (3, 50)), torch.randn(3, 50, 64)
    used = []
    monkeypatch.setattr(kernels.fused, "attention", lambda *a, real=fused.attention: used.append(1) or real(*a))
    found = []
    for _ in range(2):
        net.zero_grad()
        hidden = net(ids)["decoder"].x
        (hidden * grad.to(hidden.dtype)).sum().backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
        net.double()
    assert len(used) == 2  # once a layer, in float32 alone
    for name, exact in found[1].items():
        close(found[0][name].float(), exact.double(), 1e-5)


def test_where_it_does_not_serve(monkeypatch):
    q = torch.randn(1, 1, 40, 16, requires_grad=True)
    assert not fused.attends(q.detach(), q.detach(), q.detach()) and not fused.attends(*[q.double()] * 3)
    assert not fused.attends(*[torch.randn(1, 1, 40, 20, requires_grad=True)] * 3)
    with torch.no_grad():
        assert not fused.attends(q, q, q)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.attends(q, q, q)
    monkeypatch.setattr(fused, "library", lambda: None)
    assert not fused.attends(q, q, q) and not FFN(4, 4, feedforward.gelu).in_place(torch.randn(1, 2, 4))


def test_a_second_derivative_is_refused():
    q = torch.randn(1, 1, 40, 16, requires_grad=True)
    if fused.library() is None:
        pytest.skip("no native kernels here")
    first = torch.autograd.grad(fused.attention(q, q, q, True, 1.0).square().sum(), q, create_graph=True)[0]
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), q)


COMPILED = """
import torch
from plait.core.losses import linear_cross_entropy
from plait.core.stream import Call, Places, Stream
from plait.models import gpt2
torch.set_num_threads(1)
torch.manual_seed(0)
net = gpt2.build(gpt2.Config(40, 64, 32, 2, 1, dropout=0.0))
ids = torch.randint(40, (3, 50))
def loss(ids):
    hidden = net(ids)["decoder"].x.flatten(0, 1)
    return linear_cross_entropy(hidden, net.heads["lm"].weight, None, ids.flatten())[0]
found = []
for f in (loss, torch.compile(loss, fullgraph=True, backend=BACKEND)):
    net.zero_grad()
    f(ids).backward()
    found.append([p.grad for p in net.parameters()])
print(max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-3)) for a, b in zip(*found)))
"""


def test_compiled_gradients_are_eager_ones():
    """In a process of its own: the checks of shapes that tests put on every function would be traced too. One graph, no breaks."""
    code = COMPILED.replace("BACKEND", "'aot_eager'")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 1e-4
