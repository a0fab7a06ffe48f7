"""Released checkpoints opened from their folders: against the reference implementation on the same files, and files that are wrong."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import plait as library
from plait import cli
from plait.data.packages import find
from plait.errors import InputError
from plait.hub.checkpoints import open_net
from plait.hub.zoo import ZOO, folder_of
from plait.models import bert
from plait.weights import rules

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

TEXTS = ["The door is open.", "", "a", "Ünïcödé — 漢字 and\ttabs", "long " * 400, "The door is closed."]
REACTIONS = ["CC(=O)O.OCC>>CC(=O)[MASK]CC", "[MASK]1ccccc1>>Cl[MASK]"]


def real(name):
    if find(ZOO[name].package) is None:
        pytest.skip(f"{ZOO[name].package.wheel} is not in the cache (`plait run {name} ...` brings it)")
    return folder_of(name)


@pytest.fixture
def folder(tmp_path):
    """A tiny BERT for filling masks, as the reference implementation saves it, with a word-piece vocabulary."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "door", "is", "open", "##ed", "."]
    torch.manual_seed(0)
    sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, max_position_embeddings=16)
    net = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=len(words), **sizes))
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    net.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return tmp_path / "bert"


@pytest.mark.parametrize("n", [1, 3])
def test_masks_are_filled_as_the_reference_does(folder, n):
    peer = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    model = library.load(folder)
    texts = ["the [MASK] is open.", "[MASK] [MASK] opened", "the door is [MASK]"]
    for text, found in zip(texts, model(texts, n_best=n), strict=True):
        ids = tokenizer(text, return_tensors="pt")
        assert model.encode(text) == ids["input_ids"][0].tolist()
        with torch.no_grad():
            chances = peer(**ids).logits[0].softmax(-1)[ids["input_ids"][0] == tokenizer.mask_token_id]
        assert len(found) == len(chances)
        for row, wanted in zip(found, chances, strict=True):
            values, best = wanted.topk(n)
            assert [f.token for f in row] == tokenizer.convert_ids_to_tokens(best.tolist())
            np.testing.assert_allclose([f.probability for f in row], values, rtol=1e-4)


def test_logits_are_the_reference(folder):
    peer = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    rows = [[2, 5, 6, 3], [2, 7, 3]]
    found = library.load(folder).logits(rows)
    for row, scores in zip(rows, found, strict=True):
        with torch.no_grad():
            np.testing.assert_allclose(scores, peer(torch.tensor([row])).logits[0], atol=5e-5)


def test_minilm_is_the_reference_on_the_same_file():
    """Mean of the last hidden vectors over real tokens, of length one, at most 256 tokens: as its own files say it was trained."""
    folder = real("minilm")
    peer, tokenizer = transformers.AutoModel.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)
    model = library.load(folder)
    found = model(TEXTS)
    np.testing.assert_allclose(model(TEXTS[0]), found[0], atol=2e-6)  # alone nothing is padded
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), 384)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.no_grad():
            hidden = peer(**ids).last_hidden_state.mean(1)
        np.testing.assert_allclose(vector, torch.nn.functional.normalize(hidden)[0], atol=2e-6)
    assert found[0] @ found[5] > 0.6 > found[0] @ found[3]
    assert "pooling  mean, of length one, of the first 256 tokens" in model.told()


def test_rxnmapper_is_the_reference_on_the_same_file():
    folder = real("rxnmapper")
    peer, model = transformers.AlbertForMaskedLM.from_pretrained(folder).eval(), library.load(folder)
    for text, found in zip(REACTIONS, model(REACTIONS, n_best=4), strict=True):
        ids = torch.tensor([model.encode(text)])
        with torch.no_grad():
            chances = peer(ids).logits[0].softmax(-1)[ids[0] == model.tokenizer.ids["mask"]]
        for row, wanted in zip(found, chances, strict=True):
            values, best = wanted.topk(4)
            assert [f.token for f in row] == model.tokenizer.tokens(best.tolist())
            np.testing.assert_allclose([f.probability for f in row], values, rtol=1e-4)
    assert model(REACTIONS[0])[0][0].token == "O"  # an ester's oxygen


def test_smollm2_is_the_reference_with_the_same_numbers(smollm2):
    model, peer = smollm2
    for text in ("The capital of France is", "def add(a, b):\n    return", "\u00dcber"):
        ids = model.encode(text)
        with torch.no_grad():
            wanted = peer(torch.tensor([ids])).logits[0]
        np.testing.assert_allclose(model.logits(ids)[0], wanted, atol=5e-4)
        greedy = peer.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=2)[0, len(ids) :]
        assert model.generate(ids, max_new_tokens=8) == [id for id in greedy.tolist() if id != 2]
    assert model.generate("The capital of France is", max_new_tokens=2) == " Paris."
    with pytest.raises(InputError, match="room for 8192"):
        model.generate("a", max_new_tokens=9000)


