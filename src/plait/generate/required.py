"""Words that an answer must hold."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

NEVER = float("-inf")


@dataclass(frozen=True)
class Required:
    """A constraint: each of these sequences of ids occurs after place `start`, before the answer ends at place `limit` at the latest.

    None of `ends` comes while one is missing; when there is just room for what is missing and an end, it is written out, and before that
    the model says where the words go. Beams find better places than the likeliest token does. Sequences do not share ids when they are
    written out, so some room may stay. A row that has no room left gets no id at all.
    """

    sequences: Sequence[Sequence[int]]
    ends: Sequence[int]
    start: int
    limit: int

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        for row, text in zip(scores, ids[:, self.start :].tolist(), strict=True):
            missing = [list(wanted) for wanted in self.sequences if not _holds(text, wanted)]
            if not missing:
                continue
            begun, wanted = max((_begun(text, wanted), wanted) for wanted in missing)
            row[list(self.ends)] = NEVER
            needed = sum(map(len, missing)) - begun + 1  # the end is an id too
            room = self.limit - ids.shape[1]
            if room < needed:
                row.fill_(NEVER)
            elif room <= needed + begun:  # another id would leave a word half written, and it begins anew
                keep = row[wanted[begun]].clone()
                row.fill_(NEVER)[wanted[begun]] = keep


def _holds(text: list[int], wanted: Sequence[int]) -> bool:
    return any(text[at : at + len(wanted)] == list(wanted) for at in range(len(text) - len(wanted) + 1))


def _begun(text: list[int], wanted: Sequence[int]) -> int:
    """How many ids of the sequence, from its first, the text ends with."""
    return next((n for n in range(min(len(wanted) - 1, len(text)), 0, -1) if text[-n:] == list(wanted[:n])), 0)
