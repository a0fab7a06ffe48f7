"""A running batch: texts are continued together, one token a step; they may join and leave between any two steps.

All rows share the current slot of one static cache. A prompt that joins is read by itself, and its keys and values come to lie in the
slots that end at the current one; what a row lacks on the left is masked, and positions count real entries. So nothing is computed for
padding or for a text that is done, and a text's tokens do not depend on what runs beside it, up to the rounding of matrix products.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plait.core.cache import Cache, joined
from plait.core.model import Model
from plait.core.stream import Stream
from plait.errors import InputError
from plait.generate.constraints import Constraint
from plait.generate.memories import kept, together
from plait.generate.sampling import Draws, drawn
from plait.generate.top import log_normaliser

READ_AT_ONCE = 2048  # ids of prompts of one length that are read in one pass
ROWS_AT_ONCE = 64  # texts that run at the same time where more are given


@dataclass(eq=False)
class Continuation:
    """A text that is being continued: `ids` after `prompt` (at least one id), up to `max_new_tokens` or one of `ends`, not among them.

    `rules` (constraints, then filters) see the prompt too; texts of one prompt length that share the same tuple are ruled together.
    Without `draws` the likeliest id is taken. `stopped` is asked after each id whether the text ends there. `log_prob` is the sum of
    the model's own log-probabilities, before any rule, the end's included; `name` is what errors call the text.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    ends: Collection[int] = ()
    rules: Sequence[Constraint] = ()
    draws: Draws | None = None
    stopped: Callable[[list[int]], bool] | None = None
    name: str = "the text"
    ids: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    ended: bool = False

    @property
    def done(self) -> bool:
        return self.ended or len(self.ids) >= self.max_new_tokens

    def take(self, token: int, log_prob: float) -> int | None:
        """The next id: given out, or None where it is an end."""
        self.log_prob += log_prob
        if token in self.ends:
            self.ended = True
            return None
        self.ids.append(token)
        self.ended = self.stopped is not None and self.stopped(self.ids)
        return token


