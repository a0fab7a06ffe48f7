"""A released model tuned from the command line, handed to PEFT and taken back: the same numbers everywhere."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers import models as kinds
from tokenizers.pre_tokenizers import WhitespaceSplit

import plait as library

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install 'plait[bench]')")
peft = pytest.importorskip("peft", reason="peft is not installed (pip install 'plait[bench]')")

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

WORDS = "</s> [UNK] a b c d e f g h".split()
SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=len(WORDS))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    ends = dict(bos_token_id=0, eos_token_id=0, max_position_embeddings=64)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **ends)).save_pretrained(folder)
    tokenizer = Tokenizer(kinds.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "</s>", "unk_token": "[UNK]"}), "utf-8")
    return folder


@pytest.mark.parametrize(("method", "more"), [("lora", ["--targets", "*.q_proj", "*.down_proj"]), ("dora", []), ("ia3", [])])
def test_ours_theirs_and_ours_again(plait, llama, tmp_path, method, more):
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{' '.join('abcdefgh'[i % 8 :] + 'abcdefgh'[: i % 8])}\n" for i in range(64)), "utf-8")
    words = ["tune", llama, "--method", method, *more, "--data", texts, "--documents", "line", "--steps", 20, "--context", 16, "--quiet"]
    code, _, err = plait(*words, "--batch-tokens", 128, "--learning-rate", "0.02", "--evaluations", 2, "--out", tmp_path / "run")
    assert code == 0, err
    code, said, err = plait("convert", tmp_path / "run", "--to", "peft", "--out", tmp_path / "theirs")
    assert code == 0 and json.loads(said)["base"] == str(llama), err
    ids = [[2, 3, 4, 5, 6], [9, 8, 7, 2, 2]]
    ours = library.load(tmp_path / "run").logits(ids)
    model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(llama), str(tmp_path / "theirs")).eval()
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(ids)).logits.numpy()
    assert np.abs(ours - theirs).max() < 1e-5 < np.abs(library.load(llama).logits(ids) - theirs).max()
    assert np.abs(library.load(tmp_path / "theirs").logits(ids) - ours).max() < 1e-5


def test_what_peft_has_no_file_for(plait, refused, llama, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("a b c d\nb c d e\nc d e f\nd e f g\n" * 8, "utf-8")
    words = ["tune", llama, "--method", "houlsby", "--width", 4, "--data", texts, "--documents", "line", "--steps", 2, "--context", 16]
    code, _, err = plait(*words, "--quiet", "--out", tmp_path / "run")
    assert code == 0, err
    refused(["convert", tmp_path / "run", "--to", "peft", "--out", tmp_path / "theirs"], "houlsby: PEFT has no file for it")
    refused(["convert", llama, "--to", "peft", "--out", tmp_path / "theirs"], "is no finished run of `plait tune`")
    assert not (tmp_path / "theirs").exists()


def test_a_folder_whose_model_is_gone(refused, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    said = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "gone")}
    (folder / "adapter_config.json").write_text(json.dumps(said), "utf-8")
    refused(["run", folder, "a"], "stands on the model", "which cannot be opened")
