"""`plait inspect` of models of texts: each view is what the model computes for the input, whatever its task is."""

import json
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as vocabularies

from plait import cli
from plait.core import kernels
from plait.hub import load
from plait.inspect.page import LEVELS, unpack
from plait.inspect.record import recorded

TEXTS = ["the door is open", "a pear with the red saw", "open the window", "drill a fig then some pear"]
TAGGED = ["\n".join(f"{word} {'B-fruit' if word in ('pear', 'fig') else 'O'}" for word in text.split()) + "\n" for text in TEXTS]
TWO = [json.dumps({"text": f"{a} {i}", "second": b, "label": f"kind {i % 2}"}) for i, (a, b) in enumerate(pairwise(TEXTS * 10))]
TASKS = {  # a task, what its data say in the lines of a file, and more words
    "classify": ("tsv", ["label\ttext", *(f"{'fruit tool'.split()[i % 2]}\t{text}" for i, text in enumerate(TEXTS * 10))]),
    "pairs": ("jsonl", TWO),
    "tag": ("conll", TAGGED * 9),
    "embed": ("tsv", ["query\tanswer", *(f"{a}\t{b}" for a, b in pairwise(TEXTS * 9))]),
    "masked-lm": ("txt", TEXTS * 30, "--context", 12),
    "language-model": ("txt", TEXTS * 30, "--context", 12, "--documents", "line", "--preset", "modern-decoder-tiny"),
}
ASKED = [{"question": "which word", "answers": [{"text": text.split()[1], "answer_start": text.index(text.split()[1])}]} for text in TEXTS]
ASKED = [{"context": text, "qas": [{"id": str(i), **asked}]} for i, (text, asked) in enumerate(zip(TEXTS, ASKED, strict=True))]
TASKS["answer"] = ("json", [json.dumps({"data": [{"paragraphs": ASKED * 12}]})])


@pytest.fixture(scope="module")
def runs(tmp_path_factory, made):
    """runs(name) -> a run of one step: nothing was learned, everything is there."""
    folder, done = tmp_path_factory.mktemp("runs"), {"translation": made}

    def run(name):
        if name not in done:
            suffix, lines, *more = TASKS[name]
            data, out = folder / f"{name}.{suffix}", folder / name
            data.write_text("".join(f"{line}\n" for line in lines), "utf-8")
            words = ["train", "classify" if name == "pairs" else name, "--data", data, "--out", out, "--steps", 1, "--evaluations", 1]
            words += ["--batch-tokens", 256, "--tokenizer", "words", "--quiet", *more]
            assert cli.main([str(word) for word in (*words, *([] if "--preset" in more else ["--preset", "modern-encoder-tiny"]))]) == 0
            done[name] = out
        return done[name]

    return run


