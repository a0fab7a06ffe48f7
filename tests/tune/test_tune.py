"""Small parts on a frozen model: their formulas, over quantised weights too, and what bad input gets."""

import copy
import json

import pytest
import torch
from torch.nn.functional import linear
from torch.testing import assert_close

from plait.core.cache import Cache, Int8Cache
from plait.core.linear import Linear
from plait.core.memory import Prompt as Entries
from plait.core.quantised import QuantisedLinear, place, quantised
from plait.core.stream import Stream
from plait.errors import InputError
from plait.generate.prompts import Prompts
from plait.generate.running import Continuation, Running
from plait.generate.search import search
from plait.models import build
from plait.tune import (
    IA3,
    METHODS,
    Adapter,
    BitFit,
    Full,
    HeadOnly,
    LoRA,
    Prefix,
    Prompt,
    attach,
    described,
    detach,
    fill,
    load_small,
    merge,
    mergeable,
    names,
    select,
    small,
    tuning_of,
    unmerge,
    using,
)
from plait.tune.parts import Bottleneck, Directed, LowRank, Scaled

VOCAB = 29
IDS = torch.randint(0, VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))


def model(arch="llama", std=0.3, **more):
    torch.manual_seed(0)
    sizes = dict(vocab_size=VOCAB, d_model=32, n_heads=4, n_layers=2)
    sizes |= {"llama": dict(d_ff=64, n_kv_heads=2, max_length=64), "gpt2": dict(max_length=64, dropout=0.0), "t5": dict(d_head=8, d_ff=64)}[
        arch
    ]
    net = build(arch, {**sizes, **more}).double().eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.dim() == 1), std=std)
    return net


