"""Language models put to use: prompts, streams, conversations and scores; SmolLM2 against the reference implementation."""

import io
import json
import math
from pathlib import Path

import pytest
import torch

import plait as library
from plait import cli
from plait.errors import InputError
from plait.generate.text import texts_of
from plait.hub.decoding import Decoding

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")


@pytest.fixture(scope="module")
def folder(gpt2):
    return gpt2


def test_generation_is_the_reference(folder):
    peer, model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval(), library.load(folder)
    for text in ("the door", "ab", ""):
        ids = model.encode(text) or [256]
        for least in (0, 12):
            how = dict(max_new_tokens=12, min_new_tokens=least, do_sample=False, pad_token_id=256)
            wanted = peer.generate(torch.tensor([ids]), **how)[0, len(ids) :].tolist()
            wanted = wanted[: wanted.index(256)] if 256 in wanted else wanted
            assert model.generate(ids, 12, min_new_tokens=least) == wanted
            assert model.generate(text, 12, min_new_tokens=least) == model.decode(wanted)
            assert list(model.generate(ids, 12, least, stream=True)) == wanted
            assert "".join(model.generate(text, 12, least, stream=True)) == model.decode(wanted)
    assert model.generate(["the", [5, 6]], 3) == [model.generate("the", 3), model.generate([5, 6], 3)]
    assert model.generate("a", 0) == "" and model.generate([1], 0) == [] and list(model.generate("a", 0, stream=True)) == []


def test_any_of_several_ends_ends(folder):
    model = library.load(folder)
    whole = model.generate([1, 2], 10)
    assert len(set(whole)) > 3
    end = next(id for id in whole[3:] if id not in whole[:3])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, end]}))
    try:
        assert library.load(folder).generate([1, 2], 10) == whole[: whole.index(end)]
    finally:
        (folder / "generation_config.json").unlink()


def test_a_stream_does_not_part_a_character(folder):
    model = library.load(folder)
    text = "é a 漢😀!\ufffd?"
    pieces = list(texts_of(model.encode(text), model.decode))
    assert "".join(pieces) == text and pieces[:4] == ["é", " ", "a", " "] and "😀" in pieces
    cut = model.encode("a😀")[:-1]
    assert "".join(texts_of(cut, model.decode)) == model.decode(cut) != "a"


def test_every_prompt_that_does_not_fit_is_named(folder):
    model = library.load(folder)
    with pytest.raises(InputError) as error:
        model.generate(["a", "b" * 60, "c", "d" * 70], 10, first=4)
    assert "input 5: is 60 tokens long and 10 more were asked for: room for 64" in str(error.value)
    assert "input 7: is 70" in str(error.value) and "input 6" not in str(error.value)
    for how, says in (
        (dict(max_new_tokens=-1), "max_new_tokens=-1"),
        (dict(top_p=0.5), "top_p=0.5: is of sampling"),
        (dict(n=2), "n=2 .*at most as many as beams"),
        (dict(temperature=-1, top_k=0, seed=-1), "(?s)temperature=-1.*top_k=0.*seed=-1"),
        (dict(temperature=float("nan")), "temperature=nan"),
        (dict(beams=2, temperature=1.0, stop="a"), "(?s)searched, not drawn.*stop strings go with one beam"),
        (dict(beams=2, stream=True), "one answer of one beam"),
        (dict(stop=""), "not empty"),
        (dict(logit_bias={257: 1.0}), "ids below 257"),
        (dict(min_new_tokens=99), "=99"),
    ):
        with pytest.raises(InputError, match=says):
            model.generate("a", **how)


