"""What the doctor looks at: a run that has not begun, and its batches as pieces of text with their answers."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from plait.core.model import Model
from plait.data.batches import Batch
from plait.data.examples import IGNORED, Examples
from plait.data.feed import Feed
from plait.data.picture_feed import Batch as Pictures
from plait.data.picture_feed import BoxBatch, PictureBatch
from plait.tasks.objective import Objective
from plait.train.recipes import Recipe
from plait.train.seen import Seen, seen_in

LOOKED_AT = 300_000  # tokens of each side that are read for what is wrong with the data
PICTURES = 2000  # of each side, for the same
FEW_TOKENS, FEW_PICTURES = 256, 8  # of the batch that is to be learned by heart


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, what was seen there, and where something is wrong what to do."""

    level: Literal["ok", "warning", "fault"]
    name: str
    seen: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:<8} {self.name}: {self.seen}" + (f": {self.advice}" if self.advice else "")


@dataclass
class Piece:
    """One text of a batch (a whole row, or one document of a packed row) without its padding."""

    fed: np.ndarray  # [n] ids that the scored tower reads
    answers: np.ndarray  # [n] of each entry, else of the piece as a whole
    per_entry: bool
    source: np.ndarray | None = None  # [s] ids that another tower reads
    picture: bytes | None = None  # of a picture, which has no ids: what differs where its pixels do

    @property
    def asked(self) -> np.ndarray:  # [n] bool
        return self.answers != IGNORED

    @property
    def key(self) -> bytes:
        """The same for pieces that ask the same."""
        return self.picture or (self.fed if self.source is None else self.source).tobytes()


def examples_of(batch: Any) -> tuple[Examples, Tensor | None, Tensor | None] | None:
    """(a batch as examples of the scored tower, what another tower reads, which of that is real); None: of no kind known here."""
    if isinstance(batch, Examples):
        return batch, None, None
    if isinstance(batch, Batch):
        answers = torch.where(batch.target_real, batch.target_out, IGNORED)
        return Examples(batch.target_in, batch.target_real, answers), batch.source, batch.source_real
    return None


def inputs_of(batch: Any) -> dict[str, Tensor]:
    """The ids that a batch gives to the model, by the names of its fields, those of the scored tower last."""
    if isinstance(batch, Batch):
        return {"source": batch.source, "target_in": batch.target_in}
    if isinstance(batch, Pictures):
        return {"pixels": batch.pixels}
    return {"ids": batch.ids} if isinstance(batch, Examples) else {}


def with_inputs(batch: Any, **ids: Tensor) -> Any:
    return replace(batch, **ids)


def pieces_of(batch: Any) -> Iterator[Piece]:
    if isinstance(batch, PictureBatch):
        for pixels, answer in zip(batch.pixels.cpu().numpy(), batch.answers.cpu().numpy(), strict=True):
            yield Piece(np.zeros(0, np.int64), answer, False, picture=hashlib.sha256(pixels.tobytes()).digest())
    if (viewed := examples_of(batch)) is None:
        return
    examples, source, source_real = viewed
    ids, real, answers = (t.cpu().numpy() for t in (examples.ids, examples.real, examples.answers))
    segments = None if examples.segment is None else examples.segment.cpu().numpy()
    for row in range(len(ids)):
        mine = real[row]
        fed = ids[row][mine]
        said = answers[row][mine] if examples.per_entry else answers[row]
        if segments is not None:
            cuts = np.flatnonzero(np.diff(segments[row][mine])) + 1
            parts = np.split(said, cuts) if examples.per_entry else [said] * (len(cuts) + 1)
            yield from (Piece(*both, examples.per_entry) for both in zip(np.split(fed, cuts), parts))
        else:
            yield Piece(
                fed,
                said,
                examples.per_entry,
                None if source is None or source_real is None else source[row][source_real[row]].cpu().numpy(),
            )


@dataclass
class Looked:
    """What a look at many batches of one side gave."""

    pieces: list[Piece] = field(default_factory=list)
    pictures: list[Seen] = field(default_factory=list)
    batches: int = 0
    unasked: int = 0  # batches in which nothing is asked
    padding: int = 0  # answers asked of padding

    @classmethod
    def at(cls, batches: Iterable[Any], until: float) -> "Looked":
        """`until`: the perf_counter time at which the look ends, whatever is left; at least one batch is seen."""
        looked, tokens = cls(), 0
        for batch in batches:
            looked.batches += 1
            made = list(pieces_of(batch))
            looked.pieces += made
            looked.pictures += seen_in(batch)
            tokens += sum(len(piece.fed) for piece in made)
            if (viewed := examples_of(batch)) is not None:
                looked.unasked += viewed[0].count == 0
                if viewed[0].per_entry:
                    looked.padding += int((viewed[0].answers[~viewed[0].real] != IGNORED).sum())
            if tokens > LOOKED_AT or len(looked.pictures) > PICTURES or time.perf_counter() > until:
                break
        return looked