class Running:
    """The texts that are being continued by one model: `join`, `step` until it is empty, and `leave` before a text's own end."""

    def __init__(self, net: Model, encoder: str = "encoder", decoder: str = "decoder", head: str = "lm"):
        self.net, self.encoder, self.decoder, self.head = net, encoder, decoder, head
        self.rows: list[Continuation] = []
        self.waiting: list[tuple[list[Continuation], Stream | None]] = []
        self.cache: Cache | None = None
        self.memory: Stream | None = None

    def __len__(self) -> int:
        return len(self.rows) + sum(len(texts) for texts, _ in self.waiting)

    def join(self, *texts: Continuation, memory: Stream | None = None) -> None:
        """Continuations of one prompt, which is read once for all of them, over one row of an encoder's stream if there is one."""
        if not len(texts[0].prompt):
            raise ValueError("an empty prompt has nothing to continue: give at least the token that begins a text")
        if going := [text for text in texts if not text.done]:
            self.waiting.append((going, memory))

    def leave(self, *texts: Continuation) -> None:
        """These texts are not continued further."""
        gone = set(map(id, texts))
        self.waiting = [(left, memory) for some, memory in self.waiting if (left := [text for text in some if id(text) not in gone])]
        self.keep([row for row, text in enumerate(self.rows) if id(text) not in gone])

    @torch.inference_mode()
    def step(self) -> list[tuple[Continuation, int | None]]:
        """The next id of every text; None where it is an end. Those that are done have left.

        InputError where scores are NaN, or nothing is left to choose: it names each such text.
        """
        parts = []
        if self.rows:
            ids = torch.tensor([[text.ids[-1]] for text in self.rows], device=self.device)
            parts.append(self.run(ids, self.memory, self.cache))
        parts += self.read()
        if not parts:
            return []
        tokens, log_probs = self.choose(torch.cat(parts))
        found = [(text, text.take(*said)) for text, said in zip(self.rows, zip(tokens, log_probs, strict=True), strict=True)]
        self.keep([row for row, text in enumerate(self.rows) if not text.done])
        return found

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def run(self, ids: Tensor, memory: Stream | None, cache: Cache | None) -> Tensor:
        """The last hidden vector [N, D] of each row."""
        return self.net.run(self.decoder, ids, None if memory is None else {self.encoder: memory}, cache).x[:, -1]

    def read(self) -> list[Tensor]:
        """Reads the prompts that wait, those of one length together, and makes rows of their continuations."""
        groups: dict[int, list[tuple[list[Continuation], Stream | None]]] = defaultdict(list)
        for texts, memory in self.waiting:
            groups[len(texts[0].prompt)].append((texts, memory))
        self.waiting = []
        caches, memories = [self.cache] if self.rows else [], [self.memory] if self.rows else []
        hidden = []
        for length, group in groups.items():
            at_once = max(1, READ_AT_ONCE // length)
            for some in (group[i : i + at_once] for i in range(0, len(group), at_once)):
                cache, given = Cache(length), [memory for _, memory in some if memory is not None]
                memory = together(given) if given else None
                last = self.run(torch.tensor([list(texts[0].prompt) for texts, _ in some], device=self.device), memory, cache)
                rows = torch.tensor([i for i, (texts, _) in enumerate(some) for _ in texts], device=self.device)
                if len(rows) > len(some):
                    cache.reorder(rows)
                    cache.keep_sources(rows)
                    memory, last = None if memory is None else kept(memory, rows), last[rows]
                caches.append(cache)
                memories.append(memory)
                hidden.append(last)
                self.rows += [text for texts, _ in some for text in texts]
        if hidden:
            self.lay([cache for cache in caches if cache is not None])
            streams = [memory for memory in memories if memory is not None]
            self.memory = together(streams) if streams else None
        return hidden

    def lay(self, caches: list[Cache]) -> None:
        """One cache with room for all that is still to come, beginning where the longest row begins."""
        length = max(cache.length - cache.padding() for cache in caches)
        self.cache = joined(caches, length + max(text.max_new_tokens - len(text.ids) for text in self.rows))

    def choose(self, hidden: Tensor) -> tuple[list[int], list[float]]:
        """(id, the model's log-probability of it) for each row of hidden vectors [N, D]."""
        raw = self.net.heads[self.head](hidden)  # [N, V]
        scores = raw.clone() if any(text.rules for text in self.rows) else raw
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, text in enumerate(self.rows):
            if text.rules:
                alike[id(text.rules), len(text.prompt) + len(text.ids)].append(row)
        for rows in alike.values():
            so_far = torch.tensor([[*self.rows[row].prompt, *self.rows[row].ids] for row in rows], device=raw.device)
            some = scores if len(rows) == len(scores) else scores[rows]
            for rule in self.rows[rows[0]].rules:
                rule(some, so_far)
            if some is not scores:
                scores[rows] = some
        tokens = scores.argmax(1)
        if drawing := [row for row, text in enumerate(self.rows) if text.draws is not None]:
            uniform = [text.draws.uniform(len(text.ids)) for text in self.rows if text.draws is not None]
            tokens[drawing] = drawn(scores[drawing], uniform)
        left = scores.amax(1).tolist()
        log_probs = (raw.gather(1, tokens[:, None]) - log_normaliser(raw))[:, 0].tolist()
        faults = []
        for text, best, log_prob in zip(self.rows, left, log_probs, strict=True):
            if log_prob != log_prob:
                faults.append(f"{text.name}: after {len(text.ids)} tokens the scores of the next one are not numbers (NaN)")
            elif best == float("-inf"):
                faults.append(f"{text.name}: after {len(text.ids)} tokens every next one is forbidden: ask for less")
        if faults:
            raise InputError("no further token can be chosen", faults)
        return tokens.tolist(), log_probs

    def keep(self, rows: list[int]) -> None:
        if len(rows) == len(self.rows):
            return
        self.rows = [self.rows[row] for row in rows]
        if not rows or self.cache is None:
            self.cache = self.memory = None
            return
        index = torch.tensor(rows, device=self.device)
        self.cache.reorder(index)
        self.cache.keep_sources(index)
        self.memory = None if self.memory is None else kept(self.memory, index)
        if self.cache.padding():
            self.lay([self.cache])


def continuing(
    running: Running, prompts: Iterable[tuple[Sequence[Continuation], Stream | None]], at_once: int = ROWS_AT_ONCE
) -> Iterator[tuple[Continuation, int | None]]:
    """(text, id) of all steps, until all texts are done; at most `at_once` texts run together, unless one prompt has more.

    Prompts are taken as there is room for them, so their encoder streams may be made as they are asked for.
    """
    left = iter(prompts)
    coming = next(left, None)
    while coming is not None or len(running):
        while coming is not None and (not len(running) or len(running) + len(coming[0]) <= at_once):
            running.join(*coming[0], memory=coming[1])
            coming = next(left, None)
        yield from running.step()
