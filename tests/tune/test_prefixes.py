"""Prefixes and prompts: what stands before a text, in every cache, in beams and in batches that run together."""

import pytest
import torch
from torch.testing import assert_close

from plait.core.cache import Cache, Int8Cache
from plait.core.stream import Stream
from plait.errors import InputError
from plait.generate.prompts import Prompts
from plait.generate.running import Continuation, Running
from plait.generate.search import search
from plait.tune import (
    LoRA,
    Prefix,
    Prompt,
    attach,
    begin,
    detach,
    fill,
    select,
    small,
)

VOCAB = 29
IDS = torch.randint(0, VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))


def test_a_prompt_is_entries_before_the_embedded_text(model, moved, said):
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


def test_what_reads_a_prompted_encoder_reads_the_prompt(model, moved):
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


def test_padding_on_the_left_changes_nothing_behind_a_prompt(model, moved, said):
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
def test_a_prompt_goes_through_every_cache(model, moved, kind, window):
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
def test_rows_that_share_a_beginning_share_its_prompt(model, moved):
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
def test_beams_over_a_tuned_encoder_decoder_find_what_scores_say(model, moved, tuning):
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
def test_texts_that_run_together_are_continued_as_alone(model, moved, said, tuning, shared):
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


def test_a_prompt_that_was_read_with_another_part_is_read_again(model, moved, said):
    net, known = model(), Prompts(10**6)
    prompt = list(range(3, 28)) * 2

    def continued(shared):
        running = Running(net, prompts=shared)
        running.join(text := Continuation(prompt, 4, ends=()))
        read = list[int]()
        net.decoder.register_forward_pre_hook(lambda module, args: read.append(args[0].x.shape[1]))
        while len(running):
            running.step()
        return text.ids, read[0]

    attach(net, Prefix(length=3), "one")
    moved(net)
    attach(net, LoRA(rank=2), "two")
    moved(net)
    for name in ("one", "two", None):
        select(net, name)
        assert continued(known) == (continued(None)[0], len(prompt))
    for name in ("one", "two", None):
        select(net, name)
        assert continued(known) == (continued(None)[0], 1)
    detach(net, "two")
    attach(net, LoRA(rank=2), "two")  # another of the same name
    moved(net)
    assert continued(known) == (continued(None)[0], len(prompt))


def test_a_prefix_by_a_network_is_saved_as_plain_keys_and_values(model, moved, said):
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


def test_texts_that_run_do_not_change_their_part(model, moved):
    """Their keys are those of the part they began with; done, another may be chosen."""
    net = model()
    attach(net, Prefix(length=3), "one")
    running = Running(net)
    running.join(Continuation([4, 5], 3, ends=()))
    running.step()
    select(net, None)
    with pytest.raises(InputError, match="begun with another small part"):
        running.step()
    select(net, "one")
    while len(running):
        running.step()
    select(net, None)
    running.join(text := Continuation([4, 5], 3, ends=()))
    while len(running):
        running.step()
    assert len(text.ids) == 3


def test_a_prefix_begins_as_keys_and_values_of_real_entries(model):
    net = model("t5")
    real = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    source = Stream(IDS, real=real)
    content = net.encoder.embed(source).x
    block, tower = net.decoder.blocks[0], net.run("encoder", source).x
    asked = block.self_attn_norm(net.decoder.embed(Stream(IDS)).x)
    wanted = {
        "encoder.blocks.0.self_attn": (net.encoder.blocks[0].self_attn, net.encoder.blocks[0].self_attn_norm(content)[real]),
        "decoder.blocks.0.self_attn": (block.self_attn, asked.flatten(0, 1)),
        "decoder.blocks.0.cross_attn": (block.cross_attn, tower[real]),
    }
    attach(net, Prefix(length=3))
    net.train()
    assert begin(net, lambda: net(source, IDS)) == 6 and net.training
    for name, (part, entries) in wanted.items():
        chosen = entries[[0, {9: 4, 12: 6}[len(entries)], -1]]  # the middle of twelve, 5.5, is rounded to an even place
        for kind, proj in (("k", part.k_proj), ("v", part.v_proj)):
            right = proj(chosen).unflatten(-1, (4, -1)).transpose(0, 1)  # [H, n, K]
            assert_close(small(net)[f"{name}.memory.{kind}"], right)


def test_a_prompt_begins_as_vectors_of_real_entries_and_short_texts_come_twice(model):
    net = model()
    attach(net, Prompt(length=5))
    assert begin(net, lambda: net(decoder=Stream(IDS[:1, :2]))) == 1
    vectors = net.decoder.embed.tokens.weight[IDS[0, :2]]
    assert_close(small(net)["decoder.prompt.weight"], vectors[[0, 0, 0, 1, 1]])
    detach(net)
    attach(net, Prefix(length=2, hidden=4))
    assert begin(net, lambda: net(decoder=Stream(IDS))) == 0  # what a network makes is not set
    detach(net)
