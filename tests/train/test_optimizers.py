"""Adam against torch.optim.AdamW; Muon against the textbook, one matrix at a time; orthogonalising against the SVD."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from plait.models import build
from plait.train.optimizers import Adam, Muon, Together, inner_matrices, layer_shares, orthogonalised, others
from plait.train.recipes import Recipe, small


def params(seed=0, dtype=torch.float64, **shapes):
    draw = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(*shape, generator=draw, dtype=dtype)) for name, shape in shapes.items()}


def gradients(named, step, skip=()):
    draw = torch.Generator().manual_seed(100 + step)
    for name, p in named.items():
        grad = torch.randn(p.shape, generator=draw, dtype=p.dtype)
        p.grad = None if name in skip else grad


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_is_adamw(decay, dtype):
    ours, theirs = (params(dtype=dtype, table=(5, 3), gain=(4,), unused=(2, 2)) for _ in range(2))
    adam = Adam(ours, 0.01, betas=(0.9, 0.98), eps=1e-9, decay=decay)
    groups = [{"params": [theirs["table"], theirs["unused"]], "weight_decay": decay}, {"params": [theirs["gain"]], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.98), eps=1e-9)
    for step in range(6):
        factor = 1.0 / (step + 1)
        for named in (ours, theirs):
            gradients(named, step, skip=("unused",))
        for group in reference.param_groups:
            group["lr"] = 0.01 * factor
        adam.step(factor)
        reference.step()
    for name in ours:
        assert_close(
            ours[name], theirs[name], rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=1e-12 if dtype == torch.float64 else 1e-6
        )
    assert torch.equal(ours["unused"], params(dtype=dtype, table=(5, 3), gain=(4,), unused=(2, 2))["unused"])  # not even decayed


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (24, 6), (6, 24), (1, 5), (5, 1)], ids=["square", "tall", "wide", "row", "column"])
def test_orthogonalised_keeps_the_directions_and_levels_the_values(rows, columns):
    g = torch.randn(3, rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = orthogonalised(g)
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    inside = u.mT @ found @ v.mT  # diagonal in the directions of g: a polynomial in its singular values
    values = inside.diagonal(dim1=1, dim2=2)
    assert_close(inside, torch.diag_embed(values), rtol=0, atol=1e-9)
    assert_close(u @ inside @ v, found, rtol=0, atol=1e-9)  # and nothing outside them
    large = s > 0.01 * s.norm(dim=1, keepdim=True)
    assert large.any() and values[large].min() > 0.15 and values.max() < 1.9  # the band of three polynomials; five draw it to 1
    assert (values > 0).all()  # also of those too small to come near 1: never against the gradient
    assert_close(orthogonalised(g, 5)[large.all(1)], (u @ v)[large.all(1)], rtol=0, atol=0.12)


def test_only_the_singular_values_matter():
    """orthogonalised(U S V) = U orthogonalised(S) V, whatever the polynomial."""
    s = torch.tensor([3.0, 1.0, 0.2, 1e-3], dtype=torch.float64)
    u, v = (torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i)))[0] for i in (1, 2))
    level = orthogonalised(s.diag()[None])[0]
    assert_close(level, level.diag().diag(), rtol=0, atol=0)
    assert_close(orthogonalised((u @ s.diag() @ v)[None])[0], u @ level @ v, rtol=0, atol=1e-12)


def test_one_matrix_of_a_batch_is_as_alone_and_size_does_not_matter():
    g = torch.randn(4, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    together = orthogonalised(g)
    for i in range(4):
        assert_close(together[i : i + 1], orthogonalised(g[i : i + 1]), rtol=0, atol=1e-12)
        assert_close(together[i : i + 1], orthogonalised(1e3 * g[i : i + 1]), rtol=0, atol=1e-5)
    assert torch.equal(orthogonalised(torch.zeros(1, 3, 2)), torch.zeros(1, 3, 2))  # a matrix without a gradient stays


def literal_muon(p, grads, rate, momentum, decay, factors):
    """Jordan et al. 2024, line by line: a running mean, Nesterov's look ahead, its directions with levelled values, the shape's scale."""
    m = torch.zeros_like(p)
    for g, factor in zip(grads, factors, strict=True):
        m = momentum * m + (1 - momentum) * g
        u, s, v = torch.linalg.svd((1 - momentum) * g + momentum * m, full_matrices=False)
        x = u @ orthogonalised(s.diag()[None])[0] @ v
        p = p * (1 - rate * factor * decay) - rate * factor * (max(p.shape) / min(p.shape)) ** 0.5 * x
    return p


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_muon_is_the_textbook(decay):
    named = params(a=(6, 4), b=(6, 4), c=(3, 7), d=(5, 5))
    before = {name: p.detach().clone() for name, p in named.items()}
    muon, factors = Muon(named, 0.05, momentum=0.9, decay=decay), [0.5, 1.0, 0.8, 0.1]
    seen = []
    for step, factor in enumerate(factors):
        gradients(named, step)
        seen.append({name: p.grad.clone() for name, p in named.items()})  # type: ignore[union-attr]
        muon.step(factor)
    for name, p in named.items():
        assert_close(p.detach(), literal_muon(before[name], [g[name] for g in seen], 0.05, 0.9, decay, factors), rtol=0, atol=1e-10)


def both(named):
    return Together(muon=Muon({"m": named["m"], "n": named["n"]}, 0.05), adam=Adam({"v": named["v"]}, 0.01))


def test_a_loaded_state_goes_on_as_the_saved_one():
    named, twin = (params(m=(4, 3), n=(4, 3), v=(5,)) for _ in range(2))
    first = both(named)
    for step in range(3):
        gradients(named, step)
        first.step(1.0)
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    assert sorted(saved) == ["adam.first.v", "adam.second.v", "adam.steps", "muon.momentum.m", "muon.momentum.n"]
    for name, p in twin.items():
        p.data.copy_(named[name].data)
    second = both(twin)
    second.load(saved)
    for step in range(3, 6):
        for some, optimizer in ((named, first), (twin, second)):
            gradients(some, step)
            optimizer.step(0.5)
    assert all(torch.equal(named[name], twin[name]) for name in named)
    assert all(torch.equal(t, second.state()[name]) for name, t in first.state().items())


# Of a model of two layers: how many layers are above each parameter, heads and last norms not counted as one.
ABOVE = {"embed": 3, "bias": 3, "blocks.0": 2, "blocks.1": 1, "norm": 0, "heads": 0}
SMALL = dict(vocab_size=11, d_model=16, n_heads=2, n_layers=2)
PAGES = {
    "bert": dict(**SMALL, d_ff=24, max_length=8, head="classify", labels=3),
    "llama": dict(**SMALL, n_kv_heads=1, d_ff=24),
    "t5": dict(**SMALL, d_head=8, d_ff=24),
}


@pytest.mark.parametrize("arch", PAGES)
@pytest.mark.parametrize("clipped", [False, True])
def test_layers_and_decay_are_the_groups_of_adamw(arch, clipped):
    """One group of torch's AdamW for each parameter, its rate and decay worked out from its name and shape by hand."""
    ours, theirs = (build(arch, PAGES[arch]).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = Recipe("adam", 0.01, 0.01, "linear", 1, 0.1, layer_decay=0.7).optimizer(ours)
    groups, used = [], set()
    for name, p in theirs.named_parameters():
        key = next(key for key in ABOVE if f".{key}." in f".{name}")
        used.add(key)
        groups.append({"params": [p], "lr": 0.01 * 0.7 ** ABOVE[key], "weight_decay": 0.0 if p.ndim == 1 else 0.1})
    assert used >= {"embed", "blocks.0", "blocks.1"} and used & {"norm", "heads"}
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-9)
    for step in range(5):
        for net in (ours, theirs):
            gradients(dict(net.named_parameters()), step)
        optimizer.step(1.0, torch.tensor(4.0, dtype=torch.float64) if clipped else None)
        for p in theirs.parameters() if clipped else ():
            p.grad.div_(4.0)  # type: ignore[union-attr]
        reference.step()
    for (name, mine), yours in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(mine, yours, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


def test_muon_has_the_shares_of_the_layers_too():
    net = build("modern", dict(source_vocab=9, target_vocab=9, d_model=16, n_heads=2, n_layers=2, d_ff=32))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    moved = []
    for layer_decay in (1.0, 0.5):
        for name, p in net.named_parameters():
            p.data.copy_(before[name])
        gradients(dict(net.named_parameters()), 0)
        Recipe("muon", 0.02, 0.01, "linear", 1, 0.0, layer_decay=layer_decay).optimizer(net).step(1.0)
        moved.append({name: p.detach() - before[name] for name, p in net.named_parameters()})
    shares = layer_shares(before, 0.5)
    assert set(shares.values()) == {1.0, 0.5, 0.25, 0.125}
    for name, share in shares.items():
        assert_close(moved[1][name], moved[0][name] * share, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("arch", ["vaswani", "modern"])
def test_every_parameter_has_one_optimizer(arch):
    net = build(arch, dict(source_vocab=9, target_vocab=9, d_model=16, n_heads=2, n_layers=2, d_ff=32))
    inner = inner_matrices(net)
    rest = others(net, inner)
    assert not set(inner) & set(rest)
    assert {id(p) for p in (*inner.values(), *rest.values())} == {id(p) for p in net.parameters()}
    assert len(inner) == 2 * (4 + 2) + 2 * (8 + 2)  # of each encoder layer q k v o up down, of each decoder layer twice q k v o
    assert not any("embed" in name or "heads" in name for name in inner)


@pytest.mark.parametrize(("method", "rate", "of_heads"), [("prefix", 100e-4, 20e-4), ("lora", 30e-4, 20e-4), ("head", 20e-4, 20e-4)])
def test_a_head_beside_a_small_part_learns_at_its_own_rate(method, rate, of_heads):
    """Adam's first step is the rate times the sign of the gradient; d_model 384 is tuned at 1e-4 (`recipes.tuning`)."""
    net = nn.Module()
    net.heads, net.tunings = nn.ModuleDict({"classify": nn.Linear(3, 2)}), nn.ModuleDict({"mine": nn.Linear(3, 2)})
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    small(method, 384).optimizer(net).step(1.0)
    for name, p in net.named_parameters():
        wanted = of_heads if name.startswith("heads.") else rate
        assert_close(before[name] - p.detach(), torch.full_like(p, wanted), rtol=1e-3, atol=1e-7)
