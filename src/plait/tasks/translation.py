"""Translation: one sequence in, another out, learned by teacher forcing and answered by beam search."""

from collections.abc import Callable
from typing import Any

import torch

from plait.core.model import Model
from plait.data.batches import Batch
from plait.data.cleaning import regular
from plait.generate.search import Hypothesis, gnmt
from plait.tasks.objective import Scoring, Vectors
from plait.tasks.sequences import Rewriter, padded
from plait.text.tokenizer import Tokenizer


class TeacherForcing(Scoring):
    """The decoder is given the right answer so far and predicts the next token (Vaswani et al. 2017, section 5), with label smoothing."""

    tower = "decoder"

    def __init__(self, smoothing: float = 0.1, head: str = "lm"):
        self.smoothing, self.head = smoothing, head

    def vectors(self, net: Model, batch: Batch) -> Vectors:
        batch = batch.to(next(net.parameters()).device)
        source, target = padded(batch.source, batch.source_real), padded(batch.target_in, batch.target_real)
        hidden = net(encoder=source, decoder=target)["decoder"].x
        if target.real is not None:
            hidden, answers = hidden[batch.target_real], batch.target_out[batch.target_real]  # [N, D], [N]
        else:
            hidden, answers = hidden.flatten(0, 1), batch.target_out.flatten()
        return Vectors(hidden, net.heads[self.head], answers)

    def parts(self, batch: Batch, n: int) -> list[Batch]:
        if n == 1:
            return [batch]
        rows = torch.arange(len(batch)).tensor_split(min(n, len(batch)))
        return [slice_of(batch, r) for r in rows]

    def size(self, batch: Batch) -> int:
        return int(batch.source_real.sum()) + batch.n_target


def slice_of(batch: Batch, rows: torch.Tensor) -> Batch:
    """Some rows, with the columns that are padding in all of them dropped."""
    wide, long = int(batch.source_real[rows].sum(1).max()), int(batch.target_real[rows].sum(1).max())
    source, source_real = batch.source[rows, : max(wide, 1)], batch.source_real[rows, : max(wide, 1)]
    target_real = batch.target_real[rows, :long]
    return Batch(source, source_real, batch.target_in[rows, :long], batch.target_out[rows, :long], target_real, int(target_real.sum()))


class Translator(Rewriter):
    """Texts in, texts out: what a trained translation run does.

    `extend` puts a neighbour from a translation memory behind each piece; only of that may something be cut for want of room.
    """

    deed, advice = "translated", "shorten it, or train with a larger --context"

    def __init__(
        self,
        net: Model,
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        max_source: int,
        max_target: int,
        extend: Callable[[str], str] | None = None,
    ):
        super().__init__(net, target_tokenizer.decode, max_source)
        self.source_tokenizer, self.target_tokenizer = source_tokenizer, target_tokenizer
        self.max_source: int = max_source
        self.max_target, self.extend = max_target, extend

    @property
    def shared(self) -> bool:
        return self.source_tokenizer is self.target_tokenizer

    def fed(self, part: str) -> list[int]:
        return self.encode(part) if self.extend is None else self.encode(self.extend(regular(part)))[: self.max_source]

    def encode(self, text: str) -> list[int]:
        """Ids of the text in the form that training saw: stripped, NFC, one line."""
        return self.source_tokenizer.encode(regular(text))

    @property
    def forbidden(self) -> list[int]:
        """Ids that no answer holds."""
        tokenizer = self.target_tokenizer
        return sorted({id for id in (tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id) if id not in (None, tokenizer.eos_id)})

    def search(self, rows: list[list[int]], *, length_penalty: float = 0.6, **how: Any) -> list[list[Hypothesis]]:
        """As any other, unless told otherwise with the start, end, length and penalty that translations were trained for."""
        own = dict(start=self.target_tokenizer.bos_id, end=self.target_tokenizer.eos_id, forbidden=self.forbidden)
        return super().search(rows, **{**own, "max_length": self.max_target, "penalty": gnmt(length_penalty), **how})
