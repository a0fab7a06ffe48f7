"""`plait inspect` of models that were changed: with a prefix, a prompt, LoRA, quantised, pruned."""

import numpy as np
import pytest
import torch

from plait import models, tune
from plait.compress import quantise
from plait.core.shape import shaped
from plait.core.stream import Stream
from plait.errors import InputError
from plait.inspect.overlay import Entries, Shown
from plait.inspect.page import fitted, write_page
from plait.inspect.record import recorded
from plait.inspect.rollout import rollout
from plait.inspect.statistics import heads, neurons
from plait.verbs.inspecting_pictures import frames
from plait.verbs.inspecting_views import Subject, scores_at, views

N = 2  # learned entries, or keys
SOURCE, TARGET = torch.tensor([[4, 5, 6, 7, 8]]), torch.tensor([[1, 6, 7]])


def net_of(arch, **settings):
    torch.manual_seed(0)
    net = models.build(arch, {**models.PAGES[arch].PRESETS["tiny"], "n_heads": 4, **settings})
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.2)
    return net.eval()


def text() -> Subject:
    net = net_of("modern", source_vocab=12, target_vocab=12)
    streams = {"encoder": Stream(SOURCE), "decoder": Stream(TARGET)}
    entries = {tower: Entries.nowhere([f"{tower} {i}" for i in range(s.length)]) for tower, s in streams.items()}
    return Subject(net, streams, entries, "an answer", ["one", "two"], scores_at(net, "lm", [0, 1], [6, 7]), "lm")


def picture() -> Subject:
    net = net_of("modern-vision", labels=3, head="classify")
    side = models.PAGES["modern-vision"].PRESETS["tiny"]["image_size"]
    pixels = Stream(torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1)))
    rows, columns = net(encoder=pixels)["encoder"].grid
    entries = {"encoder": Entries.grid([], rows, columns, (0, 0), (1 / columns, 1 / rows))}
    head = net.heads["classify"]
    subject = Subject(net, {"encoder": pixels}, entries, "a class", ["a", "b"], head="classify", whole=True, labels=["a", "b", "c"])
    subject.score = lambda streams: head(head.pool(streams["encoder"]))[:, :2]
    subject.pictured = np.zeros((side, side, 3), np.uint8)
    return subject


def clip() -> Subject:
    net = net_of("timesformer", labels=3, head="classify")
    tiny = models.PAGES["timesformer"].PRESETS["tiny"]
    pixels = Stream(torch.randn(1, tiny["frames"], 3, tiny["image_size"], tiny["image_size"]))
    s = net(encoder=pixels)["encoder"]
    names = [str(i) for i in range(s.length)]
    patches = Entries(names, np.zeros((s.length, 4), np.float32))
    subject = Subject(net, {"encoder": pixels}, {"encoder": patches}, "a clip", pictured=np.zeros((8, 8, 3), np.uint8))
    subject.cut = lambda kind, weights, counts, s: frames(kind, weights, counts, s, patches)
    return subject


SUBJECTS = {"text": text, "picture": picture, "clip": clip}
PLACES = {  # of a view: the tower that looks, the one that is looked at, and the step
    "text": {"cross": ("decoder", "encoder", "cross_attn"), **{t: (t, t, "self_attn") for t in ("encoder", "decoder")}},
    "picture": {"encoder": ("encoder", "encoder", "self_attn")},
}
TUNINGS = {"prefix": tune.Prefix(N), "some": tune.Prefix(N, None, ("*.0.*",)), "prompt": tune.Prompt(N), "lora": tune.LoRA(rank=2)}
CHANGES = [*TUNINGS, "quantised", "pruned"]


