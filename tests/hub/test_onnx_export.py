"""ONNX files, run by onnxruntime, against the model they were made of: other sizes than the example's, padding, pasts of any length."""

import json
import sys

import jaxtyping
import numpy as np
import pytest
import torch

import plait as library
from plait.errors import InputError
from plait.hub.writing import convert
from plait.weights.onnx_file import OnnxFile

pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install 'plait[onnx]')")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install onnxruntime)")


@pytest.fixture(autouse=True)
def unchecked():
    """The exporter's sizes are symbols, which the types checked in tests do not know."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Session:
    """A file of ONNX: called with arrays or tensors by name, its outputs by name."""

    def __init__(self, path):
        self.inner = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.inner.get_outputs()]

    def __call__(self, **inputs) -> dict[str, np.ndarray]:
        arrays = {name: x.numpy() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
        return dict(zip(self.names, self.inner.run(None, arrays), strict=True))

    def past(self, rows: int) -> dict[str, np.ndarray]:
        """An empty past, of the shapes that the file asks for."""
        asked = [i for i in self.inner.get_inputs() if i.name.startswith("past_key_values.")]
        return {i.name: np.zeros((rows, i.shape[1], 0, i.shape[3]), np.float32) for i in asked}


def next_past(found):
    return {name.replace("present", "past_key_values"): x for name, x in found.items() if name.startswith("present")}


def near(found, wanted):
    np.testing.assert_allclose(found, wanted.detach().numpy() if isinstance(wanted, torch.Tensor) else wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_encoder(peer_of, words, tmp_path):
    peer = peer_of("bert", max_position_embeddings=200, vocab_size=300, num_hidden_layers=1)
    peer.save_pretrained(tmp_path / "a")
    words(tmp_path / "a")
    made = convert(tmp_path / "a", "onnx", tmp_path / "b")
    assert made["types"] == {"float32": made["tensors"]}
    assert sorted(x.name for x in (tmp_path / "b").glob("*.json")) == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == json.loads((tmp_path / "b" / "config.json").read_text())
    session = Session(tmp_path / "b" / "model.onnx")
    for rows, length in ((1, 1), (3, 150)):  # one entry; and so many that our own products take their other way
        ids, types = torch.randint(300, (rows, length)), torch.randint(2, (rows, length))
        real = torch.arange(length)[None] < torch.tensor([length, 9, 1])[:rows, None]
        inputs = dict(input_ids=ids, attention_mask=real.long(), token_type_ids=types)
        near(session(**inputs)["logits"][real.numpy()], peer(**inputs).logits[real])


@torch.no_grad()
def test_a_causal_model_continues_over_its_past(peer_of, tmp_path):
    peer = peer_of("llama", num_hidden_layers=1).half()
    peer.save_pretrained(tmp_path / "a")
    with pytest.raises(InputError, match="float32"):
        convert(tmp_path / "a", "onnx", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    convert(tmp_path / "a", "onnx", tmp_path / "b", "f32")
    session = Session(tmp_path / "b" / "model.onnx")
    ids, real = torch.randint(300, (3, 9)), torch.ones(3, 9, dtype=torch.bool)
    real[0, :2] = False  # padding on the left, as batches of prompts have it
    peer = type(peer).from_pretrained(tmp_path / "a", dtype=torch.float32)  # not peer.float(): its rates of rotary positions were rounded
    wanted = peer(ids, attention_mask=real.long(), position_ids=(real.cumsum(1) - 1).clamp_min(0)).logits
    past = session.past(3)
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        found = session(input_ids=ids[:, start:stop], attention_mask=real[:, :stop].long(), **past)
        here = real[:, start:stop]
        near(found["logits"][here.numpy()], wanted[:, start:stop][here])
        past = next_past(found)
    assert {x.shape for x in past.values()} == {(3, 2, 9, 16)} and len(past) == 2


def test_a_run_of_our_own_is_an_encoder_and_its_decoder(run, tmp_path):
    convert(run, "onnx", tmp_path / "b")
    assert (tmp_path / "b" / "target_tokenizer.json").read_bytes() == (run / "target_tokenizer.json").read_bytes()
    encoder, decoder = (Session(tmp_path / "b" / f"{which}_model.onnx") for which in ("encoder", "decoder"))
    source, target, lengths = torch.randint(12, (2, 7)), torch.randint(12, (2, 6)), [7, 4]
    real = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    model = library.load(run)
    wanted = [model.logits([ids[:length].tolist()], [other.tolist()])[0] for ids, other, length in zip(source, target, lengths)]
    hidden = encoder(input_ids=source, attention_mask=real.long())["last_hidden_state"]
    past = decoder.past(2)
    for start, stop in ((0, 1), (1, 2), (2, 6)):
        inputs = {"encoder_hidden_states": hidden, "encoder_attention_mask": real.long(), **past}
        found = decoder(input_ids=target[:, start:stop], **inputs)
        near(found["logits"], np.stack(wanted)[:, start:stop])
        past = next_past(found)
    # Its weights are there for our own reader, those that the exporter left as they are under their names.
    stored = OnnxFile(tmp_path / "b" / "decoder_model.onnx")
    (name,) = (name for name in stored.shapes() if name.endswith("decoder.embed.tokens.weight"))
    assert torch.equal(stored.read(name), model.net.get_parameter("decoder.embed.tokens.weight"))


def test_without_its_packages_nothing_is_made(llama, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"pip install 'plait\[onnx\]'"):
        convert(llama, "onnx", tmp_path / "out" / "b")
    assert not list((tmp_path / "out").iterdir())
