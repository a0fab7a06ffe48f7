"""Models in fewer bits: written and loaded again, and GGUF's blocks used as they are, against the `gguf` package's own numbers."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import plait as library
from plait import cli
from plait.core.quantised import Quantised, quantised
from plait.errors import InputError
from plait.hub.checkpoints import open_net
from plait.hub.writing import convert
from plait.weights import gguf as reader
from plait.weights.gguf import GgufFile
from plait.weights.gguf_writer import Stored, write_gguf

KINDS = ("bert", "albert", "t5", "bart", "marian", "gpt2", "llama", "mistral")


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Kernels have tests of their own (tests/core/test_quantised.py): here torch does the work."""
    monkeypatch.setattr("plait.core.quantised._native", lambda: None)


def matrices(net) -> dict[str, Quantised]:
    return {name.removesuffix(".matrix"): part for name, part in net.named_modules() if isinstance(part, Quantised)}


# ---- written and loaded again ----


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_written_in_fewer_bits_is_the_one_loaded_so(peer_of, kind, bits, tmp_path):
    peer_of(kind).save_pretrained(tmp_path / "a")
    done = convert(tmp_path / "a", "plait", tmp_path / "b", bits=bits)
    wanted, found = library.load(tmp_path / "a", bits=bits), library.load(tmp_path / "b")
    assert type(found) is type(wanted) and found.max_length == wanted.max_length
    state = wanted.net.state_dict()
    assert list(found.net.state_dict()) == list(state)
    assert all(torch.equal(t, state[name]) and t.dtype == state[name].dtype for name, t in found.net.state_dict().items())
    rows = [[3, 4, 5, 6]] * len(found.net.towers)
    assert np.array_equal(found.logits(*rows), wanted.logits(*rows))
    assert done["types"][f"int{bits}"] == len(matrices(found.net)) > 0
    assert f"{done['types'][f'int{bits}']} int{bits}" in found.told()
    assert found.certificate.numbers == sum(p.numel() for p in open_net(tmp_path / "a")[0].parameters())
    config = {name: x for name, x in json.loads((tmp_path / "b" / "config.json").read_text()).items() if name != "quantization_config"}
    assert config == {**json.loads((tmp_path / "a" / "config.json").read_text()), "dtype": "float32"}


