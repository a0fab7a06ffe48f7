"""ONNX files against the model they were made of, run by onnxruntime: other sizes than the example's, padding, an empty and a long past."""

import jaxtyping
import numpy as np
import pytest
import torch

from plait import models
from plait.core.stream import Stream
from plait.errors import InputError
from plait.hub.onnx_export import export_onnx
from plait.weights.onnx_file import OnnxFile

pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install onnxscript onnx)")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install onnxruntime)")


@pytest.fixture(autouse=True)
def unchecked():
    """The exporter's sizes are symbols, which the types checked in tests do not know."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


SMALL = dict(d_model=16, n_heads=4, n_layers=2, d_ff=24)


def made(arch, **config):
    torch.manual_seed(5)
    net = models.build(arch, config)
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    return net.eval()


def ask(path, **inputs):
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    arrays = {name: x.numpy() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    return dict(zip(names, session.run(None, arrays), strict=True))


def near(found, wanted, real=None):
    wanted = wanted.detach().numpy()
    if real is not None:
        found, wanted = found[real.numpy()], wanted[real.numpy()]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def past_of(path, rows):
    """An empty past, of the shapes that the file asks for."""
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    asked = [i for i in session.get_inputs() if i.name.startswith("past_key_values.")]
    return {i.name: np.zeros((rows, i.shape[1], 0, i.shape[3]), np.float32) for i in asked}


def next_past(found):
    return {name.replace("present", "past_key_values"): x for name, x in found.items() if name.startswith("present")}


@torch.no_grad()
def test_an_encoder(tmp_path):
    net = made("bert", vocab_size=20, max_length=200, **SMALL)
    (path,) = export_onnx(net, tmp_path)
    head = next(iter(net.heads.values()))
    for rows, length in ((1, 1), (3, 150)):  # one entry; and so many that our own products take their other way
        ids, types = torch.randint(20, (rows, length)), torch.randint(2, (rows, length))
        real = torch.arange(length)[None] < torch.tensor([length, 9, 1])[:rows, None]
        found = ask(path, input_ids=ids, attention_mask=real.long(), token_type_ids=types)
        near(found["logits"], head(net.run("encoder", Stream(ids, real=real, types=types)).x), real)


@torch.no_grad()
def test_a_causal_model_continues_over_its_past(tmp_path):
    net = made("llama", vocab_size=20, n_kv_heads=2, **SMALL)
    (path,) = export_onnx(net, tmp_path)
    ids = torch.randint(20, (3, 9))
    real = torch.ones(3, 9, dtype=torch.bool)
    real[0, :2] = False  # padding on the left, as batches of prompts have it
    wanted = net.heads["lm"](net.run("decoder", Stream(ids, real=real)).x)
    past = past_of(path, 3)
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        found = ask(path, input_ids=ids[:, start:stop], attention_mask=real[:, :stop].long(), **past)
        near(found["logits"], wanted[:, start:stop], real[:, start:stop])
        past = next_past(found)
    assert {x.shape for x in past.values()} == {(3, 2, 9, 4)} and len(past) == 4


@torch.no_grad()
def test_an_encoder_and_its_decoder(tmp_path):
    net = made("vaswani", source_vocab=20, target_vocab=17, tie="none", positions="opennmt", output_bias=True, **SMALL)
    encoder, decoder = export_onnx(net, tmp_path)
    source, target = torch.randint(20, (2, 7)), torch.randint(17, (2, 6))
    real = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    wanted = net.heads["lm"](net(encoder=Stream(source, real=real), decoder=target)["decoder"].x)
    hidden = ask(encoder, input_ids=source, attention_mask=real.long())["last_hidden_state"]
    past = past_of(decoder, 2)
    for start, stop in ((0, 1), (1, 2), (2, 6)):
        inputs = {"encoder_hidden_states": hidden, "encoder_attention_mask": real.long(), **past}
        found = ask(decoder, input_ids=target[:, start:stop], **inputs)
        near(found["logits"], wanted[:, start:stop])
        past = next_past(found)
    # Its weights are there for our own reader, those that the exporter left as they are under their names.
    stored = OnnxFile(decoder)
    name = next(name for name in stored.shapes() if name.endswith("decoder.embed.tokens.weight"))
    assert torch.equal(stored.read(name), net.get_parameter("decoder.embed.tokens.weight"))


def test_what_has_no_such_form_is_refused(tmp_path):
    with pytest.raises(InputError, match="float32"):
        export_onnx(made("llama", vocab_size=20, **SMALL).half(), tmp_path)
