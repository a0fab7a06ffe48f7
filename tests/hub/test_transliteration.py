"""A trained CTranslate2 model, Arabic to Latin letters, and tiny ones: scores and answers against ctranslate2 itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import plait as library
from plait.core.stream import Stream
from plait.errors import InputError
from plait.generate.search import mean, search
from plait.hub.checkpoints import open_parts
from plait.weights.opening import open_source

ctranslate2 = pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed (pip install 'plait[bench]')")

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "aren-transliteration"
NAMES = "محمد عمر فاطمة خالد القاهرة بغداد دمشق الرياض عبدالله سعيد يوسف".split()


@pytest.fixture(scope="module")
def opened():
    if not SHARED.is_dir():
        pytest.skip("the transliteration model is not beside the repository")
    return open_parts(SHARED), ctranslate2.Translator(str(SHARED), intra_threads=1)


def log_probs(net, source, target):
    """Of each id of the target and the end (2), behind the start (1)."""
    with torch.no_grad():
        hidden = net(encoder=torch.tensor([source]), decoder=torch.tensor([[1, *target]]))["decoder"].x
    return net.heads["lm"](hidden)[0].log_softmax(-1)[range(len(target) + 1), [*target, 2]].detach()


def test_scores_are_the_reference(opened):
    parts, peer = opened
    source, target = parts.tokenizers
    for name, answer in zip(
        NAMES, ["mahmad", "omar", "fatima", "khalid", "alqahra", "x", "", "ar.riyad", "abd'allah", "said", "y"], strict=False
    ):
        wanted = peer.score_batch([list(name)], [list(answer)])[0].log_probs
        np.testing.assert_allclose(log_probs(parts.net, source.encode(name), target.encode(answer)), wanted, atol=2e-5)


@pytest.mark.parametrize("beams", [1, 4])
def test_answers_are_the_reference(opened, beams):
    parts, peer = opened
    source, target = parts.tokenizers
    how = dict(start=1, end=2, max_length=256, beams=beams, n_best=beams, penalty=mean(), early_stopping=True)
    found = [search(parts.net, Stream(torch.tensor([source.encode(name)])), **how)[0] for name in NAMES]
    wanted = peer.translate_batch([list(name) for name in NAMES], beam_size=beams, num_hypotheses=beams, return_scores=True)
    for ours, theirs in zip(found, wanted, strict=True):
        assert [target.decode(h.ids) for h in ours] == ["".join(tokens) for tokens in theirs.hypotheses]
        np.testing.assert_allclose([h.score for h in ours], theirs.scores, atol=5e-4)  # its softmax in decoding is an approximation


def test_it_is_opened_and_asked_as_any_model(opened):
    model = library.load(SHARED)
    wanted = opened[1].translate_batch([list(name) for name in NAMES])  # two beams, its default and so ours
    assert model(NAMES) == ["".join(found.hypotheses[0]) for found in wanted]


def tiny(folder, pre_norm, tied, quantisation=None, **more):
    """A model of two layers a side with random weights, saved by the package itself."""
    specs, rng, d = ctranslate2.specs, np.random.default_rng(3), 16
    spec = specs.TransformerSpec.from_config((2, 1), 4, pre_norm=pre_norm, **more)
    sizes = {"embeddings_0": 9, "embeddings": 9, "projection": 9}

    def fill(layer, name, value):
        *_, owner, kind = name.split("/")
        if value is not None and kind != "bias":
            return
        fused = {("self_attention", "linear_0"): 3 * d, ("attention", "linear_1"): 2 * d, ("ffn", "linear_0"): 40}
        rows = sizes.get(owner, fused.get(tuple(name.split("/")[-3:-1]), d))
        columns = 40 if name.split("/")[-3:-1] == ["ffn", "linear_1"] else d
        shape = (rows, columns) if kind == "weight" else (rows,)
        setattr(layer, kind, rng.normal(float(kind == "gamma"), 0.4, shape).astype("f"))

    spec._visit(fill)
    if tied:
        spec.decoder.projection.weight = spec.decoder.embeddings.weight
    for register in (spec.register_source_vocabulary, spec.register_target_vocabulary):
        register(["<unk>", "<s>", "</s>", *"abcdef"])
    spec.validate()
    spec.optimize(quantisation)
    folder.mkdir(exist_ok=True)
    spec.save(str(folder))
    return folder


@pytest.mark.parametrize(("pre_norm", "tied"), [(True, False), (False, True)])
def test_what_the_package_writes_today(tmp_path, pre_norm, tied):
    parts = open_parts(tiny(tmp_path, pre_norm, tied))
    assert parts.tokenizers is not None and len(parts.certificate.ties) == tied
    peer = ctranslate2.Translator(str(tmp_path), compute_type="float32", intra_threads=1)
    for source, target in (("abcdef", "fab"), ("a", "bbbbbbbbbb")):
        wanted = peer.score_batch([list(source)], [list(target)])[0].log_probs
        found = log_probs(parts.net, parts.tokenizers[0].encode(source), parts.tokenizers[1].encode(target))
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_quantised_weights_fill_the_model(tmp_path):
    parts = open_parts(tiny(tmp_path, True, True, "int8"))
    whole = open_source(tiny(tmp_path / "whole", True, True))
    stored = parts.net.get_parameter("decoder.blocks.0.ffn.up_proj.weight")
    wanted = whole.read("decoder/layer_0/ffn/linear_0/weight")
    assert 0 < (stored - wanted).abs().max() <= wanted.abs().max() / 254 * 1.01


@pytest.mark.parametrize(
    ("more", "said"),
    [(dict(activation=ctranslate2.specs.Activation.GELU), "activation=3"), (dict(layernorm_embedding=True), "layernorm_embedding")],
)
def test_what_is_not_built_is_refused(tmp_path, more, said):
    with pytest.raises(InputError, match=said):
        open_parts(tiny(tmp_path, True, False, **more))


def test_files_that_do_not_belong_together(tmp_path):
    folder = tiny(tmp_path, True, False)
    (folder / "shared_vocabulary.json").write_text(json.dumps(["<unk>", "<s>", "</s>"]))
    with pytest.raises(InputError, match=r"3 tokens.* 9 rows"):
        open_parts(folder)
    (folder / "shared_vocabulary.json").unlink()
    with pytest.raises(InputError, match="no vocabulary"):
        open_parts(folder)
