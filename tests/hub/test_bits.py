"""Models opened with fewer bits a weight, and encoders whose embeddings are narrower than their vectors."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import plait as library
from plait import cli
from plait.errors import InputError
from plait.models import llama
from plait.weights import config as keys
from plait.weights import rules

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    settings = llama.Config(vocab_size=97, d_model=64, n_heads=4, n_layers=2, d_ff=128, max_length=32)
    net = llama.build(settings)
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.1)
    (tmp_path / "config.json").write_text(json.dumps(keys.write(llama.KEYS, asdict(settings))))
    save_file(rules.export(net, llama.RULES), tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(("bits", "error"), [(8, 0.0078), (4, 0.0754)])
def test_fewer_bits_give_nearly_the_same_scores_in_less_memory(folder, bits, error):
    """`error` is that of one product with normal numbers (docs/log.md); those of 2 x 7 matrices, the embedding and the output add up."""
    whole, small = library.load(folder), library.load(folder, bits=bits)
    ids = list(range(3, 30))
    wanted, found = whole.logits(ids)[0], small.logits(ids)[0]
    assert 0 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < error * 16**0.5
    held = sum(t.nbytes for t in small.net.state_dict().values()) / sum(t.nbytes for t in whole.net.state_dict().values())
    assert held < (0.36 if bits == 8 else 0.26)
    assert len(small.generate(ids, max_new_tokens=3, min_new_tokens=3)) == 3


def test_other_widths_are_refused(folder, capsys):
    with pytest.raises(InputError, match="bits=5"):
        library.load(folder, bits=5)
    assert cli.main(["run", str(folder), "x", "--bits", "5"]) == 2
    assert "bits=5" in capsys.readouterr().err


def test_vectors_are_as_wide_as_the_models_not_as_its_embeddings(tmp_path):
    """ALBERT's embeddings are narrower than what its layers make."""
    sizes = dict(vocab_size=9, embedding_size=8, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32)
    torch.manual_seed(0)
    peer = transformers.AlbertModel(transformers.AlbertConfig(**sizes, max_position_embeddings=16)).eval()
    peer.save_pretrained(tmp_path)
    words = ["<pad>", "<unk>", "[CLS]", "[SEP]", "a", "b"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = library.load(tmp_path)
    found = model(["a b", "b"])
    for text, vector in zip(("a b", "b"), found, strict=True):
        with torch.no_grad():
            np.testing.assert_allclose(vector, peer(torch.tensor([model.encode(text)])).last_hidden_state.mean(1)[0], atol=1e-5)
    assert model([]).shape == (0, 24)