PROMPTS = ([1, 2], [100, 7, 8, 7, 8], [256], list(b"the door"))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (dict(repetition_penalty=1.6), {}),
        (dict(no_repeat_ngram_size=2), {}),
        (dict(logit_bias={7: 2.0, 30: -3.5, 256: -1.0}), dict(sequence_bias={(7,): 2.0, (30,): -3.5, (256,): -1.0})),
        (dict(beams=3, n=3), {}),
        (dict(beams=4, n=2, length_penalty=0.3, min_new_tokens=3, repetition_penalty=1.3), {}),
        (dict(beams=2, n=2, no_repeat_ngram_size=1, logit_bias={256: 3.0}), dict(sequence_bias={(256,): 3.0})),
    ],
)
def test_options_are_the_references(folder, ours, theirs):
    """Greedy and beams with scores; beams are all ended by force, since what is cut at the limit is scored by another rule of ours."""
    peer, model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval(), library.load(folder)
    beams, n = ours.get("beams", 1), ours.get("n", 1)
    if beams > 1:
        theirs = theirs | dict(forced_eos_token_id=256)
        model.settings = model.settings | dict(forced_eos_token_id=256)
    same = {name: value for name, value in ours.items() if name not in ("beams", "n", "logit_bias")}
    found = model.generate(list(PROMPTS), 10, **ours)
    for prompt, answers in zip(PROMPTS, found, strict=True):
        out = peer.generate(
            torch.tensor([prompt]), max_new_tokens=10, do_sample=False, num_beams=beams, num_return_sequences=n, pad_token_id=256,
            eos_token_id=256, return_dict_in_generate=True, output_scores=True, **same, **theirs,
        )  # fmt: skip
        wanted = [row[len(prompt) :] for row in out.sequences.tolist()]
        wanted = [row[: row.index(256)] if 256 in row else row for row in wanted]
        assert (answers if n > 1 else [answers]) == wanted
        if beams > 1:
            hypotheses = model._found([list(prompt)], Decoding(10, **ours), model.ends, 1)[0]
            assert [h.score for h in hypotheses] == pytest.approx(out.sequences_scores.tolist(), abs=1e-4)


def test_penalties_of_what_was_used(folder):
    """Against the formula on the model's own scores: the prompt does not count."""
    model = library.load(folder)
    for presence, frequency in ((1.5, 0.0), (0.0, 0.7), (0.5, -0.4)):
        ids = []
        for _ in range(10):
            scores = torch.tensor(model.logits([*PROMPTS[1], *ids])[0][-1])
            for id in set(ids):
                scores[id] -= presence + frequency * ids.count(id)
            ids.append(int(scores.argmax()))
            if ids[-1] == 256:
                break
        wanted = ids[: ids.index(256)] if 256 in ids else ids
        assert model.generate(PROMPTS[1], 10, presence_penalty=presence, frequency_penalty=frequency) == wanted


def test_the_checkpoints_settings(folder):
    """Penalties are followed, sampling only where it is asked for, and what is not built is refused."""
    place, plain = folder / "generation_config.json", library.load(folder)
    how = dict(max_new_tokens=8, temperature=0.9, seed=5)
    wanted, drawn = plain.generate([1, 2], 8, repetition_penalty=1.7), plain.generate([1, 2], **how, top_k=2)
    assert wanted != plain.generate([1, 2], 8) and drawn != plain.generate([1, 2], **how)
    try:
        place.write_text(json.dumps({"eos_token_id": 256, "repetition_penalty": 1.7}))
        assert library.load(folder).generate([1, 2], 8) == wanted
        place.write_text(json.dumps({"eos_token_id": 256, "do_sample": True, "temperature": 5.0, "top_k": 2}))
        model = library.load(folder)
        assert model.generate([1, 2], 8) == plain.generate([1, 2], 8) and model.generate([1, 2], **how) == drawn
        place.write_text(json.dumps({"eos_token_id": 256, "guidance_scale": 3.0}))
        with pytest.raises(InputError, match=r"guidance_scale=3.0 is not built yet"):
            library.load(folder).generate([1, 2], 8)
    finally:
        place.unlink()


