"""Texts with some of their tokens hidden, for a model that is to tell what stood there (Devlin et al. 2019, section 3.1)."""

from dataclasses import dataclass

import numpy as np
import torch

from plait.data.examples import IGNORED, Examples
from plait.data.packing import Documents
from plait.data.windows import WindowFeed, Windows
from plait.errors import InputError
from plait.text.loaded import LoadedTokenizer

SHARE, MASKED, RANDOM = 0.15, 0.8, 0.1  # of all tokens; of those: shown as the mask, as any token; the rest are shown as they are


@dataclass(frozen=True)
class Masking:
    """Which tokens are hidden and how. `usual` are the ids that a random one is drawn from; `begins[id]` says whether a word begins there
    (None: every token is hidden by itself, else words are hidden whole)."""

    mask: int
    usual: np.ndarray
    begins: np.ndarray | None = None
    share: float = SHARE

    @classmethod
    def of(cls, tokenizer: LoadedTokenizer, whole_words: bool = False) -> "Masking":
        if "mask" not in tokenizer.ids:
            raise InputError("this model's tokenizer has no mask token: begin from a masked language model, or without --model")
        vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
        special = {id for id, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special} | set(tokenizer.ids.values())
        usual = np.array(sorted(set(vocabulary.values()) - special))
        return cls(tokenizer.ids["mask"], usual, word_starts(vocabulary) if whole_words else None)

    def hidden(self, ids: np.ndarray, seed: int, epoch: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids as the model sees them, places of those hidden): a pure function of the ids and (seed, epoch, row)."""
        # Raw draws (see BatchOrder), from a part of the stream that no order of batches comes from: those counters begin at zero.
        key, counter = np.array([seed, epoch], np.uint64), np.array([0, 0, row, 1], np.uint64)
        draws = np.random.Philox(key=key, counter=counter).random_raw(3 * len(ids))
        order, kind, other = draws.reshape(3, -1)
        word = np.arange(len(ids)) if self.begins is None else np.maximum(np.cumsum(self.begins[ids]) - (not self.begins[ids[0]]), 0)
        starts = np.flatnonzero(np.diff(word, prepend=-1))
        lengths = np.diff(starts, append=len(ids))
        turn = np.argsort(order[starts], kind="stable")
        wanted = max(1, round(self.share * len(ids)))  # at least one, so that no row teaches nothing
        chosen = turn[: 1 + int(np.searchsorted(np.cumsum(lengths[turn]), wanted))]
        places = np.flatnonzero(np.isin(word, word[starts[chosen]]))
        shown, kind = ids.astype(np.int64), kind[places] / 2.0**64
        as_other = places[(kind >= MASKED) & (kind < MASKED + RANDOM)]
        shown[places[kind < MASKED]] = self.mask
        shown[as_other] = self.usual[other[as_other] % len(self.usual)]
        return shown, places


def word_starts(vocabulary: dict[str, int]) -> np.ndarray:
    """Of each id, whether a word begins with it, by the marks that tokenizers write."""
    begins = np.ones(max(vocabulary.values()) + 1, bool)
    marks = [mark for mark in ("\u0120", "\u2581") if any(token.startswith(mark) for token in vocabulary)]
    if any(token.startswith("##") and len(token) > 2 for token in vocabulary):
        for token, id in vocabulary.items():
            begins[id] = not token.startswith("##")
    elif marks:
        for token, id in vocabulary.items():
            begins[id] = token.startswith(marks[0])
    else:
        raise InputError("--whole-words: this tokenizer does not mark where words begin")
    return begins


@dataclass(frozen=True)
class MaskedRows:
    """Documents as rows of at most `context` tokens, special ones (`around`) included; longer ones are cut in windows."""

    documents: Documents
    masking: Masking
    context: int
    around: tuple[list[int], list[int]]
    pad: int
    seed: int = 0

    def feed(self, tokens_per_batch: int) -> "MaskedFeed":
        return MaskedFeed(self, tokens_per_batch)


class MaskedFeed(WindowFeed):
    """Batches of rows of like length; in each epoch other tokens are hidden."""

    def __init__(self, rows: MaskedRows, tokens_per_batch: int):
        self.rows, special = rows, len(rows.around[0]) + len(rows.around[1])
        windows = Windows.of(rows.documents, rows.context, special)
        widths = windows.lengths + special
        super().__init__(windows, np.stack([widths, np.zeros_like(widths)], axis=1), tokens_per_batch, rows.seed)

    @property
    def how(self) -> tuple:
        masking = self.rows.masking
        return masking.mask, masking.share, masking.begins is None

    def made(self, rows: np.ndarray, epoch: int) -> Examples:
        before, after = self.rows.around
        width = int(self.windows.lengths[rows].max()) + len(before) + len(after)
        ids, answers = np.full((len(rows), width), self.rows.pad, np.int64), np.full((len(rows), width), IGNORED, np.int64)
        real = np.zeros((len(rows), width), bool)
        for at, row in enumerate(map(int, rows)):
            text = self.windows[row]
            shown, places = self.rows.masking.hidden(text, self.rows.seed, epoch, row)
            whole = [*before, *shown, *after]
            ids[at, : len(whole)], real[at, : len(whole)] = whole, True
            answers[at, places + len(before)] = text[places]
        return Examples(torch.from_numpy(ids), torch.from_numpy(real), torch.from_numpy(answers))
