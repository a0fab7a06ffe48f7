"""`python -m plait.bench.lines`: how much of ours a text passes through on its way through GPT-2 to the next token.

A checkpoint folder (config.json, safetensors, byte-level BPE) is made with our own export, then opened and asked as users do. Counted
are whole files of Plait, all their lines, as soon as one function of theirs ran; beside them the lines that did run, in opening the
folder and in answering. Everything was imported before, so what runs at import alone is not counted.
"""

import json
import os
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = f"{Path(__file__).parents[1]}{os.sep}"
TEXT = "The door is open."


def made(folder: Path) -> Path:
    """A GPT-2 of two layers with a tokenizer that was trained on one sentence, as another program would have saved it."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from plait.models import gpt2
    from plait.weights import config as keys
    from plait.weights.rules import export

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    end = "<|endoftext|>"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end, "bos_token": end}), encoding="utf-8")
    config = gpt2.Config(**{**gpt2.PRESETS["tiny"], "vocab_size": tokenizer.get_vocab_size()})
    torch.manual_seed(0)
    save_file(export(gpt2.build(config), gpt2.RULES), folder / "model.safetensors")
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    (folder / "config.json").write_text(json.dumps({**keys.write(gpt2.KEYS, vars(config)), **ids}), encoding="utf-8")
    return folder


class Watched:
    """Which lines of which files of ours run between `with` and its end, on this thread."""

    def __init__(self):
        self.ran: dict[str, set[int]] = defaultdict(set)  # by file

    def __enter__(self) -> "Watched":
        self.before = sys.gettrace()
        sys.settrace(self.called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def called(self, frame: FrameType, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(ROOT) or name == __file__:
            return None
        lines = self.ran[name.removeprefix(ROOT)]

        def stepped(frame: FrameType, event: str, arg: Any) -> Any:
            lines.add(frame.f_lineno)
            return stepped

        return stepped


@dataclass(frozen=True)
class File:
    """One that the way passes through: how long it is, and how many of its lines ran in opening and in answering."""

    name: str
    lines: int
    opening: int
    answering: int


def passed() -> list[File]:
    """The files of ours between a folder and a text on one side and the next token on the other."""
    import plait

    with tempfile.TemporaryDirectory() as scratch:
        folder = str(made(Path(scratch)))
        plait.load(folder).generate(TEXT, max_new_tokens=1)
        with Watched() as opening:
            model = plait.load(folder)
        with Watched() as answering:
            model.generate(TEXT, max_new_tokens=1)
    return [
        File(name, len(Path(ROOT, name).read_text(encoding="utf-8").splitlines()), len(opening.ran[name]), len(answering.ran[name]))
        for name in sorted({*opening.ran, *answering.ran})
    ]


def main() -> None:
    found = passed()
    print(" lines  opening  answering")
    for f in found:
        print(f"{f.lines:6,}  {f.opening:7,}  {f.answering:9,}  {f.name}")
    print(f"{sum(f.lines for f in found):6,}  {sum(f.opening for f in found):7,}  {sum(f.answering for f in found):9,}  {len(found)} files")
    for what in ("opening", "answering"):
        some = [f.lines for f in found if getattr(f, what)]
        print(f"{sum(some):6,}  in the {len(some)} files of {what}")


if __name__ == "__main__":
    main()
