"""Looking inside every model: what is recorded is what is computed, what is put in place is what goes on."""

from typing import Any

import pytest
import torch

from plait.core import kernels
from plait.core.heads import pooled
from plait.inspect import attribution
from plait.inspect.importance import head_importance
from plait.inspect.lens import layers
from plait.inspect.patching import ablated, patched
from plait.inspect.record import recorded
from plait.inspect.statistics import heads, neurons
from plait.inspect.taps import attentions, names

LENGTH = 5


@pytest.fixture(scope="module")
def fed(net, ends) -> dict[str, Any]:
    return ends.feed(ends.source(2, LENGTH, 3), ends.target(2, LENGTH, 4))


@pytest.fixture(scope="module")
def other(net, ends) -> dict[str, Any]:
    return ends.feed(ends.source(2, LENGTH, 5), ends.target(2, LENGTH, 6))


@pytest.fixture(scope="module")
def seen(net, fed):
    """Everything that a pass has to show, and the finished streams."""
    return recorded(net, "**", **fed)


def read(net, ends, streams) -> torch.Tensor:
    """All that the head says of finished streams."""
    head = net.heads[ends.head]
    found = head(pooled(head, streams[ends.last]) if hasattr(head, "pool") else streams[ends.last].x)
    return torch.cat(found, -1) if isinstance(found, tuple) else found


def score(net, ends):
    """A smooth number of each row: no gradient of it is zero by itself."""
    return lambda streams: read(net, ends, streams).flatten(1).tanh().mean(1)