@pytest.fixture
def seen(plait, runs, tmp_path):
    """seen(run, text, words ...) -> (the opened model, what the page has by kind, what was printed)"""

    def call(name, text, *more):
        code, out, err = plait(
            "inspect", folder := runs(name) if isinstance(name, str) else name, text, "--out", tmp_path / "a.html", *more
        )
        assert code == 0, err
        (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', (tmp_path / "a.html").read_text("utf-8"), re.S)
        return load(folder), {view["slug"]: view for view in json.loads(data)["views"]}, json.loads(out)

    return call


def weights(view) -> np.ndarray:
    return unpack(view["roots"], (view["layers"], view["heads"], len(view["queries"]), len(view["keys"])))


def patterns(model, pattern, **streams) -> np.ndarray:
    """What the reference kernel's own formula gives."""
    model.net.kernel = kernels.reference
    return recorded(model.net, pattern, **streams)[0].stacked(pattern)[:, 0].numpy()


def near(view, expected) -> None:
    assert np.abs(weights(view) - expected).max() <= 1 / LEVELS + 1e-5


def shares(net, score, **ids):
    """Of the score of a forward pass, gradient x input of each entry by tower, as shares of all: by hooks of torch alone."""
    kept, hooks = {}, []
    for tower in ids:
        embed = net.get_submodule(tower).embed
        hooks.append(
            embed.register_forward_hook(lambda _, args, s, tower=tower: kept.setdefault(tower, s.having(x=s.x.detach().requires_grad_())))
        )
    with torch.enable_grad():
        score(net(**ids)).backward()
    for hook in hooks:
        hook.remove()
    found = {tower: (s.x * s.x.grad).sum(-1)[0].detach().numpy() for tower, s in kept.items()}
    whole = sum(np.abs(part).sum() for part in found.values())
    return {tower: part / whole for tower, part in found.items()}


def test_a_language_model_and_its_continuation(seen):
    model, views, said = seen("language-model", "the door")
    prompt = model.encode("the door")
    added = model.generate(prompt, max_new_tokens=16)
    ids = torch.tensor([[*prompt, *added]])
    tokens = model.tokenizer.tokens(ids[0].tolist())
    assert list(views) == ["self-attention", "rollout", "gradient-x-input", "lens"] and said["answer"] == model.decode(added)
    assert views["self-attention"]["keys"] == tokens and views["gradient-x-input"]["queries"] == tokens[len(prompt) :]
    near(views["self-attention"], patterns(model, "decoder.*.*.self_attn.pattern", decoder=ids))
    with torch.no_grad():
        chances = model.net.heads["lm"](model.net(decoder=ids)["decoder"].x)[0].softmax(-1)
    top = chances.topk(3)
    assert views["lens"]["cells"][0][-1] == model.tokenizer.tokens(top.indices[:, 0].tolist())
    assert np.abs(weights(views["lens"])[0, :, -1] - top.values.T.numpy()).max() <= 1 / LEVELS + 1e-5
    at = len(prompt) + 2  # the third token that was added: what came before it, and nothing behind, is what it rests on
    expected = shares(model.net, lambda s: model.net.heads["lm"](s["decoder"].x)[0, at - 1, ids[0, at]], decoder=ids)["decoder"]
    whole, ahead, against = weights(views["gradient-x-input"])[0, :, 2]
    assert np.abs(ahead - against - expected).max() <= 2 / LEVELS and whole[at:].max() == 0 < whole[at - 1]


def test_a_given_answer_is_looked_at_instead(seen):
    _, views, said = seen("language-model", "the door", "--answer", "a red", "--kind", "gradient")
    assert said["answer"] == "a red" and next(iter(views)) == "gradient-x-input"
    assert views["gradient-x-input"]["queries"] == ["a", "red"] and len(views["self-attention"]["keys"]) == 5


@pytest.mark.parametrize(("name", "text"), [("classify", "a red pear"), ("pairs", "the door\topen the window")])
def test_classes_and_what_they_rest_on(seen, name, text):
    model, views, said = seen(name, text)
    given = text if name == "classify" else tuple(text.split("\t"))
    found = model(given)
    best = max(found.scores, key=found.scores.get)
    assert said["answer"].startswith(f"{best} {found.scores[best]:.3f}, ")
    assert views["gradient-x-input"]["queries"] == sorted(found.scores, key=lambda label: -found.scores[label])
    assert np.abs(weights(views["lens"])[0, 0, -1] - [found.scores[label] for label in views["lens"]["keys"]]).max() <= 1 / LEVELS + 1e-5
    ids, first = model.classify.row(given)
    [(_, row)] = model.classify.batches([ids], None if first is None else [first])
    assert views["self-attention"]["keys"] == model.tokenizer.tokens(ids)
    near(views["self-attention"], patterns(model, "encoder.*.*.self_attn.pattern", encoder=row))
    head, which = model.net.heads["classify"], model.labels.index(best)
    expected = shares(model.net, lambda s: head(s["encoder"].x[:, 0])[0, which], encoder=row)["encoder"]
    _, ahead, against = weights(views["gradient-x-input"])[0, :, 0]
    assert np.abs(ahead - against - expected).max() <= 2 / LEVELS


def test_tags_are_explained_where_there_are_some(seen):
    model, views, said = seen("tag", "a pear with a red fig")
    ids = model.encode("a pear with a red fig")
    with torch.no_grad():
        best = model.net.heads["tag"](model.net(encoder=torch.tensor([ids]))["encoder"].x)[0].argmax(-1).tolist()
    names = [f"{token}: {model.labels[i]}" for token, i in zip(model.tokenizer.tokens(ids), best, strict=True) if model.labels[i] != "O"]
    inner = [name for name in names if not name.startswith(("<", "["))]
    assert views.get("gradient-x-input", {"queries": []})["queries"] == inner
    assert said["answer"] == (", ".join(f"{e.text}: {e.label}" for e in model.tag(["a pear with a red fig"])[0]) or "nothing")
    assert views["lens"]["cells"][0][-1] == [model.labels[i] for i in best]


def test_an_answer_in_a_context(seen):
    text = json.dumps({"question": "which word", "context": "the red door is open"})
    model, views, said = seen("answer", text)
    assert said["answer"] == (model("which word", "the red door is open").text or "no answer")
    start, end = views["gradient-x-input"]["queries"]
    assert start.startswith("start at ") and end.startswith("end at ") and end.split()[-1] in views["self-attention"]["keys"]


def test_a_vector_and_what_it_rests_on(seen):
    model, views, said = seen("embed", "a red pear", "--kind", "integrated")
    assert said["answer"] == f"a vector of {len(model('a red pear'))} numbers"
    assert views["integrated-gradients"]["queries"] == ["the vector"] and "lens" not in views
    assert np.abs(weights(views["integrated-gradients"])[0, 0].sum(-1) - 1).max() < 0.02


def test_masks_are_filled_and_a_text_without_one_is_looked_at(seen):
    mask = "<mask>"
    model, views, said = seen("masked-lm", f"the {mask} is {mask}")
    ids = model.encode(f"the {mask} is {mask}")
    at = [i for i, token in enumerate(model.tokenizer.tokens(ids)) if token == mask]
    best = model.logits([ids])[0][at].argmax(-1).tolist()
    assert len(at) == 2 and said["answer"] == ", ".join(model.tokenizer.tokens(best))
    assert [views["lens"]["cells"][0][-1][i] for i in at] == views["gradient-x-input"]["queries"] == model.tokenizer.tokens(best)
    _, views, said = seen("masked-lm", "the door is open")
    assert said["answer"] == "no mask to fill" and list(views) == ["self-attention", "rollout", "lens"]


def translation_views(seen, folder, text, model_of=None):
    """The views of an encoder-decoder's answer, checked against its net."""
    model, views, said = seen(folder, text)
    reader, settings = model.prepared({})
    assert said["answer"] == model(text, beams=4)
    source = torch.tensor([reader.fed(text)])
    start = settings.get("decoder_start_token_id", settings.get("bos_token_id"))
    target = torch.tensor([[start, *model.target_tokenizer.encode(said["answer"])]])
    cross = views["cross-attention"]
    assert next(iter(views)) == "cross-attention" and len(cross["queries"]) == target.shape[1] and len(cross["keys"]) == source.shape[1]
    near(cross, patterns(model, "decoder.*.*.cross_attn.pattern", encoder=source, decoder=target))
    head = model.net.heads["lm"]
    expected = shares(model.net, lambda s: head(s["decoder"].x)[0, 0, target[0, 1]], encoder=source, decoder=target)
    for tower, part in expected.items():
        _, ahead, against = weights(views[f"gradient-x-input-{tower}"])[0, :, 0]
        assert np.abs(ahead - against - part).max() <= 2 / LEVELS, tower
    with torch.no_grad():
        likeliest = head(model.net(encoder=source, decoder=target)["decoder"].x)[0].argmax(-1)
    assert views["lens"]["cells"][0][-1] == model.target_tokenizer.tokens(likeliest.tolist())


def test_a_translation_run(seen):
    translation_views(seen, "translation", "a b c d")


@pytest.fixture
def bart(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
    words = ["<s>", "<pad>", "</s>", "<unk>", *"the door is open red pear".split()]
    backend = Tokenizer(vocabularies.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))
    sizes = dict(d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
    sizes |= dict(encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=12, vocab_size=len(words))
    torch.manual_seed(0)
    net = transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes))
    for name, p in net.named_parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1 and "norm" in name), std=0.3)
    net.save_pretrained(tmp_path)
    return tmp_path


