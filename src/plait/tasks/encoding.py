"""What encoders are put to: texts to batches, one vector a text, and the likeliest words behind a mask."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plait.core.model import Model
from plait.core.stream import Stream
from plait.errors import InputError
from plait.text.loaded import LoadedTokenizer

NO_ROOM = "this model has no room for a text between its special tokens"


@dataclass(frozen=True)
class Pieces:
    """A text as ids, each with the characters [start, end) of the text that it stands for, and the word it is part of.

    The characters are those of the text as given, whatever the tokenizer made of it (lower case, no accents), without the blanks around
    a piece. Words are the tokenizer's own: what it splits a text into before it looks for pieces.
    """

    ids: list[int]
    spans: list[tuple[int, int]]
    words: list[int | None]


def pieces_of(tokenizer: LoadedTokenizer, text: str) -> Pieces:
    """The ids of `tokenizer.encode`, traced back to the text; InputError where a tokenizer does not say what they stand for."""
    ids = tokenizer.encode(text)
    found = tokenizer.backend.encode(text, add_special_tokens=False)
    spans, words = list[tuple[int, int]](), list[int | None]()
    for id, span, word in zip(found.ids, found.offsets, found.word_ids, strict=True):
        if len(spans) < len(ids) and ids[len(spans)] in (id, tokenizer.unk_id):
            spans.append(span)
            words.append(word)
        elif spans:  # one of several unknowns in a row, which the tokenizer gives as one
            spans[-1] = (spans[-1][0], span[1])
    if len(spans) != len(ids):
        raise InputError(f"this tokenizer does not say which characters its ids stand for: {text[:60]!r}")
    return Pieces(ids, [without_blanks(text, *span) for span in spans], words)


def pair_of(tokenizer: LoadedTokenizer, one: Sequence[int], two: Sequence[int]) -> tuple[list[int], int]:
    """(ids of two texts with what the model wants around them, how many of them belong to the first text)"""
    before, between, after = tokenizer.added(2)
    first = [*before, *one, *between]
    return [*first, *two, *after], len(first)


class Encoder:
    """A model of one tower `encoder` with its tokenizer: texts to padded batches of streams, texts of like length together."""

    def __init__(self, net: Model, tokenizer: LoadedTokenizer, max_length: int | None = None, batch_tokens: int = 4096):
        """`max_length` is the number of ids that the model may be given; without one, 512."""
        self.net, self.tokenizer, self.max_length, self.batch_tokens = net, tokenizer, max_length or 512, batch_tokens

    def ids(self, text: str, marked: bool = False) -> list[int]:
        """Ids with what the model wants around a text; `marked` lets "[MASK]" in it stand for the mask."""
        return self.tokenizer.wrap(self.tokenizer.encode_marked(text) if marked else self.tokenizer.encode(text))

    def pieces(self, text: str) -> Pieces:
        return pieces_of(self.tokenizer, text)

    def pair(self, one: Sequence[int], two: Sequence[int]) -> tuple[list[int], int]:
        return pair_of(self.tokenizer, one, two)

    def fault(self, number: int, ids: Sequence[int]) -> str | None:
        """What to tell of an input that is too long to be read whole."""
        if len(ids) <= self.max_length:
            return None
        return f"input {number}: is {len(ids)} tokens long, this model takes {self.max_length}: shorten it"

    def batches(self, rows: Sequence[Sequence[int]], firsts: Sequence[int] | None = None) -> Iterator[tuple[list[int], Stream]]:
        """(numbers of the rows, their stream) with at most `batch_tokens` ids, padding counted.

        `firsts` says of rows of two texts how many ids belong to the first: the others are of type 1, if the model knows types.
        """
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        device = next(self.net.parameters()).device
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
            types = None
            if firsts is not None and self._knows_types:
                types = (torch.arange(width) >= torch.tensor([[firsts[i]] for i in here])).long().to(device)
            yield here, Stream(ids.to(device), real=None if bool(real.all()) else real.to(device), types=types)

    @property
    def _knows_types(self) -> bool:  # RoBERTa has a table of types with one row, DistilBERT none
        types = getattr(self.net.get_submodule("encoder.embed"), "types", None)
        return types is not None and len(types.weight) > 1

    def hidden(self, stream: Stream) -> Tensor:
        """[B, L, D]"""
        return self.net(encoder=stream)["encoder"].x

    @torch.inference_mode()
    def scores(self, rows: Sequence[Sequence[int]], firsts: Sequence[int] | None = None) -> list[Tensor]:
        """What the head says of each entry: [L, labels] a row."""
        (head,) = self.net.heads.values()
        found = [torch.empty(0)] * len(rows)
        for here, stream in self.batches(rows, firsts):
            for i, scores in zip(here, head(self.hidden(stream)).float().cpu(), strict=True):
                found[i] = scores[: len(rows[i])]
        return found


def without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    """The same characters without blanks at either end: many tokenizers count the blank before a word to it."""
    part = text[start:end]
    left = len(part) - len(part.lstrip())
    return start + left, start + max(left, len(part.rstrip()))


def windows(length: int, room: int) -> list[range]:
    """Ranges of at most `room` that cover 0 .. `length`, each beginning halfway through the one before.

    So every entry but those near an end of the text stands in some window with a quarter of `room` on either side.
    """
    if room < 1:
        raise InputError(NO_ROOM)
    overlap = room // 2
    return [range(at, min(at + room, length)) for at in range(0, max(length - overlap, 1), room - overlap)]


def at_least_one(**given: int) -> None:
    """InputError with all of these that are below 1."""
    if faults := [f"{name}={value}: give a whole number from 1" for name, value in given.items() if value < 1]:
        raise InputError("nothing can be answered so", faults)


@dataclass(frozen=True)
class Pooling:
    """How a text's vectors become one (Reimers & Gurevych 2019, section 3), as the checkpoint says it was trained."""

    kind: str = "mean"  # mean, cls or max
    normalise: bool = False
    max_length: int | None = None  # tokens of a text that are read, special ones counted; the rest is left out, as in training

    def of(self, hidden: Tensor, real: Tensor | None) -> Tensor:
        """[B, D] of a batch's vectors [B, L, D]; `real` [B, L] is None where nothing is padding."""
        if self.kind == "cls":
            out = hidden[:, 0]
        elif real is None:
            out = hidden.mean(1) if self.kind == "mean" else hidden.amax(1)
        elif self.kind == "mean":
            out = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp_min(1)
        else:
            out = hidden.masked_fill(~real[..., None], float("-inf")).amax(1)
        return torch.nn.functional.normalize(out, dim=-1) if self.normalise else out


