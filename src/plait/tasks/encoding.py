"""What encoders are put to: one vector a text, and the likeliest words behind a mask."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plait.core.model import Model
from plait.core.stream import Stream
from plait.errors import InputError
from plait.text.special import LoadedTokenizer


class Encoder:
    """A model of one tower `encoder` with its tokenizer: texts to padded batches of streams, texts of like length together."""

    def __init__(self, net: Model, tokenizer: LoadedTokenizer, max_length: int, batch_tokens: int = 4096):
        self.net, self.tokenizer, self.max_length, self.batch_tokens = net, tokenizer, max_length, batch_tokens

    def ids(self, text: str, marked: bool = False) -> list[int]:
        """Ids with what the model wants around a text; `marked` lets "[MASK]" in it stand for the mask."""
        return self.tokenizer.wrap(self.tokenizer.encode_marked(text) if marked else self.tokenizer.encode(text))

    def batches(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Stream]]:
        """(numbers of the rows, their stream) with at most `batch_tokens` ids, padding counted."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        at = 0
        while at < len(order):
            here = [order[at]]
            while at + len(here) < len(order) and len(rows[order[at + len(here)]]) * (len(here) + 1) <= self.batch_tokens:
                here.append(order[at + len(here)])
            at += len(here)
            width = max(1, max(len(rows[i]) for i in here))
            ids = torch.full((len(here), width), self.tokenizer.pad_id)
            for row, i in zip(ids, here, strict=True):
                row[: len(rows[i])] = torch.tensor(rows[i], dtype=torch.long)
            real = torch.arange(width) < torch.tensor([[len(rows[i])] for i in here])
            yield here, Stream(ids, real=None if bool(real.all()) else real)

    def hidden(self, stream: Stream) -> Tensor:
        """[B, L, D]"""
        return self.net(encoder=stream)["encoder"].x


@dataclass(frozen=True)
class Pooling:
    """How a text's vectors become one (Reimers & Gurevych 2019, section 3), as the checkpoint says it was trained."""

    kind: str = "mean"  # mean, cls or max
    normalise: bool = False
    max_length: int | None = None  # tokens of a text that are read, special ones counted; the rest is left out, as in training


class Embedder(Encoder):
    """One float32 vector a text."""

    def __init__(self, net: Model, tokenizer: LoadedTokenizer, max_length: int, pooling: Pooling):
        super().__init__(net, tokenizer, min(max_length, pooling.max_length or max_length))
        self.pooling = pooling

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[N, D]. A text longer than the model was trained on is cut where its training cut it."""
        rows = [self.cut(self.tokenizer.encode(text)) for text in texts]
        vectors = np.zeros((len(rows), self.net.get_submodule("encoder.embed.tokens").weight.shape[1]), dtype=np.float32)  # type: ignore[index]
        for here, stream in self.batches(rows):
            vectors[here] = self.pooled(self.hidden(stream), stream.real).float().numpy()
        return vectors

    def cut(self, ids: list[int]) -> list[int]:
        room = self.max_length - len(self.tokenizer.wrap([]))
        return self.tokenizer.wrap(ids[: max(room, 0)])

    def pooled(self, hidden: Tensor, real: Tensor | None) -> Tensor:
        if self.pooling.kind == "cls":
            out = hidden[:, 0]
        elif real is None:
            out = hidden.mean(1) if self.pooling.kind == "mean" else hidden.amax(1)
        elif self.pooling.kind == "mean":
            out = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp_min(1)
        else:
            out = hidden.masked_fill(~real[..., None], float("-inf")).amax(1)
        return torch.nn.functional.normalize(out, dim=-1) if self.pooling.normalise else out


@dataclass(frozen=True)
class Filled:
    """One candidate for one mask: the token, its probability, and the text with it in place."""

    token: str
    probability: float
    text: str


class MaskFiller(Encoder):
    """The likeliest tokens behind each mask of a text (Devlin et al. 2019, section 3.1)."""

    @property
    def mask(self) -> str:
        return self.tokenizer.special.roles["mask"]

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], n_best: int = 5, first: int = 1) -> list[list[list[Filled]]]:
        """For each text and each mask in it the `n_best` candidates, likeliest first; each mask is filled by itself.

        InputError names every text without a mask, or too long, by its number; `first` is that of the first one.
        """
        mask, faults, rows = self.tokenizer.ids["mask"], [], []
        for i, text in enumerate(texts):
            ids = self.ids(text, marked=True)
            if mask not in ids:
                faults.append(f"input {first + i}: has no {self.mask} to be filled: {text[:60]!r}")
            elif len(ids) > self.max_length:
                faults.append(f"input {first + i}: is {len(ids)} tokens long, this model takes {self.max_length}: shorten it")
            rows.append(ids)
        if faults:
            raise InputError("some inputs cannot be filled", faults)
        found: list[list[list[Filled]]] = [[] for _ in rows]
        for here, stream in self.batches(rows):
            hidden = self.hidden(stream)
            for i, vectors in zip(here, hidden, strict=True):
                places = [at for at, id in enumerate(rows[i]) if id == mask]
                chances, ids = self.net.heads["mlm"](vectors[places]).softmax(-1).topk(n_best)
                found[i] = [
                    [self.filled(texts[i], k, int(id), float(p)) for p, id in zip(row_p, row_ids, strict=True)]
                    for k, (row_p, row_ids) in enumerate(zip(chances, ids, strict=True))
                ]
        return found

    def filled(self, text: str, k: int, id: int, chance: float) -> Filled:
        token = self.tokenizer.decode([id]).strip() or self.tokenizer.tokens([id])[0]
        parts = text.split(self.mask)
        left = self.mask.join(parts[: k + 1])
        joined = left.rstrip() + token.removeprefix("##") if token.startswith("##") else left + token
        return Filled(token, chance, joined + self.mask.join(parts[k + 1 :]))