@torch.no_grad()
def moved(net):
    draw = torch.Generator().manual_seed(1)
    for p in net.parameters():
        if p.requires_grad:
            p.add_(0.3 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
    return net


def said(net, ids=IDS, **more):
    return net.heads["lm"](net(decoder=Stream(ids, **more))["decoder"].x)


# ---- formulas ----


def drawn(part):
    for p in part.parameters():
        torch.nn.init.normal_(p)
    return part.double()


def test_each_part_is_its_papers_formula():
    torch.manual_seed(0)
    layer, x = Linear(6, 4).double(), torch.randn(3, 6, dtype=torch.float64)
    torch.nn.init.normal_(layer.bias)
    w, b = layer.weight, layer.bias
    low = drawn(LowRank(6, 4, 2, 0.7))
    delta = 0.7 * low.b @ low.a
    assert_close(low(layer, x), linear(x, w + delta, b))
    directed = drawn(Directed(w, 2, 0.7))
    v = w + 0.7 * directed.b @ directed.a
    assert_close(directed(layer, x), linear(x, directed.m[:, None] * v / v.norm(dim=1, keepdim=True), b))
    outputs, inputs = drawn(Scaled(4, False)), drawn(Scaled(6, True))
    assert_close(outputs(layer, x), outputs.factor * linear(x, w, b))
    assert_close(inputs(layer, x), linear(x, w @ inputs.factor.diag(), b))
    bottleneck = drawn(Bottleneck(4, 3, torch.tanh))
    y = linear(x, w, b)
    assert_close(bottleneck(layer, x), y + bottleneck.up(torch.tanh(bottleneck.down(y))))
    for part in (low, directed, outputs, inputs):
        assert_close(linear(x, *part.merged(w, b)), part(layer, x))


def test_the_scale_is_alpha_by_rank_or_by_its_root():
    for name, scale in (("lora", 16 / 4), ("rslora", 16 / 2)):
        net = model()
        attach(net, tuning_of({"method": name, "rank": 4}))
        assert net.get_submodule("decoder.blocks.0.self_attn.q_proj").part.scale == scale


def test_the_way_back_of_dora_takes_the_length_as_given():
    """Section 4.3: the gradient of B is that of the formula with the norm a constant."""
    torch.manual_seed(0)
    layer, x = Linear(6, 4).double(), torch.randn(3, 6, dtype=torch.float64)
    part = drawn(Directed(layer.weight, 2, 1.0))
    part(layer, x).square().sum().backward()
    b = part.b.detach().requires_grad_()
    v = layer.weight.detach() + b @ part.a.detach()
    linear(x, part.m.detach()[:, None] * v / v.detach().norm(dim=1, keepdim=True), layer.bias).square().sum().backward()
    assert_close(part.b.grad, b.grad)


def test_dropout_falls_on_what_lora_adds_alone():
    net = model()
    attach(net, LoRA(rank=2, dropout=0.5))
    moved(net)
    still = said(net)
    assert torch.equal(said(net), still)
    assert not torch.allclose(said(net.train()), still)
    select(net, None)
    assert torch.equal(said(net), said(net))


# ---- prefixes and prompts ----


def test_a_prompt_is_entries_before_the_embedded_text():
    """As if their vectors stood in the embedding: the same hidden vectors for the text, at positions after them."""
    net = model()
    attach(net, Prompt(length=3))
    moved(net)
    vectors = small(net)["decoder.prompt.weight"]
    found = said(net)
    select(net, None)
    table = net.decoder.embed.tokens
    table.weight = torch.nn.Parameter(torch.cat([table.weight, vectors]))
    longer = torch.cat([torch.arange(VOCAB, VOCAB + 3).expand(2, 3), IDS], 1)
    assert_close(found, said(net, longer)[:, 3:, :VOCAB])


def test_what_reads_a_prompted_encoder_reads_the_prompt():
    net = model("t5")
    attach(net, Prompt(length=3))
    moved(net)
    vectors = small(net)["encoder.prompt.weight"]
    streams = net(IDS, IDS)
    assert streams["encoder"].x.shape == (2, 6, 32)
    select(net, None)
    table = net.encoder.embed.tokens
    table.weight = torch.nn.Parameter(torch.cat([table.weight, vectors]))
    longer = torch.cat([torch.arange(VOCAB, VOCAB + 3).expand(2, 3), IDS], 1)
    assert_close(streams["decoder"].x, net(longer, IDS)["decoder"].x)
    assert_close(streams["encoder"].prompt, net(longer, IDS)["encoder"].x[:, :3])


def test_padding_on_the_left_changes_nothing_behind_a_prompt():
    net = model()
    attach(net, Prompt(length=3))
    moved(net)
    padded = torch.cat([torch.zeros(2, 2, dtype=torch.long), IDS], 1)
    real = torch.ones(2, 8, dtype=torch.bool)
    real[:, :2] = False
    assert_close(said(net, padded, real=real)[:, 2:], said(net))


@pytest.mark.parametrize("kind", [Cache, Int8Cache])
@pytest.mark.parametrize("window", [None, 4])
@torch.no_grad()
def test_a_prompt_goes_through_every_cache(kind, window):
    net = model(window=window)
    attach(net, Prompt(length=3))
    moved(net)
    ids = torch.randint(0, VOCAB, (2, 300), generator=torch.Generator().manual_seed(4))
    cache, outs = kind(300), []
    for chunk in (slice(0, 2), slice(2, 3), slice(3, 299), slice(299, 300)):
        outs.append(net.run("decoder", ids[:, chunk], None, cache).x)
    whole = net(decoder=ids)["decoder"].x
    bound = 1e-9 if kind is Cache else 0.3
    assert (torch.cat(outs, 1) - whole).abs().max() < bound
    cache.rewind(0)
    assert_close(net.run("decoder", ids[:, :2], None, cache).x, outs[0])


@torch.no_grad()
def test_rows_that_share_a_beginning_share_its_prompt():
    net = model()
    attach(net, Prompt(length=3))
    moved(net)
    cache = Cache(6)
    net.run("decoder", IDS[:, :3], None, cache)
    cache.share()
    cache.reorder(torch.tensor([0, 0, 1]))
    found = net.run("decoder", IDS[[0, 0, 1], 3:], None, cache).x
    assert_close(found, net(decoder=IDS)["decoder"].x[[0, 0, 1], 3:])


@pytest.mark.parametrize("tuning", [Prefix(length=3), Prompt(length=3), Prompt(length=3, towers=("*",))])
@torch.no_grad()
def test_beams_over_a_tuned_encoder_decoder_find_what_scores_say(tuning):
    net = model("t5")
    attach(net, tuning)
    moved(net)
    found = search(net, Stream(IDS), start=1, end=2, max_length=5, beams=3)
    for source, (best, *_) in zip(IDS, found, strict=True):
        ids = torch.tensor([[1, *best.ids, 2][: 1 + 5]])
        scores = net.heads["lm"](net(source[None], ids[:, :-1])["decoder"].x).log_softmax(-1)
        assert_close(scores[0].gather(1, ids[0, 1:, None]).sum().item(), best.log_prob, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tuning", [Prefix(length=3), Prompt(length=3), LoRA(rank=2)])
@pytest.mark.parametrize("shared", [False, True])
def test_texts_that_run_together_are_continued_as_alone(tuning, shared):
    net = model()
    attach(net, tuning)
    moved(net)
    begin = list(range(3, 28)) * 2 if shared else []  # long enough to be read once for those that have it
    prompts = [[*begin, 5], [*begin, 7, 8, 9], [4], [*begin, 6, 6]]
    known = Prompts(10**6)
    running = Running(net, prompts=known)
    texts = [Continuation(prompt, 6, ends=()) for prompt in prompts]
    for i, text in enumerate(texts):
        running.join(text)
        if i % 2:
            running.step()
    while len(running):
        running.step()
    for text in texts:
        ids = list(text.prompt)
        for _ in range(6):
            ids.append(int(said(net, torch.tensor([ids]))[0, -1].argmax()))
        assert text.ids == ids[len(text.prompt) :]


def test_a_prefix_by_a_network_is_saved_as_plain_keys_and_values():
    net = model()
    attach(net, Prefix(length=3, hidden=7))
    moved(net)
    state = small(net)
    assert state["decoder.blocks.1.self_attn.memory.k"].shape == (2, 3, 8)
    assert len(state) == 4
    fresh = model()
    assert sorted(attach(fresh, Prefix(length=3))) == sorted(name for name, p in fresh.named_parameters() if p.requires_grad)
    fill(fresh, state)
    assert_close(said(fresh), said(net))


# ---- quantised weights ----


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_gradient_goes_through_a_quantised_matrix(bits, rounding, dtype, monkeypatch):
    """grad W of the values that the codes stand for; rounding of x counts as none on the way back."""
    torch.manual_seed(0)
    monkeypatch.setattr("plait.core.quantised.AT_ONCE", 1)  # eight rows at a time
    layer = QuantisedLinear(quantised(torch.randn(37, 70), bits, rounding), torch.nn.Parameter(torch.randn(37)))
    x, grad = torch.randn(2, 5, 70, dtype=dtype, requires_grad=True), torch.randn(2, 5, 37, dtype=dtype)
    layer.to(dtype)(x).backward(grad)
    bound = dict(rtol=2e-2, atol=0.3) if dtype == torch.bfloat16 else dict(rtol=1e-5, atol=1e-4 if dtype == torch.float32 else 1e-9)
    assert_close(x.grad.double(), grad.double() @ layer.matrix.values(torch.float64), **bound)
    assert_close(layer.bias.grad.double(), grad.double().sum((0, 1)), **bound)
    with torch.no_grad():
        assert_close(layer(x), layer(x.clone().requires_grad_()))


@pytest.mark.parametrize("bits", [8, 4])
def test_lora_over_quantised_weights_learns(bits):
    net = model().float()
    place(net, {name: quantised(part.weight, bits) for name, part in net.named_modules() if type(part) is Linear and "blocks" in name})
    attach(net, LoRA(rank=4, targets=("*_proj",)))
    before = {name: t.clone() for name, t in net.state_dict().items() if "tunings" not in name}
    adam, losses = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 0.02), []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(said(net)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items() if "tunings" not in name)
    assert not mergeable(net)
    with pytest.raises(InputError, match="few bits") as error:
        merge(net)
    assert len(error.value.faults) == 14
    tuned = said(net).detach()
    fresh = model().float()
    place(fresh, {name: quantised(part.weight, bits) for name, part in fresh.named_modules() if type(part) is Linear and "blocks" in name})
    load_small(fresh, LoRA(rank=4, targets=("*_proj",)), small(net))
    assert_close(said(fresh), tuned)


# ---- attached, chosen, merged ----


@torch.no_grad()
def test_merged_is_unmerged_in_float32_and_bits_come_back():
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
def test_a_new_head_is_trained_saved_and_switched_with_its_tuning():
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


def test_what_is_saved_does_not_tell_what_else_is_attached():
    net, alone = model(), model()
    attach(alone, LoRA(rank=2))
    attach(net, Adapter(width=3), "first")
    attach(net, LoRA(rank=2))
    assert small(net).keys() == small(alone).keys()


def test_what_was_taken_out_moves_along():
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


# ---- what bad input gets ----


def refused(net, tuning, **more) -> str:
    state, learns = {name: p.clone() for name, p in net.named_parameters()}, [p.requires_grad for p in net.parameters()]
    with pytest.raises(InputError) as error:
        attach(net, tuning, **more)
    assert all(torch.equal(p, state[name]) for name, p in net.named_parameters())
    assert [p.requires_grad for p in net.parameters()] == learns
    assert not hasattr(net, "tunings")
    return str(error.value)


def test_everything_wrong_with_targets_is_told_at_once():
    told = refused(model(), LoRA(rank=20, targets=("*.k_proj", "*.q_prj", "*.nothing")), also=["heads.none"])
    assert "'*.q_prj' matches no matrix" in told and "q_proj" in told.split("q_prj")[1]
    assert "'*.nothing'" in told and "'heads.none'" in told
    assert told.count("rank=20 is beyond its width; take at most 16") == 2


def test_a_method_with_nothing_to_train_is_refused():
    assert "matches no module with a bias; there is none" in refused(model(), BitFit())
    assert "matches no parameter of a head; there is none" in refused(model(tie=True), HeadOnly())


def test_full_tuning_of_quantised_weights_is_refused():
    net = model().float()
    place(net, {"decoder.blocks.0.ffn.up_proj": quantised(net.get_submodule("decoder.blocks.0.ffn.up_proj").weight, 8)})
    assert "quantised" in refused(net, Full())


@pytest.mark.parametrize(
    ("tuning", "told"),
    [
        (LoRA(rank=0), "rank=0"),
        (LoRA(alpha=-1), "alpha=-1"),
        (LoRA(dropout=1.0), "dropout=1.0"),
        (Prefix(length=0), "length=0"),
        (Prefix(hidden=0), "hidden=0"),
        (Prompt(towers=("encoder",)), "'encoder' matches no tower"),
        (Adapter(activation="rel"), "activation='rel'"),
        (Adapter(width=1.5), "width=1.5"),  # type: ignore[arg-type]
        (LoRA(targets="*.q_proj"), "expected a list"),  # type: ignore[arg-type]
        (IA3(outputs=("*.k_proj",), inputs=("*.k_proj",)), "among outputs and inputs"),
    ],
)
def test_settings_that_cannot_be_are_refused(tuning, told):
    assert told in refused(model(), tuning)


def test_an_unknown_method_or_setting_is_refused():
    with pytest.raises(InputError, match="did you mean lora"):
        tuning_of({"method": "lorra"})
    with pytest.raises(InputError, match="not rang"):
        tuning_of({"method": "lora", "rang": 3})


def test_names_of_what_is_attached_are_checked():
    net = model()
    assert "expected a word" in refused(net, LoRA(), name="a.b")
    attach(net, LoRA(rank=2))
    with pytest.raises(InputError, match="is taken"):
        attach(net, LoRA(rank=2))
    assert names(net) == ["default"] and net.tunings.chosen == "default"
    with pytest.raises(InputError, match="there is default"):
        select(net, "other")


def test_tensors_of_another_model_are_refused_all_at_once():
    wide = model(d_model=48, n_layers=3)
    attach(wide, LoRA(rank=2))
    net = model()
    with pytest.raises(InputError) as error:
        load_small(net, LoRA(rank=2), small(wide))
    told = "\n".join(error.value.faults)
    assert "decoder.blocks.0.self_attn.q_proj.a is [2, 48], this model takes [2, 32]" in told
    assert "decoder.blocks.2.self_attn.v_proj.b has no place in this model" in told
    assert len(error.value.faults) == 12
    assert not names(net)


def test_what_cannot_be_merged_says_so():
    for tuning in (Prefix(length=2), Prompt(length=2), Adapter(width=3)):
        net = model()
        attach(net, tuning)
        answer = said(moved(net))
        with pytest.raises(InputError, match="stays beside them"):
            merge(net)
        assert torch.equal(said(net), answer)


def test_a_part_of_a_prompt_is_learned_in_its_tower_alone():
    net = model("t5")
    attach(net, Prompt(length=2, towers=("decoder",)))
    assert [type(part) for part in net.tunings.modules() if isinstance(part, Entries)] == [Entries]
    assert net.encoder.prompt is None
