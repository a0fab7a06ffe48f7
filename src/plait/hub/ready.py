"""A released model that is ready to use: what all of them answer to, whatever their task."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plait.core.model import Model
from plait.errors import InputError
from plait.media.preparing import Preparation
from plait.text.loaded import LoadedTokenizer
from plait.weights.certificate import Certificate

Row = tuple[str, dict[str, Any]]  # an answer as the command line prints it: a line, and the JSON object that says more


@dataclass(frozen=True)
class Parts:
    """What a checkpoint was opened to. `config` is its config.json or a GGUF's metadata, `generation` its generation_config.json.

    `tokenizers` are those of source and target, one object where the checkpoint has one, and None where it has none: such a model
    works on ids. `max_length` is the number of tokens that a tower may be given, None where nothing limits it. `settings` is the
    `Config` of the model's page.
    """

    folder: Path
    net: Model
    tokenizers: tuple[LoadedTokenizer, LoadedTokenizer] | None
    certificate: Certificate
    max_length: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    settings: Any = None
    preparation: Preparation | None = None  # of what takes pixels: what is done to a picture first


class Ready:
    """A released model, ready: called with a text or a list of texts it does its task.

    A task adds `__call__` and `rows(texts, first=1, **options)`, which is what the command line asks: its options are the model's.
    """

    task = ""
    few_rows: int | None = None  # of its products while it generates; None where they have many rows, as an encoder's do

    def __init__(self, parts: Parts):
        self.parts, self.net = parts, parts.net
        self.certificate, self.config, self.max_length = parts.certificate, parts.config, parts.max_length

    @property
    def tokenizer(self) -> LoadedTokenizer:
        """Of what the model reads first."""
        return self._tokenizers[0]

    @property
    def target_tokenizer(self) -> LoadedTokenizer:
        """Of what the model writes."""
        return self._tokenizers[1]

    @property
    def _tokenizers(self) -> tuple[LoadedTokenizer, LoadedTokenizer]:
        if self.parts.tokenizers is None:
            raise InputError(f"{self.parts.folder}: has no tokenizer, so this model takes ids, not texts; add the tokenizer's files")
        return self.parts.tokenizers

    def told(self) -> str:
        """The certificate: what the load proved of the weights, and how texts are prepared, as the checkpoint says."""
        pairs = [("task", self.task), *self.preparation().items()]
        return "\n".join([str(self.certificate), *(f"  {name:8} {text}" for name, text in pairs)])

    def preparation(self) -> dict[str, str]:
        """Name -> what is done to an input before the model sees it."""
        limit = "any number of tokens" if self.max_length is None else f"at most {self.max_length:,} tokens"
        if self.parts.tokenizers is None:
            return {"input": f"ids, there is no tokenizer; {limit}"}
        tokenizer, target = self.parts.tokenizers
        kind = f"{type(tokenizer.backend.model).__name__}, {tokenizer.vocab_size:,} tokens"
        before, after = (" ".join(tokenizer.tokens(ids)) for ids in tokenizer.added())
        found = {"input": f"{kind}; {' '.join(filter(None, [before, 'text', after]))}; {limit}"}
        if target is not tokenizer:
            found["output"] = f"{type(target.backend.model).__name__}, {target.vocab_size:,} tokens"
        found["special"] = ", ".join(f"{role} {token}" for role, token in tokenizer.special.roles.items()) or "none named"
        if tokenizer.chat_template:
            found["chat"] = f"a template of {len(tokenizer.chat_template.splitlines())} lines"
        return found

    def encode(self, text: str) -> list[int]:
        """Ids as the model reads them, special tokens included; "[MASK]" and the like in the text stand for those tokens."""
        return self.tokenizer.wrap(self.tokenizer.encode_marked(text))

    def decode(self, ids: Sequence[int]) -> str:
        return self.target_tokenizer.decode(ids)

    @torch.inference_mode()
    def logits(self, *ids: Sequence[int] | Sequence[Sequence[int]]) -> Any:
        """Raw scores [B, L, V] of token-id lists, one argument a tower (hidden vectors where the model has no scores of tokens).

        Lists of several lengths give one array a row. Each row goes alone, so that its scores do not depend on the others.
        """
        towers = [rows_of(given) for given in ids]
        if len(towers) != len(self.net.towers) or len({len(rows) for rows in towers}) != 1:
            raise InputError(f"logits takes ids for {' and '.join(self.net.towers)}, as many rows each")
        faults = [f"row {i}: {fault}" for i, row in enumerate(zip(*towers, strict=True)) for fault in self._row_faults(row)]
        if faults:
            raise InputError("these rows cannot be read", faults)
        device, found = next(self.net.parameters()).device, []
        for row in zip(*towers, strict=True):
            inputs = {name: torch.tensor([one], device=device) for name, one in zip(self.net.towers, row, strict=True)}
            found.append(self.scores(self.net(**inputs)[self.net.towers[-1]].x)[0].float().cpu().numpy())
        return np.stack(found) if len({scores.shape for scores in found}) == 1 else found

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the model says of hidden vectors [B, L, D]: the scores of its head."""
        return next(iter(self.net.heads.values()))(hidden)

    def _row_faults(self, row: Sequence[Sequence[int]]) -> list[str]:
        return row_faults(self.net, row, self.max_length)


def row_faults(net: Model, row: Sequence[Sequence[int]], max_length: int | None) -> list[str]:
    """What is wrong with the ids of a row, one list a tower from the first one on."""
    faults = [f"{len(ids)} ids, this model takes {max_length}" for ids in row if max_length and len(ids) > max_length]
    faults += ["no ids; give at least one" for ids in row if not len(ids)]
    for tower, ids in zip(net.towers, row, strict=False):
        known = vocabulary(net, tower)
        odd = [id for id in ids if not isinstance(id, Integral) or not 0 <= id < known]  # type: ignore[operator]
        faults += [f"{odd[0]!r} is no id of the {tower}, which knows 0 to {known - 1}"] if odd else []
    return faults


def texts_given(given: Any) -> tuple[list[str], bool]:
    """(texts, whether it was one text alone) of a text or of several."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or (odd := [text for text in texts if not isinstance(text, str)]):
        odd = given if not isinstance(texts, Sequence) else odd[0]
        raise InputError(f"{str(odd)[:60]!r} is a {type(odd).__name__}: expected a text, or a list of texts")
    return list(texts), isinstance(given, str)


def rows_of(ids: Any) -> list[list[int]]:
    """One list of ids, or several (arrays too), as several."""
    try:
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        return [list(row) for row in ids] if ids and not isinstance(ids[0], Integral) else [ids]
    except TypeError:
        raise InputError(f"{str(ids)[:60]}: expected a list of ids, or a list of such lists") from None


def vocabulary(net: Model, tower: str) -> int:
    """How many ids a tower knows."""
    embed: Any = net.get_submodule(f"{tower}.embed")
    return embed.tokens.size[0]  # which another tower may own, so that it is no submodule
