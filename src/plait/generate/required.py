"""Words that an answer must hold."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

NEVER = float("-inf")


@dataclass(frozen=True)
class Required:
    """A constraint: each of these sequences of ids occurs after place `start`, before the answer ends at place `limit` at the latest.

    None of `ends` comes while one is missing; when there is just room for what is missing and an end, only ids come after which there
    still is, and before that the model says where the words go. Beams find better places than the likeliest token does. Sequences do not
    share ids when they are written out, so some room may stay. A row that has no room left gets no id at all.
    """

    sequences: Sequence[Sequence[int]]
    ends: Sequence[int]
    start: int
    limit: int

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        room = self.limit - ids.shape[1]
        for row, text in zip(scores, ids[:, self.start :].tolist(), strict=True):
            missing = self.missing(text)
            if not missing:
                continue
            row[list(self.ends)] = NEVER
            if sum(map(len, missing)) + 1 < room:  # whatever comes, there is room for all of it and the end
                continue
            # Any id of none of them would leave one half written, which then begins anew.
            keep = [id for id in {id for wanted in missing for id in wanted} if self.needed([*text, id]) < room]
            kept = row[keep].clone()
            row.fill_(NEVER)[keep] = kept

    def missing(self, text: list[int]) -> list[Sequence[int]]:
        return [wanted for wanted in self.sequences if not _holds(text, wanted)]

    def needed(self, text: list[int]) -> int:
        """Ids that must still come, an end among them."""
        missing = self.missing(text)
        return sum(map(len, missing)) - max((_begun(text, wanted) for wanted in missing), default=0) + 1


def _holds(text: list[int], wanted: Sequence[int]) -> bool:
    return any(text[at : at + len(wanted)] == list(wanted) for at in range(len(text) - len(wanted) + 1))


def _begun(text: list[int], wanted: Sequence[int]) -> int:
    """How many ids of the sequence, from its first, the text ends with."""
    return next((n for n in range(min(len(wanted) - 1, len(text)), 0, -1) if text[-n:] == list(wanted[:n])), 0)
