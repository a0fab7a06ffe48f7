"""Every model of PAGES is tuned by a small part, which begins as nothing, learns alone, and is saved, loaded, merged and taken off."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch.testing import assert_close

from plait.core.cache import Cache
from plait.core.stream import Stream
from plait.errors import InputError
from plait.models import PAGES
from plait.tune import (
    IA3,
    Adapter,
    BitFit,
    HeadOnly,
    LoRA,
    Prefix,
    Prompt,
    attach,
    begin,
    detach,
    load_small,
    merge,
    small,
    unmerge,
    using,
)

BEGIN_AS_NOTHING = {
    "lora": LoRA(rank=2),
    "dora": LoRA(rank=2, targets=("*_proj",), magnitude=True),
    "ia3": IA3(),
    "houlsby": Adapter(width=3, activation="gelu"),
    "pfeiffer": Adapter(width=5, placement="pfeiffer", activation="gelu"),  # with 3 all of one layer of BART's are drawn where GELU is 0
    "bitfit": BitFit(),
}
OTHERS = {"prefix": Prefix(length=3), "network": Prefix(length=2, hidden=5), "prompt": Prompt(length=3), "head": HeadOnly()}
METHODS = {**BEGIN_AS_NOTHING, **OTHERS}
PAIRS = (("lora", "dora"), ("ia3",), ("houlsby", "pfeiffer"), ("bitfit", "head"), ("prefix", "network"), ("prompt",))  # one mechanism each
EXACT = dict(rtol=1e-9, atol=1e-9)  # float64: rounding only
SAME = dict(rtol=0, atol=1e-12)  # the same sums; where memory lies may turn their last bit


@pytest.fixture(scope="session")
def turn(arch) -> int:
    """Which of several likes this page tries."""
    return list(PAGES).index(arch)


@pytest.fixture(scope="module")
def own(net):
    """A copy, which every test gives back as it was."""
    return copy.deepcopy(net).eval()


@contextmanager
def tuned(net, method, moved=True):
    """With a small part that does something; None where the model has nothing that the method could train."""
    try:
        attach(net, METHODS[method])
    except InputError as error:
        if method not in ("bitfit", "head") and "rows of its own" not in str(error):  # no biases; only a lent matrix; frames
            raise
        yield None
        return
    if moved:
        move(net)
    yield net
    detach(net)


@torch.no_grad()
def move(net, seed=3):
    draw = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        if p.requires_grad:
            p.add_(torch.randn(p.shape, generator=draw, dtype=p.dtype), alpha=0.3)


@pytest.fixture
def said(ends):
    """What a model answers: all scores of its head."""
    rows = 1 if ends.seen else 2
    source, target = ends.source(rows, 5, 2), ends.target(rows, 4, 3)
    return lambda net: ends.scores(net, source, target)


@pytest.mark.capability("tune")
def test_it_begins_as_nothing_learns_alone_and_is_saved(own, net, said, turn, ends):
    """Of methods with one mechanism each page has one."""
    with torch.no_grad():
        plain = said(own)
    for method in (pair[turn % len(pair)] for pair in PAIRS):
        with tuned(own, method, moved=False) as made:
            if made is None:
                continue
            with torch.no_grad():
                if method in BEGIN_AS_NOTHING:
                    assert_close(said(made), plain, **SAME)
                move(made)
            answer, state = said(made), small(made)
            assert not torch.allclose(answer, plain), method
            answer.square().mean().backward()
            for name, p in made.named_parameters():
                assert p.requires_grad == (p.grad is not None), f"{method}: {name}"
                place = name.removeprefix("tunings.default.parts.").replace("/", ".")
                if p.requires_grad and "/" in name and not (ends.blind and place.startswith("decoder.blocks.0.self_attn.")):
                    assert p.grad.abs().sum() > 0, f"{method}: {name}"
        load_small(own, METHODS[method], state, "other")
        with torch.no_grad():
            assert_close(said(own), answer, **SAME)
        detach(own, "other")
    before = dict(net.named_parameters())
    for name, p in own.named_parameters():
        assert p.requires_grad and torch.equal(p, before.pop(name)), name
    assert not before


@pytest.mark.capability("tune")
@torch.no_grad()
def test_merged_it_is_the_same_and_unmerged_the_bits_are_back(net, said, turn):
    made = copy.deepcopy(net).eval()
    attach(made, METHODS[("lora", "dora", "ia3")[turn % 3]])
    move(made)
    answer, bits = said(made), {name: p.clone() for name, p in made.named_parameters()}
    merge(made)
    assert_close(said(made), answer, **EXACT)
    unmerge(made)
    assert all(torch.equal(p, bits[name]) for name, p in made.named_parameters())
    merge(made, keep=False)
    assert_close(said(made), answer, **EXACT)
    assert [type(part) for part in made.modules()] == [type(part) for part in net.modules()]
    assert list(made.state_dict()) == list(net.state_dict())


@pytest.mark.capability("tune")
@torch.no_grad()
def test_several_are_switched(own, said, turn):
    answers = {None: said(own)}
    for name, method in {"a": ("lora", "dora")[turn % 2], "b": "prefix"}.items():
        attach(own, METHODS[method], name)
        move(own)
        answers[name] = said(own)
    for name in ("a", None, "b", "a"):
        with using(own, name):
            assert_close(said(own), answers[name], **SAME)
    for name in "ab":
        detach(own, name)
    assert_close(said(own), answers[None], **SAME)


@pytest.mark.capability("tune")
def test_prefixes_and_prompts_begin_as_what_the_model_reads(own, ends):
    cut = ends.takes == "clips" and "time_attn" in own.encoder.blocks[0].names  # there a prompt has no place
    for tuning in (Prefix(length=3), *([] if cut else [Prompt(length=3)])):
        trained = attach(own, tuning)
        was = {name: own.get_parameter(name).clone() for name in trained}
        n = begin(own, lambda: ends.out(own, ends.source(2, 5, 2), ends.target(2, 4, 3)))
        assert n == len(trained) / (1 if isinstance(tuning, Prompt) else 2)  # keys and values
        assert all(own.get_parameter(name).isfinite().all() and not torch.equal(own.get_parameter(name), was[name]) for name in trained)
        detach(own)


@pytest.mark.capability("tune")
@torch.no_grad()
def test_cached_is_uncached(own, ends):
    if not ends.causal:
        return
    source, target = ends.source(2, 5, 2), ends.target(2, 7, 3)
    padded = torch.ones(2, 7, dtype=torch.bool)
    padded[0, :2] = False
    for method, tuning in {"prefix": Prefix(length=3), "prompt": Prompt(length=3, towers=own.towers)}.items():
        attach(own, tuning)
        move(own)
        memories = ends.memories(own, source)
        for real in (None, padded):
            cache, outs = Cache(7), []
            for chunk in (slice(0, 3), slice(3, 4), slice(4, 7)):
                given = cache.stream(target[:, chunk], None if real is None else real[:, chunk])
                outs.append(own.run(ends.last, given, memories, cache).x)
            whole = own.run(ends.last, Stream(target, real=real), memories).x
            assert_close(torch.cat(outs, 1)[padded], whole[padded], **EXACT, msg=lambda text: f"{method}: {text}")  # noqa: B023
        detach(own)