@dataclass
class Patient:
    """A run that is about to begin. Nothing here is changed by looking at it: models are trained as copies."""

    net: Model
    objective: Objective
    feed: Feed
    valid: Sequence[Any]
    recipe: Recipe
    fresh: bool = True  # the weights are drawn, not taken from another model
    tuned: bool = False  # a small part of the model is trained, and the rest is frozen on purpose
    precision: str = "float32"
    clip: float | None = 1.0
    shown: Callable[[Sequence[int]], str] | None = None
    unknown: int | None = None  # the id of what the tokenizer does not know
    seconds: float = 30.0  # about how long the whole examination may take
    started: float = field(default_factory=time.perf_counter)

    def time_until(self, share: float) -> float:
        """The perf_counter time at which this share of the seconds is spent."""
        return self.started + share * self.seconds

    @cached_property
    def train(self) -> Looked:
        first = islice(self.feed.stream(0, 0), self.feed.batches(0))
        return Looked.at((batch for _, _, batch in first), self.time_until(0.15))

    @cached_property
    def held_out(self) -> Looked:
        return Looked.at(self.valid, self.time_until(0.2))

    @property
    def tower(self) -> str:
        """The one whose entries are scored."""
        return getattr(self.objective, "tower", self.net.towers[-1])

    @cached_property
    def outputs(self) -> int | None:
        """How many scores the objective's head gives; None where it has no matrix that tells."""
        name = getattr(self.objective, "head", "")
        head = dict(self.net.heads.items()).get(name)  # of Pooled, Transformed and Detect the matrix is one level below
        weight = getattr(getattr(head, "scores", head), "weight", None)
        return len(weight) if isinstance(weight, Tensor) and weight.ndim == 2 else None

    @cached_property
    def vocabulary(self) -> int | None:
        """How many tokens the scored tower can be given."""
        weight = getattr(getattr(self.net.get_submodule(f"{self.tower}.embed"), "tokens", None), "weight", None)
        return len(weight) if isinstance(weight, Tensor) else None

    @cached_property
    def classifies(self) -> bool:
        """Whether answers are one of a few classes, and no tokens."""
        pieces = self.train.pieces
        if self.outputs is None or not pieces or pieces[0].answers.dtype.kind != "i" or self.shift is not None:
            return False
        return pieces[0].answers.ndim == 0 or (pieces[0].per_entry and self.outputs != self.vocabulary)

    @cached_property
    def shift(self) -> int | None:
        """Answers are the ids so many entries further on, where nine in ten of them are."""
        pieces = [piece for piece in self.train.pieces if piece.per_entry]
        return next((k for k in (1, 0, 2, -1) if shifted(pieces, k) > 0.9), None)

    @cached_property
    def small(self) -> Any:
        """A few rows of the first batches, those whose answers differ most: what is to be learned by heart."""
        found, most = None, -1.0
        for _, _, batch in islice(self.feed.stream(0, 0), min(4, self.feed.batches(0))):
            few = FEW_PICTURES if isinstance(batch, Pictures) else FEW_TOKENS
            for part in islice(self.objective.parts(batch, max(1, self.objective.size(batch) // few)), 4):
                if (differing := marginal_entropy(list(pieces_of(part))) or 0.0) > most:
                    found, most = part, differing
        return found

    @cached_property
    def small_pieces(self) -> list[Piece]:
        """Those of the small batch where answers are numbers of a head's outputs; else none, and nothing is known of what losses mean."""
        return [] if self.outputs is None else list(pieces_of(self.small))

    @property
    def boxes(self) -> bool:
        """Whether boxes on pictures are the answers."""
        return isinstance(self.small, BoxBatch)

    def text(self, ids: Sequence[int]) -> str:
        """Ids for a reader."""
        told = "" if self.shown is None else f" {self.shown(list(map(int, ids)))!r}"
        return f"{', '.join(str(int(id)) for id in ids)}{told}"


def shifted(pieces: list[Piece], k: int) -> float:
    """The share of answers that are the id `k` entries further on, of those that have one there."""
    hits = asked = 0
    for piece in pieces:
        n = len(piece.fed)
        at = np.flatnonzero(piece.asked)
        at = at[(at + k >= 0) & (at + k < n)]
        hits += int((piece.answers[at] == piece.fed[at + k]).sum())
        asked += len(at)
    return hits / asked if asked else 0.0


def entropy(groups: dict[Any, dict[Any, int]]) -> float:
    """Nats an answer that are left when its group is known: no model that sees the group alone can lose less."""
    counts = [np.array(list(group.values()), float) for group in groups.values()]
    total = sum(float(c.sum()) for c in counts)
    return sum(float((-c * np.log(c / c.sum())).sum()) for c in counts) / total if total else 0.0


def tallied(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, dict[Any, int]]:
    groups: dict[Any, dict[Any, int]] = {}
    for group, answer in pairs:
        counts = groups.setdefault(group, {})
        counts[answer] = counts.get(answer, 0) + 1
    return groups


def marginal_entropy(pieces: list[Piece]) -> float | None:
    """Nats an answer that the best output loses that is the same whatever the input; None where answers are no classes."""
    if not pieces or pieces[0].answers.dtype.kind != "i" or (pieces[0].answers.ndim and not pieces[0].per_entry):
        return None
    return entropy(tallied((None, int(a)) for piece in pieces for a in np.atleast_1d(piece.answers) if a != IGNORED))


def least_loss(pieces: list[Piece], causal: bool) -> float:
    """Nats an answer that remain when all is learned by heart: where the same input has different answers."""
    if marginal_entropy(pieces) is None:
        return 0.0

    def seen() -> Iterator[tuple[Any, int]]:
        for piece in pieces:
            source = b"" if piece.source is None else piece.source.tobytes()
            if not piece.per_entry:
                yield (source, piece.picture, piece.fed.tobytes()), int(piece.answers)
                continue
            for at in np.flatnonzero(piece.asked):
                known = piece.fed[: at + 1].tobytes() if causal else (piece.fed.tobytes(), int(at))
                yield (source, known), int(piece.answers[at])

    return entropy(tallied(seen()))