def test_names_of_the_first_releases_and_a_missing_pooler(folder, tmp_path):
    """The first files of BERT call a norm's weight and bias gamma and beta; a bare model may have been saved without its pooler."""
    peer = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    peer.save_pretrained(tmp_path / "bare")
    state = load_file(tmp_path / "bare" / "model.safetensors")
    first = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for name, t in state.items()
    }
    assert set(first) != set(state)
    save_file(first, tmp_path / "bare" / "model.safetensors")
    net, certificate, settings, _ = open_net(tmp_path / "bare")
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        np.testing.assert_allclose(net(encoder=ids)["encoder"].x, peer(ids).last_hidden_state, atol=5e-5)
    again = rules.export(net, bert.rules(settings), certificate)
    assert list(again) == list(certificate.order) and all(torch.equal(again[name], first[name]) for name in first)


def config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (lambda f: (f / "config.json").write_text('{"model_type": "bert"'), "config.json"),
        (lambda f: config(f, model_type="mystery"), "mystery"),
        (lambda f: config(f, hidden_act="swiglu_odd"), "swiglu_odd"),
        (lambda f: config(f, position_embedding_type="relative_key"), "relative_key"),
        (lambda f: config(f, surprising_switch=3), "surprising_switch"),
        (lambda f: config(f, hidden_size=48), "encoder.blocks.0"),
        (lambda f: config(f, num_hidden_layers=3), "encoder.layer.2"),
        (lambda f: config(f, num_attention_heads=5), "n_heads=5"),
        (lambda f: config(f, num_attention_heads=0), "no model can be built of these settings"),
        (lambda f: config(f, max_position_embeddings=10**30), "no model can be built of these settings"),
        (lambda f: config(f, hidden_size=-24), "hidden_size=-24"),
        (lambda f: config(f, model_type=["bert"]), "config.json"),
        (lambda f: config(f, architectures=5), "architectures=5"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "model.safetensors"),
        (lambda f: (f / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(50))])), "tokens"),
    ],
)
def test_wrong_files_end_with_one_message(folder, breaks, says, capsys):
    breaks(folder)
    with pytest.raises(InputError) as error:
        library.load(folder)
    assert says in str(error.value)
    assert cli.main(["run", str(folder), "the [MASK]"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([2, 11], "row 0: 11 is no id of the encoder, which knows 0 to 10"),
        ([[2], [-1]], "row 1: -1 is no id"),
        ("ab", "'a' is no id"),
        ([[2, 1.5]], "1.5 is no id"),
        ([], "no ids"),
        (3.5, "3.5: expected a list of ids"),
        ([2] * 17, "17 ids, this model takes 16"),
    ],
)
def test_ids_that_a_model_does_not_know(folder, ids, says):
    with pytest.raises(InputError) as error:
        library.load(folder).logits(ids)
    assert says in str(error.value)


def test_a_device_that_is_not_there(folder):
    with pytest.raises(InputError, match="device='gpu9' cannot be used"):
        library.load(folder, device="gpu9")


def test_numbers_of_candidates(folder):
    model = library.load(folder)
    assert len(model("the [MASK]", n_best=99)[0]) == 11
    with pytest.raises(InputError, match="n_best=0: give a whole number from 1"):
        model("the [MASK]", n_best=0)
    (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text().replace("[MASK]", "[GAP]"))
    with pytest.raises(InputError, match="mask_token"):
        library.load(folder)("the [MASK]")


def test_a_folder_without_a_tokenizer_works_on_ids(folder, capsys):
    wanted = library.load(folder).logits([2, 5, 6, 3])
    (folder / "vocab.txt").unlink()
    np.testing.assert_array_equal(library.load(folder).logits([2, 5, 6, 3]), wanted)
    assert cli.main(["run", str(folder), "the [MASK]"]) == 2
    assert "has no tokenizer" in capsys.readouterr().err
    assert cli.main(["check", str(folder)]) == 0
    assert "ids, there is no tokenizer" in capsys.readouterr().out


def test_the_command_line(folder, capsys):
    assert cli.main(["check", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "tensors fill" in said and "cls.predictions.decoder.weight" in said
    assert cli.main(["run", str(folder), "the [MASK] is open", "--n-best", "5", "--json"]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert row["input"] == "the [MASK] is open" and len(row["masks"][0]) == 5
    assert cli.main(["run", str(folder), "no mask", "the [MASK]", "the " * 20 + "[MASK]"]) == 2
    told = capsys.readouterr().err
    assert "input 1: has no [MASK]" in told and "input 3: is" in told and "takes 16" in told


def test_a_checkpoint_keeps_nothing_of_a_pickle_that_wants_to_run_code(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (folder / "model.safetensors").unlink()
    torch.save({"bert.embeddings.word_embeddings.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError):
        library.load(folder)
    assert not (tmp_path / "ran").exists()