def test_samples_do_not_depend_on_their_batch(folder):
    model = library.load(folder)
    how = dict(max_new_tokens=12, temperature=1.2, top_p=0.95, seed=11)
    samples = model.generate(list(PROMPTS), **how, n=4)
    assert [model.generate(prompt, **how, n=4) for prompt in PROMPTS] == samples
    assert model.generate(list(PROMPTS)[::-1], **how) == [some[0] for some in samples][::-1]
    assert [list(model.generate(prompt, **how, stream=True)) for prompt in PROMPTS] == [some[0] for some in samples]
    assert (
        len({tuple(ids) for some in samples for ids in some}) > 12 and model.generate(list(PROMPTS), **how | {"seed": 12}, n=4) != samples
    )


def test_stop_strings(folder, capsys):
    model = library.load(folder)
    whole = model.generate("the", 30, no_repeat_ngram_size=2)
    how = dict(max_new_tokens=30, no_repeat_ngram_size=2)
    at = next(i for i in range(5, len(whole)) if whole[i : i + 3].isascii())
    for stop in (whole[at : at + 3], [whole[at : at + 3], whole[at + 1 : at + 4], "never met"]):
        said = whole[: min(whole.find(word) for word in ([stop] if isinstance(stop, str) else stop) if word in whole)]
        assert model.generate(["the", "the"], **how, stop=stop) == [said, said]
        assert "".join(model.generate("the", **how, stop=stop, stream=True)) == said
        assert model.decode(model.generate(model.encode("the"), **how, stop=stop)).startswith(said)
    assert model.generate("the", **how, stop="never met") == whole
    assert cli.main(["run", str(folder), "the", "--no-repeat-ngram-size", "2", "--max-new-tokens", "30", "--stop", whole[at : at + 3]]) == 0
    assert capsys.readouterr().out == f"the{whole[: whole.find(whole[at : at + 3])]}\n"


