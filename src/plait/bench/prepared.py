"""The files that the contestants of `plait bench generate` read: one set of weights in every library's own format."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from plait.bench.generate_cases import SHAPES
from plait.bench.libraries import need
from plait.bench.operations import Shape
from plait.bench.peers import ctranslate2_folder, marian
from plait.errors import InputError
from plait.hub import load, place
from plait.hub.checkpoints import gguf_of
from plait.hub.writing import convert

TEXT = (
    "The harbour was built in 1874 of granite from the quarries above the town. In winter the boats lie there under tarpaulins, and the "
    "boys who mend the nets sit on the wall and count the gulls. On the last Sunday of March the mayor opens the season with a speech "
    "that nobody hears, because of the wind; then the boats go out, one after another, and the oldest goes first."
)
ASKED = "Repeat the following text word for word, twice, and write nothing else:\n\n"


class Prepared:
    """Of one model; each file is made when it is first asked for, in a folder that is there."""

    def __init__(self, model: str, scratch: str, shape: dict[str, Any]):
        """`model`: one of `SHAPES`, random weights of `shape`, or what `plait.load` takes."""
        self.model, self.scratch, self.shape = model, Path(scratch), shape
        self.folder = self.scratch / "plait" if model in SHAPES else place(model)
        if not self.folder.exists():
            torch.manual_seed(0)
            {"gpt2": random_gpt2, "marian": random_marian}[model](self.folder, shape)

    def file(self, kind: str) -> str:
        """Where the weights lie as a contestant reads them."""
        out, released = self.scratch / kind.replace(" ", "-"), gguf_of(self.folder)
        library, _, dtype = kind.partition(" ")
        if kind == "plait" or (library == "hf" and released is None):
            return str(self.folder)
        if library == "gguf":
            out = out.with_suffix(".gguf")
        if dtype == "released":
            if released is None:
                raise InputError(f"{self.folder}: is no GGUF that was released")
            return str(released)
        if out.exists():
            return str(out)
        if library == "ctranslate2" and self.model == "marian":
            peer = need("transformers").MarianMTModel.from_pretrained(self.folder)
            ctranslate2_folder(peer, out, None if dtype == "float32" else dtype)
        elif library == "ctranslate2":
            made = need("ctranslate2.converters").TransformersConverter(self.file("hf"))
            made.convert(str(out), quantization=None if dtype == "float32" else dtype)
        elif library == "gguf" and self.model == "gpt2":
            from plait.bench.gpt2_gguf import write

            write(self.folder, out, dtype)
        else:
            convert(self.folder, library, out, dtype or None)
        return str(out)

    def inputs(self, rows: int, prompt: int, copies: bool, ends: list[int]) -> dict[str, Any]:
        """`rows` prompts, and texts for log-probabilities: one of each length in `ends` (a translator's are pairs, of one length).

        Random ids where the weights are; else those of a text, which with `copies` is asked for again.
        """
        if self.model in SHAPES:
            ids = np.random.default_rng(1).integers(10, self.shape.get("source_vocab", self.shape.get("vocab_size", 50257)) - 1, 2**14)
        elif copies:
            ids = np.array(load(self.folder).chat_ids([{"role": "user", "content": ASKED + TEXT}]))
            rows, prompt = 1, len(ids)
        else:
            ids = np.array(load(self.folder).encode(TEXT))
        if self.model == "marian":
            pairs = ids[: 2 * len(ends) * ends[0]].reshape(-1, 2, ends[0]).tolist()
            return {"rows": prompts(ids, rows, prompt), "texts": pairs}
        return {"rows": prompts(ids, rows, prompt), "texts": [[ids[:n].tolist()] for n in ends]}


def prompts(ids: Any, rows: int, length: int) -> list[list[int]]:
    return ids[: rows * length].reshape(rows, length).tolist()


def random_marian(folder: Path, shape: dict[str, Any]) -> None:
    s = Shape(**shape)
    peer = marian(s, pad=s.source_vocab - 1, start=s.source_vocab - 1, end=0, dropout=0.0)
    peer.generation_config.bad_words_ids = None
    peer.save_pretrained(folder)


def random_gpt2(folder: Path, shape: dict[str, Any]) -> None:
    """GPT-2 with random weights, as its paper begins, and a vocabulary of the words "0", "1" ... that converters may read."""
    transformers, tokenizers = need("transformers"), need("tokenizers")
    last = shape.get("vocab_size", 50257) - 1
    config = transformers.GPT2Config(**shape, bos_token_id=last, eos_token_id=last)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(config.vocab_size)}, unk_token="0"))
    ends = dict.fromkeys(("bos_token", "eos_token"), str(last))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0", **ends).save_pretrained(folder)
