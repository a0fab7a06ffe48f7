"""A run folder as training leaves it, with weights that nobody trained."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from plait.models import build
from plait.text.training import train_tokenizer


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    for name, letters in (("tokenizer.json", "a b c d e f g h"), ("target_tokenizer.json", "A B C D E F G H")):
        train_tokenizer("words", [letters]).save(folder / name)
    config = dict(source_vocab=12, target_vocab=12, d_model=16, n_heads=2, n_layers=2, d_ff=32, dropout=0.1)
    torch.manual_seed(3)
    net = build("modern", config)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    save_file(net.state_dict(), folder / "model.safetensors")
    described = {"format": 1, "task": "translation", "arch": "modern", "config": config, "max_source": 20, "max_target": 9}
    (folder / "config.json").write_text(json.dumps(described))
    return folder