def test_what_cannot_be_continued(folder, capsys):
    model = library.load(folder)
    assert cli.main(["run", str(folder), "a", "--max-new-tokens", "0"]) == 0 and capsys.readouterr().out == "a\n"
    assert cli.main(["run", str(folder), "a", "--logit-bias", "3"]) == 2 and "expected ID=NUMBER" in capsys.readouterr().err
    assert cli.main(["run", str(folder), "a", "--logit-bias", "98=99", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out == "abbb\n".replace("b", model.decode([98]))
    half = model.generate("the", 20, stream=True)
    next(half)
    half.close()
    assert torch.zeros(1).requires_grad_().mul(2).requires_grad  # a stream that was left leaves no mode behind
    with pytest.raises(InputError, match=r"input 1: 300 is no id|300 is no id"):
        model.generate([300], 3)
    model.settings = model.settings | {"suppress_tokens": list(range(257))}
    for beams in (1, 2):
        with pytest.raises(InputError, match=r"(?s)input 2: .*forbidden"):
            model.generate(["a", "b"], 3, beams=beams)
    model = library.load(folder)
    with torch.no_grad():
        next(p for name, p in model.net.named_parameters() if "ffn" in name).fill_(float("nan"))
    for how in ({}, dict(temperature=1.0), dict(beams=2)):
        with pytest.raises(InputError, match="NaN"):
            model.generate("a", 3, **how)


def test_conversations(folder, capsys, monkeypatch):
    model = library.load(folder)
    first = model.chat([{"role": "user", "content": "hi"}], max_new_tokens=5)
    assert first == model.generate("user: hi\nassistant:", 5) and first
    assert "".join(model.chat([{"role": "user", "content": "hi"}], 5, stream=True)) == first
    assert cli.main(["run", str(folder), "hi", "hi", "--chat", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == f"{first}\n{first}\n"
    assert cli.main(["run", str(folder), "hi", "--chat", "--system", "sing", "--max-new-tokens", "5", "--json"]) == 0
    told = model.generate("system: sing\nuser: hi\nassistant:", 5)
    assert json.loads(capsys.readouterr().out) == {"input": "hi", "answer": told, "ended": False}
    assert cli.main(["run", str(folder), "hi", "--system", "sing"]) == 2 and "--chat" in capsys.readouterr().err
    # at a keyboard the model remembers
    keyboard = io.TextIOWrapper(io.BytesIO(b"hi\nyo\n"), encoding="utf-8")
    keyboard.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", keyboard)
    assert cli.main(["run", str(folder), "--chat", "--max-new-tokens", "5"]) == 0
    second = model.generate(f"user: hi\nassistant: {first}\nuser: yo\nassistant:", 5)
    assert capsys.readouterr().out == f"{first}\n{second}\n" and second != model.generate("user: yo\nassistant:", 5)


def test_scores_of_windows_are_the_plain_formula(folder):
    model = library.load(folder)
    text = "The door is open; the window, too. " * 3
    ids = model.encode(text)
    for window, stride in ((64, None), (10, 3), (2, 1)):
        found = model.score(text, window, stride)
        stride = stride or window // 2
        total = 0.0
        for i in range(1, len(ids)):
            begin = next(b for b in range(0, len(ids), stride) if b + window > i)  # the first window that reaches it
            row = torch.tensor(model.logits(ids[begin:i])[0][-1], dtype=torch.float64)
            total -= float(row.log_softmax(-1)[ids[i]])
        assert found.tokens == len(ids) - 1 and found.nats_per_token == pytest.approx(total / (len(ids) - 1), rel=1e-5)
        assert model.perplexity(text, window, stride) == pytest.approx(math.exp(found.nats_per_token))
    for how, says in ((dict(window=65), "this model takes 64"), (dict(window=8, stride=8), "1 to 7")):
        with pytest.raises(InputError, match=says):
            model.score(text, **how)
    with pytest.raises(InputError, match="1 tokens: at least 2"):
        model.score("a")


def test_smollm2_chats_as_the_reference(smollm2):
    model, peer = smollm2
    own = model.tokenizer
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=own.backend, chat_template=own.chat_template, eos_token="<|im_end|>")
    for messages in (
        [{"role": "user", "content": "What is the capital of France?"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!\n"}, {"role": "assistant", "content": "Hello."},
         {"role": "user", "content": "Über 漢字?"}],
    ):  # fmt: skip
        ids = model.chat_ids(messages)
        tokenizer.backend_tokenizer.encode_special_tokens = False
        assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ids = model.chat_ids([{"role": "user", "content": "What is the capital of France?"}])
    greedy = peer.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, eos_token_id=2, pad_token_id=2)[0, len(ids) :].tolist()
    assert greedy[-1] == 2 and len(greedy) < 20  # it ends by itself, at <|im_end|>
    assert model.chat([{"role": "user", "content": "What is the capital of France?"}], 20) == model.decode(greedy[:-1])


def test_smollm2_scores_a_text_as_the_reference(smollm2):
    model, peer = smollm2
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")[:700]
    ids = torch.tensor([model.encode(text)])
    with torch.no_grad():
        assert model.score(text).nats_per_token == pytest.approx(peer(ids, labels=ids).loss.item(), abs=1e-4)
        # windows as Hugging Face's guide to perplexity has them: what was scored before is context only
        window, stride, total, done = 128, 64, 0.0, 0
        for begin in range(0, ids.shape[1], stride):
            end = min(begin + window, ids.shape[1])
            labels = ids[:, begin:end].clone()
            labels[:, : max(done - begin, 0)] = -100
            count = int((labels[:, 1:] != -100).sum())
            total += peer(ids[:, begin:end], labels=labels).loss.item() * count
            done = end
            if end == ids.shape[1]:
                break
    assert model.score(text, window, stride).nats_per_token == pytest.approx(total / (ids.shape[1] - 1), abs=1e-4)