def test_what_a_config_cannot_say_is_kept(peer_of, tmp_path):
    """A bare BERT saved without its pooler, which only the names of its file tell; in bfloat16, which becomes float32."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=31)
    transformers.BertModel(config, add_pooling_layer=False).bfloat16().save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", "plait", tmp_path / "b", bits=8)
    wanted, found = library.load(tmp_path / "a", bits=8), library.load(tmp_path / "b")
    assert np.array_equal(found.logits([3, 4, 5]), wanted.logits([3, 4, 5]))
    with pytest.raises(OSError, match="no file named"):  # instead of drawing the weights that it does not find
        transformers.BertModel.from_pretrained(tmp_path / "b")


@pytest.mark.parametrize("bits", [8, 4])
def test_a_run_written_in_fewer_bits_is_the_one_loaded_so(run, bits, tmp_path):
    (run / "memory.json.gz").write_bytes(b"kept")
    convert(run, "plait", tmp_path / "b", bits=bits)
    wanted, found = library.load(run, bits=bits), library.load(tmp_path / "b")
    assert np.array_equal(found.logits([4, 5, 6], [1, 4, 5]), wanted.logits([4, 5, 6], [1, 4, 5]))
    assert found(["a b c", "h"]) == wanted(["a b c", "h"])
    assert {m.bits for m in matrices(found.net).values()} == {bits} and (tmp_path / "b" / "memory.json.gz").read_bytes() == b"kept"


def test_the_verbs_write_check_and_run_it(llama, tmp_path, capsys):
    out = tmp_path / "small"
    assert cli.main(["convert", str(llama), "--to", "plait", "--bits", "4", "--out", str(out)]) == 0
    assert cli.main(["check", str(out)]) == 0
    assert "16 int4" in capsys.readouterr().out
    assert (out / "quantised.safetensors").stat().st_size < 0.5 * (llama / "model.safetensors").stat().st_size
    assert cli.main(["run", str(out), "the cat", "--max-new-tokens", "3"]) == 0
    said = capsys.readouterr().out
    assert cli.main(["run", str(llama), "the cat", "--max-new-tokens", "3", "--bits", "4"]) == 0
    assert capsys.readouterr().out == said


def test_what_makes_no_sense_is_refused_and_nothing_left(llama, run, tmp_path):
    convert(llama, "plait", tmp_path / "small", bits=8)
    convert(run, "plait", tmp_path / "small-run", bits=8)
    cases = [
        ("llama", dict(to="plait"), "goes with --to plait"),
        ("llama", dict(to="hf", bits=8), "goes with --to plait"),
        ("llama", dict(to="plait", bits=5), "cannot be quantised so"),
        ("llama", dict(to="plait", bits=8, dtype="f16"), "--dtype f16"),
        ("small", dict(to="hf"), "the model that it was made of"),
        ("small", dict(to="plait", bits=4), "have 8 bits already"),
        ("small-run", dict(to="onnx"), "the model that it was made of"),
        ("small-run", dict(to="plait", bits=4), "have 8 bits already"),
    ]
    for name, how, said in cases:
        with pytest.raises(InputError, match=said):
            convert(tmp_path / name, out=tmp_path / "new" / "b", **how)
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())
    assert np.array_equal(*(library.load(tmp_path / "small", bits=bits).logits([3, 4]) for bits in (None, 8)))


def test_a_damaged_folder_is_refused_with_all_faults(llama, run, tmp_path):
    for place, prefix, file in ((llama, "decoder.blocks.0.ffn", "quantised"), (run, "encoder.blocks.0.ffn", "model")):
        small = tmp_path / f"small-{place.name}"
        convert(place, "plait", small, bits=8)
        whole = load_file(small / f"{file}.safetensors")
        norm = next(name for name, t in whole.items() if name.startswith("decoder.norm") and t.is_floating_point())
        broken = {
            **whole,
            f"{prefix}.up_proj.matrix.codes": whole[f"{prefix}.up_proj.matrix.codes"][:1].clone(),
            f"{prefix}.down_proj.matrix.size": torch.tensor([2**40, 2**40]),
            norm: whole[norm].long(),
            "odd": torch.zeros(1),
        }
        save_file(broken, small / f"{file}.safetensors")
        with pytest.raises(InputError, match=rf"{file}\.safetensors: these weights are not of this model") as caught:
            library.load(small)
        assert {fault.split(":")[0] for fault in caught.value.faults} == {f"{prefix}.up_proj", f"{prefix}.down_proj", norm, "odd"}
        (small / f"{file}.safetensors").write_bytes((small / f"{file}.safetensors").read_bytes()[:-9])
        with pytest.raises(InputError, match=rf"{file}\.safetensors"):
            library.load(small)


@pytest.mark.parametrize("said", [None, [], "plait", {"quant_method": "plait"}, {"quant_method": "plait", "settings": 3}])
def test_a_config_that_was_changed_is_refused(llama, tmp_path, said):
    convert(llama, "plait", tmp_path / "b", bits=8)
    path = tmp_path / "b" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": said}))
    with pytest.raises(InputError):
        library.load(tmp_path / "b")
    wrong = {"quant_method": "plait", "settings": {"d_model": "wide", "depth": 3}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": wrong}))
    with pytest.raises(InputError, match="no model can be built"):
        library.load(tmp_path / "b")


# ---- blocks of a GGUF ----

TYPES = {
    "ffn_up": "Q4_0",
    "ffn_gate": "Q4_1",
    "attn_q": "Q4_1",
    "attn_k": "Q4_0",
    "attn_v": "Q8_0",
    "attn_output": "F16",
    "token_embd": "Q8_0",
}


@pytest.fixture
def mixed(llama, tmp_path):
    """(a GGUF of several types, by the `gguf` package; its tensors' numbers by that package) with q and k in the order of pairs."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    convert(llama, "gguf", tmp_path / "plain.gguf")
    source = GgufFile(tmp_path / "plain.gguf")
    stored, numbers = {}, {}
    for name in source.shapes():
        t, kind = source.read(name), next((kind for part, kind in TYPES.items() if f"{part}.weight" in name), "F32")
        of_type = gguf.GGMLQuantizationType[kind]
        data = gguf.quants.quantize(t.numpy(), of_type)
        numbers[name] = torch.from_numpy(gguf.quants.dequantize(data, of_type)).float()
        stored[name] = Stored(kind, tuple(t.shape), torch.from_numpy(data.view(np.uint8).reshape(-1)))
    write_gguf(tmp_path / "mixed.gguf", source.metadata, stored, source.key_types)
    return tmp_path / "mixed.gguf", numbers


@pytest.mark.parametrize("bits", [8, 4])
def test_blocks_are_used_as_they_are_and_others_rounded(mixed, bits):
    path, numbers = mixed
    net, certificate, *_ = open_net(path, bits)
    found = matrices(net)
    for theirs, (ours,) in certificate.claimed.items():
        name = ours.removesuffix(".weight")
        if name not in found:
            continue
        values, wanted, kind = found[name].values(torch.float64).float(), numbers[theirs], GgufFile(path).types[theirs]
        if "attn_q" in theirs or "attn_k" in theirs:  # pairs to halves, rows of each head: what the reference does when it reads a GGUF
            heads = 4 if "attn_q" in theirs else 2
            wanted = wanted.view(heads, -1, 2, wanted.shape[1]).swapaxes(1, 2).reshape(wanted.shape)
        if kind in ("Q4_0", "Q4_1") or (kind == "Q8_0" and bits == 8):
            torch.testing.assert_close(values, wanted, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(values, quantised(wanted, bits).values(torch.float64).float())
        assert found[name].bits == (4 if kind.startswith("Q4") else bits)
    assert len(found) == 16 - (net.heads["lm"] is None)


def test_blocks_that_are_kept_are_never_unpacked(mixed, monkeypatch):
    path, _ = mixed
    called = []
    whole = reader.unpacked
    monkeypatch.setattr(reader, "unpacked", lambda data, kind: called.append(kind) or whole(data, kind))
    open_net(path, 8)
    assert not called
    open_net(path, 4)
    assert set(called) == {8}  # Q8_0's number


def test_a_gguf_is_written_in_its_own_blocks(mixed, tmp_path):
    path, _ = mixed
    convert(path, "plait", tmp_path / "b", bits=8)
    model = library.load(tmp_path / "b")
    assert np.array_equal(model.logits([3, 4, 5]), library.load(path, bits=8).logits([3, 4, 5]))
    assert model("the cat", max_new_tokens=3) == library.load(path, bits=8)("the cat", max_new_tokens=3)


def test_a_matrix_that_cannot_be_held_is_named(llama, tmp_path):
    state = load_file(llama / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**state, name: state[name] * 1e9}, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError) as caught:
        library.load(llama, bits=8)
    assert caught.value.faults[0].startswith("decoder.blocks.1.ffn.up_proj: values up to")
    shutil.rmtree(llama)
