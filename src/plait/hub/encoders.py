"""Encoders that are ready: vectors of texts, and the likeliest words behind a mask."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plait.errors import InputError, choices
from plait.hub.labels import AnswerModel, ClassifyModel, TagModel
from plait.hub.ready import Parts, Ready, Row, texts_given
from plait.tasks.encoding import Embedder, MaskFiller, Pooling, nearest
from plait.text.special import read_object


class EmbeddingModel(Ready):
    """Texts to vectors: a float32 array [N, D]."""

    task = "embed"

    def __init__(self, parts: Parts):
        super().__init__(parts)
        self.pooling = pooling_of(parts.folder)
        self._held: tuple[tuple[str, ...], np.ndarray] = ((), np.zeros((0, 0), dtype=np.float32))  # what was compared with last

    @cached_property
    def embed(self) -> Embedder:
        return Embedder(self.net, self.tokenizer, self.max_length, self.pooling)

    def __call__(self, text: str | Sequence[str]) -> Any:
        texts, one = texts_given(text)
        return self.embed(texts)[0] if one else self.embed(texts)

    def similar(self, queries: str | Sequence[str], texts: Sequence[str], n_best: int = 5) -> Any:
        """The `n_best` of `texts` for each query, nearest by cosine first; vectors of the same texts are made once."""
        if isinstance(queries, str):
            return self.similar([queries], texts, n_best)[0]
        if not texts:
            raise InputError("there are no texts to compare with; give at least one")
        if self._held[0] != tuple(texts):
            self._held = (tuple(texts), self.embed(texts))
        return nearest(self.embed(queries), self._held[1], texts, n_best)

    def preparation(self) -> dict[str, str]:
        length = f", of the first {self.pooling.max_length} tokens" if self.pooling.max_length else ""
        return {**super().preparation(), "pooling": self.pooling.kind + ", of length one" * self.pooling.normalise + length}

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def rows(self, texts: Sequence[str], first: int = 1, similar: Sequence[str] | None = None, n_best: int | None = None) -> list[Row]:
        """(line, JSON) of each text, for the command line: its vector, or which of the texts `similar` are nearest."""
        if similar is not None:
            ranked = self.similar(texts, similar, n_best or 5)
            return [("\n".join(f"{f.score:.4f}\t{f.text}" for f in one), {"similar": [vars(f) for f in one]}) for one in ranked]
        if n_best is not None:
            raise InputError(f"n_best {n_best}: a text has one vector; n_best goes with texts to compare it with (--similar FILE)")
        return [(" ".join(f"{x:.6g}" for x in v), {"embedding": [float(x) for x in v]}) for v in self.embed(texts)]


class MaskModel(Ready):
    """Fills masks: the likeliest text, or with `n_best` candidates for each mask."""

    task = "fill-mask"

    @cached_property
    def fill(self) -> MaskFiller:
        return MaskFiller(self.net, self.tokenizer, self.max_length)

    def __call__(self, text: str | Sequence[str], n_best: int = 1) -> Any:
        texts, one = texts_given(text)
        found = self.fill(texts, n_best)
        return found[0] if one else found

    def rows(self, texts: Sequence[str], first: int = 1, n_best: int = 1) -> list[Row]:
        """(line, JSON) of each text, for the command line."""
        rows = []
        for found in self.fill(texts, max(n_best, 1), first):
            lines = [f"{f.token}\t{f.probability:.4f}\t{f.text}" for row in found for f in row]
            rows.append(("\n".join(lines), {"masks": [[vars(f) for f in row] for row in found]}))
        return rows


ENCODERS: dict[str, type[Ready]] = {  # by the name of the head
    "mlm": MaskModel,
    "pool": EmbeddingModel,
    "none": EmbeddingModel,
    "classify": ClassifyModel,
    "tag": TagModel,
    "answer": AnswerModel,
}


def pooling_of(folder: Path) -> Pooling:
    """As modules.json of a sentence-embedding model says; without one, the mean."""
    if not (folder / "modules.json").exists():
        return Pooling()
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        if not isinstance(modules, list):
            raise TypeError(f"a JSON {type(modules).__name__}")
        kinds = {str(m["type"]).rpartition(".")[2]: str(m["path"]) for m in modules}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'modules.json'}: is not the list of parts it should be: {error}") from None
    if unknown := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
        raise InputError(f"{folder / 'modules.json'}: {', '.join(unknown)} after the model is not known here")
    said = (
        read_object(folder / kinds["Pooling"] / "config.json", "how the vectors of a text are pooled")
        if "Pooling" in kinds
        else {"pooling_mode_mean_tokens": True}
    )
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
    chosen = [key for key, value in said.items() if key.startswith("pooling_mode_") and value]
    if len(chosen) != 1 or chosen[0] not in names:
        raise InputError(f"{folder / kinds.get('Pooling', '')}: pools by {chosen or 'nothing'}; known is one of {choices(names)}")
    path, about = folder / "sentence_bert_config.json", folder / "config_sentence_transformers.json"
    settings = read_object(path, f"the object of a {path.name}") if path.exists() else {}
    prompts = read_object(about, f"the object of a {about.name}") if about.exists() else {}
    length = settings.get("max_seq_length")
    faults = [] if length is None or (type(length) is int and length > 0) else [f"{path}: max_seq_length={length!r} is no number of tokens"]
    faults += [f"{path}: do_lower_case=true is not built"] if settings.get("do_lower_case") else []
    if prompts.get("default_prompt_name"):
        faults.append(f"{about}: default_prompt_name={prompts['default_prompt_name']!r} puts a prompt before each text, which is not built")
    if faults:
        raise InputError(f"{folder}: its vectors cannot be made as it says", faults)
    return Pooling(names[chosen[0]], "Normalize" in kinds, length)