class Embedder(Encoder):
    """One float32 vector a text."""

    def __init__(self, net: Model, tokenizer: LoadedTokenizer, max_length: int | None, pooling: Pooling):
        super().__init__(net, tokenizer, max_length)
        self.max_length = min(self.max_length, pooling.max_length or self.max_length)
        self.pooling = pooling

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[N, D]. A text longer than the model was trained on is cut where its training cut it."""
        rows = [self.cut(self.tokenizer.encode(text)) for text in texts]
        vectors: dict[int, np.ndarray] = {}
        for here, stream in self.batches(rows or [[0]]):  # of no texts, too, the array has a width
            vectors |= zip(here, self.pooling.of(self.hidden(stream), stream.real).float().cpu().numpy(), strict=True)
        return np.stack([vectors[i] for i in sorted(vectors)])[: len(rows)]

    def cut(self, ids: list[int]) -> list[int]:
        if (room := self.max_length - len(self.tokenizer.wrap([]))) < 1:
            raise InputError(NO_ROOM)
        return self.tokenizer.wrap(ids[:room])


@dataclass(frozen=True)
class Similar:
    """A text with its cosine to the query; `index` is its number among the texts, from 0."""

    score: float
    text: str
    index: int


def nearest(queries: np.ndarray, vectors: np.ndarray, texts: Sequence[str], n_best: int) -> list[list[Similar]]:
    """For each query [N, D] the `n_best` of `texts` by the cosine of their vectors [M, D], nearest first."""
    at_least_one(n_best=n_best)
    one, two = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), np.finfo(v.dtype).tiny) for v in (queries, vectors))
    cosines = one @ two.T
    ranked = np.argsort(-cosines, axis=1, kind="stable")[:, :n_best]
    return [[Similar(float(row[i]), texts[i], i) for i in map(int, best)] for row, best in zip(cosines, ranked, strict=True)]


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
        at_least_one(n_best=n_best)
        if "mask" not in self.tokenizer.ids:
            raise InputError("no file of this tokenizer names the token of a mask: give mask_token in its tokenizer_config.json")
        mask, faults, rows = self.tokenizer.ids["mask"], [], []
        for i, text in enumerate(texts):
            ids = self.ids(text, marked=True)
            if mask not in ids:
                faults.append(f"input {first + i}: has no {self.mask} to be filled: {text[:60]!r}")
            elif fault := self.fault(first + i, ids):
                faults.append(fault)
            rows.append(ids)
        if faults:
            raise InputError("some inputs cannot be filled", faults)
        found: list[list[list[Filled]]] = [[] for _ in rows]
        for here, stream in self.batches(rows):
            hidden = self.hidden(stream)
            for i, vectors in zip(here, hidden, strict=True):
                places = [at for at, id in enumerate(rows[i]) if id == mask]
                chances = self.net.heads["mlm"](vectors[places]).softmax(-1)
                chances, ids = chances.topk(min(n_best, chances.shape[-1]))
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