def changed(kind: str, change: str) -> Subject:
    """`lora` stands on a quantised model; one layer of a `pruned` one has fewer heads than the others."""
    subject = SUBJECTS[kind]()
    net = subject.net
    if change in ("quantised", "lora"):
        quantise(net, 8)
    if change == "pruned":
        shaped(net, {"heads": {"encoder.blocks.0.self_attn": [1, 2]}})
    if change in TUNINGS:
        tune.attach(net, TUNINGS[change])
        for p in net.parameters():
            if p.requires_grad:
                torch.nn.init.normal_(p, std=0.3)
    return subject


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["text", "picture"])
def test_attention_of_a_changed_model(kind, change, tmp_path):
    subject = changed(kind, change)
    seen, _ = recorded(subject.net, "**.pattern", **subject.streams)
    found = views(subject, None)
    for name, (tower, source, step) in PLACES[kind].items():
        maps, queries, keys = found[name]
        prefix = [f"[prefix {i + 1}]" for i in range(N)] if change in ("prefix", "some") else []
        prompt = [f"[prompt {i + 1}]" for i in range(N)] if change == "prompt" else []
        own = subject.entries
        assert maps.keys == keys.names == [*prefix, *(prompt if source == "encoder" else []), *own[source].names]
        assert maps.queries == queries.names == [*(prompt if tower == "encoder" else []), *own[tower].names]
        assert np.isnan(keys.places[: len(keys.names) - len(own[source].names)]).all()
        for layer, weights in enumerate(maps.weights):
            expected = seen[f"{tower}.blocks.{layer}.{step}.pattern"][0].numpy()
            heads_, _, n = expected.shape
            assert maps.heads_of(layer) == heads_ == (2 if change == "pruned" and name == "encoder" and layer == 0 else len(weights))
            assert np.array_equal(weights[:heads_, :, -n:], expected) and not weights[:, :, :-n].any()
            assert np.allclose(weights.mean(0)[:, -n:], expected.mean(0), atol=1e-6)  # of the heads that are there
    for name, (maps, queries, keys) in found.items():  # all others are of the input's own entries, but rollout of a prompt too
        assert (maps.queries, maps.keys) == (queries.names, keys.names), name
        if name.startswith(("gradient", "lens")):
            assert not any(key.startswith("[") for key in keys.names)
    assert any(name.startswith("rollout") for name in found) == (change not in ("prefix", "some"))  # a prefix comes from no layer below
    shown = None if subject.pictured is None else Shown(subject.pictured, list(found.values()))
    write_page(tmp_path / "a.html", [view[0] for view in found.values()], title="t", source="s", answer="a", model="m", picture=shown)


def test_rollout_of_a_prompted_picture_begins_with_the_mean_of_its_patches():
    subject = changed("picture", "prompt")
    seen, _ = recorded(subject.net, "**.pattern", **subject.streams)
    maps, queries, _ = views(subject, None)["rollout"]
    expected = rollout(seen.stacked("**.pattern")[:, 0].numpy())
    assert maps.queries[: N + 1] == ["mean of entries", "[prompt 1]", "[prompt 2]"] and queries.first == 0
    assert np.allclose(maps.weights[:, 0, 1:], expected) and np.allclose(maps.weights[:, 0, 0], expected[:, N:].mean(1))


@pytest.mark.parametrize("change", ["prefix", "some", "quantised", "pruned"])
def test_frames_of_a_changed_model(change):
    subject = changed("clip", change)
    seen, _ = recorded(subject.net, "**.pattern", **subject.streams)
    found = views(subject, None)
    learned = N if "frame-0" in found and change in ("prefix", "some") else 0
    maps, _, keys = found["frame-1"]
    assert [key.startswith("[prefix") for key in keys.names] == [True] * learned + [False] * (len(keys.names) - learned)
    last = len(maps.weights) - 1
    expected = seen[f"encoder.blocks.{last}.self_attn.pattern"][1].numpy()
    assert np.array_equal(maps.weights[last][..., -expected.shape[-1] :], expected)
    assert found["time_attn"][0].keys[learned] == "frame 0"


def test_a_prompt_is_no_entry_of_a_data_set():
    """Its entries are not counted, padding neither, and positions are those of the input."""
    net = changed("text", "prompt").net
    real = torch.ones(2, 5, dtype=torch.bool)
    real[1, 3:] = False
    batch = {"encoder": Stream(SOURCE.repeat(2, 1), real=real)}
    found = neurons(net, [batch], "encoder.blocks.0.ffn.hidden")["encoder.blocks.0.ffn.hidden"]
    hidden = recorded(net, "encoder.blocks.0.ffn.hidden", **batch)[0]["encoder.blocks.0.ffn.hidden"]
    own = hidden[:, N:][real]
    assert found.entries == 8 == len(own) and torch.allclose(found.mean, own.double().mean(0))
    at = found.rows[0], found.positions[0]
    assert torch.equal(found.most, own.max(0).values) and real[at].all()
    assert torch.equal(hidden[:, N:][*at, torch.arange(hidden.shape[-1])], found.most)
    assert heads(net, [batch], "encoder.blocks.0.self_attn.pattern")["encoder.blocks.0.self_attn"].queries == 8


def test_layers_of_several_shapes_cannot_be_stacked():
    subject = changed("text", "pruned")
    seen, _ = recorded(subject.net, "**.pattern", **subject.streams)
    with pytest.raises(InputError, match="cannot be stacked") as told:
        seen.stacked("encoder.blocks.*.self_attn.pattern")
    assert told.value.faults[0] == "encoder.blocks.0.self_attn.pattern is [1, 2, 5, 5]"
    with pytest.raises(InputError, match="nothing of this name was recorded"):
        seen.stacked("**.hidden")


def test_a_page_too_large_keeps_what_pruning_left():
    maps = views(changed("text", "pruned"), None)["encoder"][0]
    assert maps.counts[0] == 2 < maps.counts[1] == maps.weights.shape[1]
    (mean,) = fitted([maps], room=maps.weights.size - 1)
    assert mean.counts is None and mean.heads == ["mean of heads"] and np.allclose(mean.weights[:, 0], maps.weights.mean(1))
