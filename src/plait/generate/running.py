"""A running batch: texts are continued together, one token a step; they may join and leave between any two steps.

All rows share the current slot of one static cache. A prompt that joins is read by itself, and its keys and values come to lie in the
slots that end at the current one; what a row lacks on the left is masked, and positions count real entries. So nothing is computed for
padding or for a text that is done, and a text's tokens do not depend on what runs beside it, up to the rounding of matrix products.
A long beginning that texts have in common is read once and kept once (core/trunks.py), as are prompts that have several samples.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from plait.core.cache import Cache, Int8Cache
from plait.core.joining import joined
from plait.core.model import Model
from plait.core.stream import Stream
from plait.core.trunks import Chain
from plait.errors import InputError, choices
from plait.generate.constraints import Constraint
from plait.generate.memories import kept, together
from plait.generate.prompts import Prompts, beginnings, longest
from plait.generate.sampling import Draws, drawn
from plait.generate.top import log_normaliser

READ_AT_ONCE = 2048  # ids of prompts of one length that are read in one pass
KINDS: dict[str, type[Cache]] = {"static": Cache, "int8": Int8Cache}
ROWS_AT_ONCE = 64  # texts that run at the same time where more are given


@dataclass(eq=False)
class Continuation:
    """A text that is being continued: `ids` after `prompt` (at least one id), up to `max_new_tokens` or one of `ends`, not among them.

    `rules` (constraints, then filters) see the prompt too; texts of one prompt length that share the same tuple are ruled together.
    Without `draws` the likeliest id is taken. `stopped` is asked after each id whether the text ends there. `log_prob` is the sum of
    the model's own log-probabilities, before any rule, the end's included; `name` is what errors call the text. `fault` says why
    nothing could be chosen: the text is done then, and the others go on.
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
    fault: str = ""

    @property
    def done(self) -> bool:
        return self.ended or bool(self.fault) or len(self.ids) >= self.max_new_tokens

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
    """The texts that are being continued by one model: `join`, `step` until it is empty, and `leave` before a text's own end.

    `cache`: "static", or "int8" for keys and values in 8 bits, in a quarter of the memory. `prompts` has what was read before, perhaps
    by another running batch of this model and this kind of cache, and keeps what is read. InputError for another kind.
    """

    def __init__(
        self,
        net: Model,
        encoder: str = "encoder",
        decoder: str = "decoder",
        head: str = "lm",
        cache: str = "static",
        prompts: Prompts | None = None,
    ):
        self.net, self.encoder, self.decoder, self.head = net, encoder, decoder, head
        if cache not in KINDS:
            raise InputError(f"cache={cache!r}: expected {choices(KINDS)}")
        self.kind, self.prompts = KINDS[cache], prompts
        self.rows: list[Continuation] = []
        self.waiting: list[tuple[list[Continuation], Stream | None]] = []
        self.cache: Cache | None = None
        self.memory: Stream | None = None
        self.tuning: nn.Module | None = None  # that the rows were begun with

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
        """The next id of every text; None where it is an end, or where the text has a fault. Those that are done have left.

        InputError where another small part of the model was selected since its texts were begun: their keys are those of the first.
        """
        if self.rows and self.tuning is not self.net.tuning:
            raise InputError(f"{len(self.rows)} texts were begun with another small part of the model: finish them before it is exchanged")
        self.tuning, parts = self.net.tuning, []
        if self.rows:
            ids = torch.tensor([[text.ids[-1]] for text in self.rows], device=self.device)
            parts.append(self.run(ids, self.memory, self.cache))
        parts += self.read()
        if not parts:
            return []
        found = list(zip(self.rows, chosen(self.net.heads[self.head](torch.cat(parts)), self.rows), strict=True))
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
        groups: dict[tuple[int, Chain], list[tuple[list[Continuation], Stream | None]]] = defaultdict(list)
        for begun, (texts, memory) in zip(self.begun(), self.waiting, strict=True):
            groups[len(texts[0].prompt), begun].append((texts, memory))
        self.waiting = []
        caches, memories = [self.cache] if self.rows else [], [self.memory] if self.rows else []
        hidden = []
        for (length, begun), group in groups.items():
            at_once = max(1, READ_AT_ONCE // length)
            for some in (group[i : i + at_once] for i in range(0, len(group), at_once)):
                cache, given = self.kind.behind(begun, len(some), length), [memory for _, memory in some if memory is not None]
                memory = together(given) if given else None
                ids = [list(texts[0].prompt)[cache.length :] for texts, _ in some]
                last = self.run(torch.tensor(ids, device=self.device), memory, cache)
                if self.prompts is not None and memory is None and not self.net.exact:
                    cache.share()
                    for (texts, _), chain in zip(some, cache.chains, strict=True):
                        self.prompts.keep(texts[0].prompt, chain, self.net.tuning)
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

    def begun(self) -> list[Chain]:
        """What is known already of each prompt that waits; what several of them begin with is read first."""
        if self.net.exact:
            return [()] * len(self.waiting)
        alone = [texts[0].prompt for texts, memory in self.waiting if memory is None]
        known: list[tuple[Sequence[int], Chain]] = []
        if self.prompts is not None:
            for ids in alone:
                self.prompts.used(ids, self.net.tuning)
            known += self.prompts.read(self.net.tuning)
        if self.cache is not None and self.memory is None:
            known += [(text.prompt, chain) for text, chain in zip(self.rows, self.cache.chains, strict=False)]
        for ids in beginnings(alone):
            before = longest(ids, known)
            if (cache := self.kind.behind(before, 1, len(ids))).length < len(ids):
                self.run(torch.tensor([ids[cache.length :]], device=self.device), None, cache)
                cache.share()
                known.append((ids, cache.chains[0]))
        return [() if memory is not None else longest(texts[0].prompt, known) for texts, memory in self.waiting]

    def lay(self, caches: list[Cache]) -> None:
        """One cache with room for all that is still to come, beginning where the longest row begins."""
        length = max(cache.length - cache.padding() for cache in caches)
        self.cache = joined(caches, length + max(text.max_new_tokens - len(text.ids) for text in self.rows))

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


@torch.inference_mode()
def chosen(raw: Tensor, texts: Sequence[Continuation]) -> list[int | None]:
    """What each text takes by the model's scores [N, V], one text a row: its next id; None for an end, or where it has a fault."""
    scores = raw.clone() if any(text.rules for text in texts) else raw
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        if text.rules:
            alike[id(text.rules), len(text.prompt) + len(text.ids)].append(row)
    for rows in alike.values():
        so_far = torch.tensor([[*texts[row].prompt, *texts[row].ids] for row in rows], device=raw.device)
        some = scores if len(rows) == len(scores) else scores[rows]
        for rule in texts[rows[0]].rules:
            rule(some, so_far)
        if some is not scores:
            scores[rows] = some
    tokens = scores.argmax(1)
    if drawing := [row for row, text in enumerate(texts) if text.draws is not None]:
        uniform = [text.draws.uniform(len(text.ids)) for text in texts if text.draws is not None]
        tokens[drawing] = drawn(scores[drawing], uniform)
    left = scores.amax(1).tolist()
    log_probs = (raw.gather(1, tokens[:, None]) - log_normaliser(raw))[:, 0].tolist()
    found: list[int | None] = []
    for text, token, best, log_prob in zip(texts, tokens.tolist(), left, log_probs, strict=True):
        if log_prob != log_prob or best != best:
            text.fault = f"after {len(text.ids)} tokens the scores of the next one are not numbers (NaN)"
        elif best == float("-inf"):
            text.fault = f"after {len(text.ids)} tokens every next one is forbidden: ask for less"
        found.append(None if text.fault else text.take(token, log_prob))
    return found


def sound(texts: Iterable[Continuation]) -> None:
    """InputError that names every text with a fault."""
    if faults := [f"{text.name}: {text.fault}" for text in texts if text.fault]:
        raise InputError("no further token can be chosen", faults)


def continuing(
    running: Running, prompts: Iterable[tuple[Sequence[Continuation], Stream | None]], at_once: int = ROWS_AT_ONCE
) -> Iterator[tuple[Continuation, int | None]]:
    """(text, id) of all steps, until all texts are done; at most `at_once` texts run together, unless one prompt has more.

    Prompts are taken as there is room for them, so their encoder streams may be made as they are asked for. Whoever stops asking ends
    the texts: they leave the running batch. InputError at the end names every text for which nothing could be chosen.
    """
    left, joined = iter(prompts), list[Continuation]()
    coming = next(left, None)
    try:
        while coming is not None or len(running):
            while coming is not None and (not len(running) or len(running) + len(coming[0]) <= at_once):
                running.join(*coming[0], memory=coming[1])
                joined += coming[0]
                coming = next(left, None)
            yield from running.step()
    finally:
        running.leave(*joined)
    sound(joined)