@pytest.mark.capability("record")
def test_all_that_is_recorded_is_what_flows(net, ends, fed, seen):
    found, streams = seen
    assert list(found) and set(found) == set(names(net))
    with torch.no_grad():
        plain = net.eval()(**fed)
    assert all(torch.equal(plain[tower].x, streams[tower].x) for tower in plain)  # not one bit is another
    for name in attentions(net):
        q, k, v, pattern, out = (found[f"{name}.{part}"] for part in ("q", "k", "v", "pattern", "out"))
        assert pattern.shape == (*q.shape[:3], k.shape[2])
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
        torch.testing.assert_close(pattern @ v.repeat_interleave(q.shape[1] // v.shape[1], 1), out)
        assert found[name].shape == found[f"{name.partition('.')[0]}.embed"].shape
    for tower in net.towers:
        last = found.get(f"{tower}.norm", found[f"{tower}.blocks.{len(net.get_submodule(tower).blocks.order) - 1}"])
        assert torch.equal(last, streams[tower].x)


@pytest.mark.capability("record")
def test_patterns_are_those_of_the_reference_kernel(net, ends, fed, seen):
    """The reference kernel computes its output from the very weights that it shows."""
    shown: list[torch.Tensor] = []

    class Shows(kernels.Reference):
        def attend(self, q, k, v, mask, bias=None, scale=1.0, dropout=0.0):
            shown.append(kernels.weights(q, k, mask, bias, scale))
            return super().attend(q, k, v, mask, bias, scale, dropout)

    was, net.kernel = net.kernel, Shows()
    try:
        with torch.no_grad():
            net.eval()(**fed)
    finally:
        net.kernel = was
    recorded_ones = [found for name, found in seen[0].items() if name.endswith(".pattern")]
    assert len(recorded_ones) == len(shown)
    by_size = sorted(recorded_ones, key=lambda t: tuple(t.flatten()[:3].tolist()))
    for one, two in zip(by_size, sorted(shown, key=lambda t: tuple(t.flatten()[:3].tolist())), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


@pytest.mark.capability("patch")
def test_its_own_activations_put_in_place_change_nothing_and_another_inputs_are_that_inputs(net, ends, fed, other, seen):
    found, streams = seen
    exact = {name: value for name, value in found.items() if not name.endswith(".pattern")}
    theirs, wanted = recorded(net, "**", **other)
    with torch.no_grad():
        with patched(net, exact):
            again = net.eval()(**fed)
        assert all(torch.equal(again[tower].x, streams[tower].x) for tower in streams)
        with patched(net, {name: value for name, value in found.items() if name.endswith(".pattern")}):
            torch.testing.assert_close(net(**fed)[ends.last].x, streams[ends.last].x)  # weights times values, not the kernel's own sum
        last = [f"{tower}.blocks.{len(net.get_submodule(tower).blocks.order) - 1}" for tower in net.towers]
        with patched(net, {name: theirs[name] for name in last}):
            moved = net(**fed)
        assert not torch.equal(wanted[ends.last].x, streams[ends.last].x)
        assert all(torch.equal(moved[tower].x, wanted[tower].x) for tower in net.towers)
        with patched(net, {last[-1]: theirs[last[-1]]}, positions=[1]):
            some = net(**fed)[ends.last].x
        assert torch.equal(some[:, 1], wanted[ends.last].x[:, 1]) and torch.equal(some[:, 0], streams[ends.last].x[:, 0])


@pytest.mark.capability("patch")
def test_without_its_heads_an_attention_gives_its_last_bias(net, ends, fed, seen):
    for name, part in attentions(net).items():
        n = seen[0][f"{name}.out"].shape[1]
        raw: list[torch.Tensor] = []
        hook = part.o_proj.register_forward_hook(lambda module, args, out, raw=raw: raw.append(out))
        try:
            with torch.no_grad(), ablated(net, {name: range(n)}):
                net(**fed)
        finally:
            hook.remove()
        bias = part.o_proj.bias
        wanted = torch.zeros_like(raw[0]) if bias is None else bias.expand_as(raw[0])
        at = [i for i, out in enumerate(raw) if torch.equal(out, wanted)]
        layers_sharing = sum(other is part for other in attentions(net).values())
        assert len(raw) == layers_sharing and len(at) == 1  # that one layer alone


@pytest.mark.capability("attribute")
def test_every_entry_of_every_tower_gets_its_share(net, ends, fed, seen):
    made, smooth = seen[0], score(net, ends)
    shares = attribution.gradient(net, smooth, **fed)
    assert set(shares) == set(net.towers)
    baseline = {tower: made[f"{tower}.embed"] * 0.98 for tower in net.towers}
    parts, gap = attribution.integrated(net, smooth, 3, baseline, **fed)
    with torch.no_grad(), attribution.embedded(net, baseline):
        before = smooth(net(**fed))
    moved = smooth(seen[1]) - before
    assert (
        sum(part.sum(1) for part in parts.values()) - moved
    ).abs().max() <= 0.02 * moved.abs().max() + 1e-9  # ReLU has kinks, which three steps cannot see
    torch.testing.assert_close(gap, moved - sum(part.sum(1) for part in parts.values()), atol=1e-9, rtol=1e-6)
    for tower, share in shares.items():
        assert share.shape == made[f"{tower}.embed"].shape[:2]
        blank = bool((made[f"{tower}.embed"] == 0).all())  # object queries begin without content
        assert blank or (share.abs() > 0).all(), tower
    # The slope along the way at its end is what the gradient says.
    step = 1e-5
    with torch.no_grad(), attribution.embedded(net, {tower: made[f"{tower}.embed"] * (1 - step) for tower in net.towers}):
        near = smooth(net(**fed))
    torch.testing.assert_close((smooth(seen[1]) - near) / step, sum(share.sum(1) for share in shares.values()), rtol=1e-3, atol=1e-7)


@pytest.mark.capability("attribute")
def test_the_last_layer_of_the_lens_is_the_models_own_answer(net, ends, fed, seen):
    if getattr(net.heads[ends.head], "pool", None) is None and ends.seen and not ends.two:
        pytest.skip("not applicable: no head")
    found = list(layers(net, ends.head, **fed))
    assert len(found) == len(net.get_submodule(ends.last).blocks.order)
    own = net.heads[ends.head](
        pooled(net.heads[ends.head], seen[1][ends.last]) if hasattr(net.heads[ends.head], "pool") else seen[1][ends.last].x
    )
    for one, two in zip(*[x if isinstance(x, tuple) else (x,) for x in (found[-1], own)], strict=True):
        assert torch.equal(one, two)


@pytest.mark.capability("attribute")
def test_a_heads_importance_is_the_slope_of_the_loss_along_its_gate(net, ends, fed, seen):
    smooth = score(net, ends)
    found = head_importance(net, lambda net, batch: smooth(net(**batch)), [fed])
    assert set(found) == set(attentions(net)) and all(one.min() >= 0 for one in found.values())
    name = list(found)[-1]
    step, slopes = 1e-6, []
    with torch.no_grad():
        for sign in (1, -1):
            moved = seen[0][f"{name}.out"].clone()
            moved[:, 0] *= 1 + sign * step
            with patched(net, {f"{name}.out": moved}):
                slopes.append(smooth(net(**fed)))
    torch.testing.assert_close(((slopes[0] - slopes[1]) / (2 * step)).abs().mean(), found[name][0], rtol=1e-3, atol=1e-9)


@pytest.mark.capability("record")
def test_statistics_do_not_depend_on_how_the_data_is_cut(net, ends, fed, seen):
    alone = [{tower: x[i : i + 1] for tower, x in fed.items()} for i in range(2)]
    apart, own = heads(net, alone), neurons(net, alone, k=2)
    for name, whole in heads(net, [fed]).items():
        parts, pattern = apart[name], seen[0][f"{name}.pattern"]
        assert whole.queries == parts.queries == pattern[:, 0, :, 0].numel()
        torch.testing.assert_close(whole.entropy, parts.entropy)
        torch.testing.assert_close(whole.entropy, torch.special.entr(pattern).sum(-1).mean((0, 2)))
        torch.testing.assert_close(whole.previous, parts.previous, equal_nan=True)
    for name, whole in neurons(net, [fed], k=2).items():
        parts, hidden = own[name], seen[0][name]
        torch.testing.assert_close(whole.mean, hidden.mean((0, 1)))
        assert torch.equal(whole.most, hidden.amax((0, 1)))
        torch.testing.assert_close(parts.top, whole.top)  # on some CPUs a row alone is rounded otherwise than beside another
        at = hidden[whole.rows[0], whole.positions[0], torch.arange(hidden.shape[-1])]
        assert torch.equal(at, whole.most)
