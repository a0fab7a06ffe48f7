"""Encoders that are ready: one vector a text, and the likeliest words behind a mask."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from plait.errors import InputError, choices
from plait.hub.ready import Parts, Ready, Row
from plait.tasks.encoding import Embedder, MaskFiller, Pooling
from plait.text.special import read_object


class EmbeddingModel(Ready):
    """Texts to vectors: a float32 array [N, D]."""

    task = "embed"

    def __init__(self, parts: Parts):
        super().__init__(parts)
        self.embed = Embedder(self.net, self.tokenizer, self.max_length or 512, pooling_of(parts.folder))

    def __call__(self, text: str | Sequence[str]) -> Any:
        return self.embed([text])[0] if isinstance(text, str) else self.embed(text)

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def rows(self, texts: Sequence[str], first: int = 1) -> list[Row]:
        """(line, JSON) of each text, for the command line."""
        vectors = self.embed(texts)
        return [(" ".join(f"{x:.6g}" for x in v), {"embedding": [float(x) for x in v]}) for v in vectors]


class MaskModel(Ready):
    """Fills masks: the likeliest text, or with `n_best` candidates for each mask."""

    task = "fill-mask"

    def __init__(self, parts: Parts):
        super().__init__(parts)
        self.fill = MaskFiller(self.net, self.tokenizer, self.max_length or 512)

    def __call__(self, text: str | Sequence[str], n_best: int = 1) -> Any:
        found = self.fill([text] if isinstance(text, str) else text, n_best)
        return found[0] if isinstance(text, str) else found

    def rows(self, texts: Sequence[str], first: int = 1, n_best: int = 1) -> list[Row]:
        """(line, JSON) of each text, for the command line."""
        rows = []
        for found in self.fill(texts, max(n_best, 1), first):
            lines = [f"{f.token}\t{f.probability:.4f}\t{f.text}" for row in found for f in row]
            rows.append(("\n".join(lines), {"masks": [[vars(f) for f in row] for row in found]}))
        return rows


ENCODERS: dict[str, type[Ready]] = {"mlm": MaskModel, "pool": EmbeddingModel, "none": EmbeddingModel}  # by the name of the head


def pooling_of(folder: Path) -> Pooling:
    """As modules.json of a sentence-embedding model says; without one, the mean."""
    if not (folder / "modules.json").exists():
        return Pooling()
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
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
    path = folder / "sentence_bert_config.json"
    length = read_object(path, "the object of a sentence_bert_config.json").get("max_seq_length") if path.exists() else None
    return Pooling(names[chosen[0]], "Normalize" in kinds, length)
