"""Names of places, flow, attributions and statistics, each against a formula or a program of others."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import plait
from plait.core.attention import Attention
from plait.core.blocks import body, each
from plait.core.embeddings import Embed, Tokens
from plait.core.feedforward import FFN, gelu
from plait.core.heads import Tied
from plait.core.masks import causal
from plait.core.model import Model, Tower
from plait.core.norms import LayerNorm
from plait.core.residual import Pre
from plait.core.stream import Stream
from plait.errors import InputError
from plait.generate.greedy import continued
from plait.inspect import attribution, statistics
from plait.inspect.flow import flow
from plait.inspect.lens import lens
from plait.inspect.page import Maps, fitted
from plait.inspect.patching import ablated, head_means, patch_grid, patched
from plait.inspect.record import recorded
from plait.inspect.taps import chosen, matches, names

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def model(share: int | None = None, n: int = 3) -> Any:
    torch.manual_seed(0)
    embed = Embed(tokens=Tokens(11, 16))
    steps = dict(self_attn=each(Attention, 16, 4, mask=causal), ffn=each(FFN, 16, 24, gelu))
    blocks = body(n, partial(LayerNorm, 16), lambda layer: Pre(), share, **steps)
    return Model({"lm": Tied(embed.tokens)}, decoder=Tower(embed, blocks, LayerNorm(16))).double().eval()


def test_names_count_layers_as_they_run_and_not_their_weights():
    net = model(share=1)
    assert len(list(net.decoder.blocks)) == 1 and "decoder.blocks.2.self_attn.pattern" in names(net)
    seen, _ = recorded(net, "decoder.blocks.*", "**.ffn.hidden", decoder=IDS)
    assert len({tuple(x.flatten().tolist()) for x in seen.values()}) == 6
    assert seen.stacked("decoder.blocks.*").shape == (3, 2, 5, 16) and seen.stacked("**.hidden").shape == (3, 2, 5, 24)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("decoder.blocks.*", "decoder.blocks.3", True),
        ("decoder.blocks.*", "decoder.blocks.3.ffn", False),
        ("*.blocks.[0-2].*_attn.pattern", "encoder.blocks.1.self_attn.pattern", True),
        ("**.pattern", "encoder.blocks.1.self_attn.pattern", True),
        ("**.ffn.hidden", "encoder.blocks.1.other.hidden", False),
        ("**", "decoder.embed", True),
    ],
)
def test_patterns_match_part_by_part(pattern, name, fits):
    assert matches(name, pattern) is fits


def test_unknown_names_come_back_with_the_nearest_all_at_once():
    net = model()
    with pytest.raises(InputError) as told:
        with plait.record(net, "decoder.blocks.*.self_atn.pattern", "decoder.embed", "encoder.norm"):
            pass
    first, second = told.value.faults
    assert "self_atn" in first and "decoder.blocks.0.self_attn.pattern" in first and "decoder.norm" in second
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_nothing_is_left_behind_and_contexts_nest():
    net = model()
    with torch.no_grad():
        plain = net(IDS)["decoder"].x
        other = torch.randn(2, 4, 5, 4, dtype=torch.float64)
        with patched(net, {"decoder.blocks.1.self_attn.v": other}), plait.record(net, "**.v", "**.out", "**.pattern") as seen:
            moved = net(IDS)["decoder"].x
        assert torch.equal(seen["decoder.blocks.1.self_attn.v"], other) and not torch.equal(moved, plain)
        wanted = seen["decoder.blocks.1.self_attn.pattern"] @ other
        torch.testing.assert_close(seen["decoder.blocks.1.self_attn.out"], wanted)
        with pytest.raises(RuntimeError, match="stop"), plait.record(net, "**"):
            raise RuntimeError("stop")
        assert torch.equal(net(IDS)["decoder"].x, plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_pattern_put_in_place_mixes_the_values():
    net = model()
    even = torch.full((1, 4, 5, 5), 0.2, dtype=torch.float64)
    with torch.no_grad(), patched(net, {"decoder.blocks.0.self_attn.pattern": even}), plait.record(net, "**.out", "**.v") as seen:
        net(IDS)
    values = seen["decoder.blocks.0.self_attn.v"]
    torch.testing.assert_close(seen["decoder.blocks.0.self_attn.out"], values.mean(2, keepdim=True).expand_as(values))


def test_generation_is_refused_while_recording_and_goes_on_without_heads():
    net = model()
    with plait.record(net), pytest.raises(InputError, match="token by token"):
        list(continued(net, [1, 2], 3, {0}))
    whole = {f"decoder.blocks.{i}.self_attn": range(4) for i in range(3)}
    with ablated(net, whole):
        ids, begun = list(continued(net, [1, 2], 4, set())), [1, 2]
        for token in ids:
            assert token == int(net.heads["lm"](net(torch.tensor([begun]))["decoder"].x)[0, -1].argmax())
            begun.append(token)


def test_what_cannot_be_patched_or_ablated_is_told_with_shapes():
    net = model()
    wide = {"decoder.blocks.0": torch.zeros(2, 5, 17)}
    with pytest.raises(InputError, match=r"\[2, 5, 17\] is not as wide as \[2, 5, 16\]"), patched(net, wide):
        net(IDS)
    with pytest.raises(InputError, match="no position 5: 0 to 4"), patched(net, {"decoder.blocks.0": torch.zeros(2, 5, 16)}, [5]):
        net(IDS)
    with pytest.raises(InputError, match="no head 4: 0 to 3"), ablated(net, {"decoder.blocks.0.self_attn": [0, 4]}):
        net(IDS)
    with pytest.raises(InputError, match="no such place"), ablated(net, {"decoder.blocks.0.ffn": [0]}):
        pass


def test_mean_ablation_of_a_head_that_says_always_the_same_changes_nothing():
    net = model()
    with torch.no_grad():
        for step in (net.decoder.blocks[1].self_attn,):
            step.v_proj.weight[:4] = 0  # head 0 gives its bias whatever it reads
            step.v_proj.bias[:4] = 1.5
        means = head_means(net, [{"decoder": IDS[:1]}, {"decoder": IDS[1:]}])
        torch.testing.assert_close(means["decoder.blocks.1.self_attn"][0], torch.full((4,), 1.5, dtype=torch.float64))
        plain = net(IDS)["decoder"].x
        with ablated(net, {"decoder.blocks.1.self_attn": [0]}, means):
            torch.testing.assert_close(net(IDS)["decoder"].x, plain)
        with ablated(net, {"decoder.blocks.1.self_attn": [0]}):
            assert (net(IDS)["decoder"].x - plain).abs().max() > 1e-3


def test_a_patch_of_the_last_position_of_the_last_block_goes_the_whole_way():
    net, other = model(), IDS.flip(0)[:1]
    effects = patch_grid(net, lambda s: s["decoder"].x[:, -1, 0], {"decoder": IDS[:1]}, {"decoder": other}, "decoder.blocks.*")
    assert effects[0] == ["decoder.blocks.0", "decoder.blocks.1", "decoder.blocks.2"] and effects[1].shape == (3, 5)
    torch.testing.assert_close(effects[1][-1], torch.tensor([0.0, 0, 0, 0, 1]))
    assert (effects[1][0, :4].abs() > 1e-6).all()  # earlier positions of an early block do reach the last one
    with pytest.raises(InputError, match="no patch can move it"):
        patch_grid(net, lambda s: s["decoder"].x[:, 0, 0], {"decoder": IDS[:1]}, {"decoder": IDS[:1]}, "decoder.blocks.*")


@pytest.mark.parametrize("seed", [0, 1])
def test_flow_is_the_maximum_flow_of_networkx(seed):
    networkx = pytest.importorskip("networkx")
    layers, n = 3, 5
    scores = np.exp(3 * np.random.default_rng(seed).normal(size=(layers, 2, n, n)))
    weights = scores / scores.sum(-1, keepdims=True)
    pipes = (weights.mean(1) + np.eye(n)) / 2
    graph = networkx.DiGraph()
    for layer in range(layers):
        for q in range(n):
            for k in range(n):
                graph.add_edge((layer + 1, q), (layer, k), capacity=pipes[layer, q, k])
    found = flow(weights, 2)
    wanted = [networkx.maximum_flow_value(graph, (layers, 2), (0, k)) for k in range(n)]
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    assert flow(weights, 2, layer=0) == pytest.approx(pipes[0, 2])


def test_integrated_gradients_of_known_functions():
    net = model(n=1)
    with torch.no_grad():  # the step gives nothing, so the stream is the embedding's own
        for name, p in net.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                p.zero_()
    with torch.no_grad():
        x = net.decoder.embed(Stream(IDS)).x

    with plait.record(net, "decoder.blocks.0") as seen:
        net(IDS)
    assert torch.equal(seen["decoder.blocks.0"], x)
    hidden: dict[str, torch.Tensor] = {}

    def squares(streams):
        return (hidden["x"] ** 2).sum((1, 2))

    from plait.inspect.taps import tapped

    with tapped(net, {"decoder.blocks.0": lambda found: hidden.__setitem__("x", found)}):
        slope = attribution.gradient(net, squares, decoder=IDS)["decoder"]
        parts, gap = attribution.integrated(net, squares, 4, {"decoder": torch.zeros(1, 1, 16)}, decoder=IDS)
    torch.testing.assert_close(slope, 2 * (x**2).sum(-1))
    torch.testing.assert_close(parts["decoder"], (x**2).sum(-1))
    assert gap.abs().max() < 1e-12


def test_integrated_gradients_are_the_sum_of_the_papers_equation():
    net, at = model(), 4
    score = attribution.entry_score(net, "lm", at, 7)
    parts, gap = attribution.integrated(net, score, 48, decoder=IDS)
    with torch.no_grad():
        x = net.decoder.embed(Stream(IDS)).x
    start, steps = x.mean(1, keepdim=True), 60
    total = torch.zeros_like(x)
    for k in range(steps):  # equation 3, in the middle of each step
        point = (start + (k + 0.5) / steps * (x - start)).requires_grad_()
        with attribution.embedded(net, {"decoder": point}):
            (slope,) = torch.autograd.grad(score(net(IDS)).sum(), point)
        total += slope / steps
    torch.testing.assert_close(parts["decoder"], ((x - start) * total).sum(-1), rtol=1e-3, atol=1e-6)
    assert gap.abs().max() < 1e-4
    wrong = attribution.integrated(net, score, 1, decoder=IDS)[1]
    assert wrong.abs().max() > 10 * gap.abs().max()  # the gap tells too few steps


def test_several_scores_at_once_are_each_alone():
    net = model()
    one, two = (attribution.entry_score(net, "lm", at, 2) for at in (1, 4))
    both = attribution.gradient(net, lambda s: torch.stack([one(s), two(s)], 1), decoder=IDS)["decoder"]
    for i, score in enumerate((one, two)):
        torch.testing.assert_close(both[:, i], attribution.gradient(net, score, decoder=IDS)["decoder"])
    assert both[:, 0, 2:].abs().max() == 0  # what comes later has no share


def test_the_lens_gives_the_likeliest_of_each_layer():
    net = model()
    found = lens(net, "lm", 3, decoder=IDS)
    seen, _ = recorded(net, "decoder.blocks.*", decoder=IDS)
    with torch.no_grad():
        chances = net.heads["lm"](net.decoder.norm(seen.stacked("decoder.blocks.*"))).float().softmax(-1)
    assert torch.equal(found.ids, chances.topk(3).indices) and found.ids.shape == (3, 2, 5, 3)


def test_statistics_leave_padding_out_and_count_on():
    net = model()
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    padded = {"decoder": Stream(IDS, real=real)}
    apart = [{"decoder": IDS[:1]}, {"decoder": IDS[1:, :3]}]
    for name, one in statistics.heads(net, [padded]).items():
        two = statistics.heads(net, apart)[name]
        for field in ("entropy", "distance", "first", "previous"):
            torch.testing.assert_close(getattr(one, field), getattr(two, field))
        assert one.queries == 8
    one, two = (statistics.neurons(net, batches, k=3)["decoder.blocks.1.ffn.hidden"] for batches in ([padded], apart))
    torch.testing.assert_close(one.top, two.top)
    assert torch.equal(one.rows, two.rows) and torch.equal(one.positions, two.positions) and one.entries == 8


def test_a_head_that_looks_back_one_is_known_by_it():
    net = model(n=1)
    back = torch.eye(5).roll(1, 0).double()[None, None].repeat(1, 4, 1, 1)
    back[..., 0, :] = torch.eye(5)[0]
    with patched(net, {"decoder.blocks.0.self_attn.pattern": back}):
        found = statistics.heads(net, [{"decoder": IDS}])["decoder.blocks.0.self_attn"]
    assert torch.allclose(found.previous, torch.tensor(0.8).double()) and torch.allclose(found.distance, torch.tensor(0.8).double())
    assert torch.allclose(found.first, torch.tensor(0.4).double()) and found.entropy.abs().max() < 1e-9


def test_a_page_of_too_many_weights_keeps_the_mean_of_heads_and_the_last_layers():
    weights = np.full((6, 4, 10, 10), 0.1, np.float32)
    weights[:, 1] = np.eye(10)
    small, large = (Maps(kind, some, list("abcdefghij"), list("abcdefghij")) for kind, some in (("small", weights[:1]), ("large", weights)))
    assert fitted([small, large], 2800) == [small, large]
    same, fewer = fitted([small, large], 1000)
    assert same is small and fewer.weights.shape == (6, 1, 10, 10) and fewer.heads == ["mean of 4 heads"]
    assert np.allclose(fewer.weights[0, 0], weights[0].mean(0))
    _, least = fitted([small, large], 700)
    assert least.layers is not None and least.layers[-1] == "5" and least.weights.shape[0] == 3
    assert chosen(model(), ["decoder.embed"]) == ["decoder.embed"]