def test_a_released_encoder_decoder(seen, refused, bart):
    translation_views(seen, bart, "the red door")
    out = bart / "b.html"
    refused(["inspect", bart, "the door", "--out", out, "--answer", "the " * 12], "the answer is 13 tokens long, this model takes 12")
    refused(["inspect", bart, "the " * 13, "--out", out], "12")


@pytest.mark.parametrize("kind", ["attention", "rollout", "flow", "gradient", "lens"])
def test_each_kind_is_a_picture_too(plait, runs, tmp_path, kind):
    pytest.importorskip("matplotlib")
    code, _, err = plait("inspect", runs("language-model"), "the door", "--answer", "is", "--kind", kind, "--out", tmp_path / "a.png")
    assert code == 0, err
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("name", "text", "more", "phrases"),
    [
        ("classify", "  ", [], ["empty input"]),
        ("classify", "a pear", ["--answer", "fruit"], ["--answer: is for models that answer in words of their own"]),
        ("classify", "a pear", ["--kind", "cross"], ["--kind cross: of this model and input there are encoder, rollout, gradient or lens"]),
        ("classify", "a pear", ["--kind", "attentoin"], ["--kind attentoin: choose encoder, "]),
        ("classify", "a pear", ["--kind", "lens", "--query", "2"], ["--query 2: this model has queries 0 to 1"]),
        ("classify", "a pear", ["--layer", "2", "--head", "-1"], ["--layer 2: this model has layers 0 to 1", "--head -1: "]),
        ("classify", "pear " * 70, ["--kind", "flow"], ["would take minutes, at most 64"]),
        ("classify", "a pear", ["--threshold", "0.5"], ["--threshold: is for models that detect"]),
        ("pairs", "a pear", [], ["give two texts with a tab between"]),
        ("answer", "a pear", [], ['{"question": "...", "context": "..."}']),
        ("embed", "a pear", ["--kind", "lens"], ["--kind lens: of this model and input there are encoder, rollout or gradient"]),
        ("masked-lm", "the door", ["--kind", "gradient"], ["--kind gradient: of this model and input there are"]),
        ("translation", "a b " * 400, [], ["800"]),
    ],
)  # fmt: skip
def test_what_is_refused(refused, runs, tmp_path, name, text, more, phrases):
    folder = runs(name)
    refused(["inspect", folder, text, "--out", tmp_path / "a.html", *more], *phrases)
    assert not (tmp_path / "a.html").exists()
