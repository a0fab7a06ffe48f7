"""`plait convert`: what it refuses and why, and that nothing half written is left, whatever stops it."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as kinds

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")

SIZES = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=20)


@pytest.fixture
def llama(tmp_path) -> Path:
    """A tiny checkpoint, with a tokenizer of a kind that no GGUF has."""
    folder = tmp_path / "llama"
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained(folder)
    Tokenizer(kinds.WordLevel({"a": 0, "</s>": 1, "[UNK]": 2}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def bert(tmp_path) -> Path:
    transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_what_was_written_is_said_as_json(plait, llama, tmp_path):
    code, out, err = plait("convert", llama, "--to", "hf", "--out", tmp_path / "new" / "b", "--dtype", "bf16")
    assert code == 0, err
    assert json.loads(out) == {"out": str(tmp_path / "new" / "b"), "format": "hf", "tensors": 21, "types": {"bfloat16": 21}}
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "b", dtype="auto")
    assert again.dtype == torch.bfloat16
    if os.name == "posix":
        os.umask(mask := os.umask(0))
        assert (tmp_path / "new" / "b").stat().st_mode & 0o777 == 0o777 & ~mask  # not a temporary folder's, which only its owner sees


def test_words_that_make_no_sense(refused, llama, tmp_path):
    out = tmp_path / "b"
    refused(["convert", llama, "--to", "tflite", "--out", out], "--to tflite: expected hf, gguf, onnx, plait or peft")
    refused(["convert", llama], "--to", "--out")
    refused(["convert", llama, "--to", "hf", "--out", out, "--dtype", "q8_0"], "--dtype q8_0: written with --to hf are f32, f16 or bf16")
    refused(["convert", llama, "--to", "onnx", "--out", out, "--dtype", "f16"], "--dtype f16: written with --to onnx are f32")
    assert not out.exists()


def test_a_place_that_is_taken(refused, llama, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    for to in ("hf", "gguf", "onnx"):
        refused(["convert", llama, "--to", to, "--out", tmp_path / "full"], "full: is not empty: choose another place")
    refused(["convert", llama, "--to", "hf", "--out", llama], "is not empty")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_model_that_is_not_there_or_broken(refused, llama, tmp_path):
    how = ["--to", "hf", "--out", tmp_path / "b"]
    refused(["convert", tmp_path / "none", *how], "none: there is no such folder")
    refused(["convert", tmp_path / "none.gguf", *how], "none.gguf")
    refused(["convert", "minilmm", *how], "minilmm", "minilm")
    (llama / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes()[:-10])
    refused(["convert", llama, *how], "model.safetensors")
    assert not (tmp_path / "b").exists()


def test_what_a_format_cannot_say_is_said_whole(refused, llama, bert, made, tmp_path):
    out = tmp_path / "new" / "b"
    config = json.loads((llama / "config.json").read_text())
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    (llama / "config.json").write_text(json.dumps({**config, "rope_scaling": yarn, "hidden_act": "gelu"}))
    refused(["convert", llama, "--to", "gguf", "--out", out], "a GGUF cannot say this model", "yarn", "activation=", "WordLevel")
    refused(["convert", bert, "--to", "gguf", "--out", out], "GGUF is written for models of the page llama", "--to hf writes this one")
    for to in ("hf", "gguf"):
        refused(["convert", made, "--to", to, "--out", out], "is a run of the model", "no released format has names for its tensors")
    assert not out.parent.exists() or not list(out.parent.iterdir())


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_disk_that_takes_only_part_of_it(to, processes, llama, tmp_path):
    """A real write that the system ends half way: no file may grow beyond 4 kB."""
    if to == "gguf":
        (llama / "tokenizer.json").unlink()
        byte_pairs(llama)
    limit = "import resource; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    processes.start("convert", llama, "--to", to, "--out", tmp_path / "new" / "b", before="import signal; " + limit)
    code, out, err = processes.ended()
    assert code == 2 and out == "" and "Traceback" not in err and "cannot be written: File too large" in err
    assert not list((tmp_path / "new").iterdir())


def byte_pairs(folder: Path) -> None:
    """A byte-level tokenizer, which a GGUF can hold; nothing was learnt."""
    backend = Tokenizer(kinds.BPE({"a": 0, "b": 1, "</s>": 2}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')


def test_ctrl_c_while_it_writes(processes, llama, tmp_path):
    mark = tmp_path / "writing"
    held = f"""
import time
from plait.weights import safetensors_writer
whole = safetensors_writer.write_safetensors
def write(path, tensors):
    whole(path, tensors)
    open({str(mark)!r}, "w").close()
    time.sleep(60)
safetensors_writer.write_safetensors = write
"""
    pid = processes.start("convert", llama, "--to", "hf", "--out", tmp_path / "new" / "b", before=held)
    until = time.monotonic() + 20
    while not mark.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert list((tmp_path / "new").iterdir())  # something is there to be removed
    os.kill(pid, signal.SIGINT)
    code, out, err = processes.ended()
    assert code == 130 and out == "" and "Traceback" not in err
    assert not list((tmp_path / "new").iterdir())
