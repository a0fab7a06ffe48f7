"""What `plait inspect` shows of any model: its towers' streams, what their entries are called, and the scores that are explained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.core.attention import CrossAttention
from plait.core.heads import Pooled
from plait.core.model import Model
from plait.core.stream import Stream
from plait.errors import InputError
from plait.inspect import attribution
from plait.inspect.flow import flow
from plait.inspect.lens import lens
from plait.inspect.overlay import HINT, Entries
from plait.inspect.page import About, Maps
from plait.inspect.record import Record, recorded
from plait.inspect.rollout import rollout
from plait.inspect.taps import attentions

STEPS = 24  # of the way that integrated gradients go
FLOWING = 64  # entries from which on flow takes minutes
SIGNS = ["all", "for", "against"]
MEAN = "mean of entries"
DETECTS = "--threshold: is for models that detect objects; leave it out"

View = tuple[Maps, Entries, Entries]  # what is shown, what asks, what answers


@dataclass
class Subject:
    """A model with an input that it was given, and its answer.

    `entries` are those of each tower's stream. `targets` are what of the answer is explained, and `score` makes their scores [B, T] of
    the finished streams; without targets there are no gradients. `says` names what the head `head` chooses among; `whole` is whether it
    speaks of a row and not of each entry. `pictured`: weights lie over a picture.
    """

    net: Model
    streams: dict[str, Stream]
    entries: dict[str, Entries]
    answer: str
    targets: list[str] = field(default_factory=list)
    score: attribution.Score | None = None
    head: str | None = None
    says: Callable[[int], str] = str
    whole: bool = False
    labels: list[str] | None = None
    pictured: np.ndarray | None = None
    name: str = "token"  # of an entry
    cut: Callable[[str, np.ndarray, list[int] | None, Stream], dict[str, View]] | None = None  # attention whose rows are pieces of a stream


def views(subject: Subject, kind: str | None) -> dict[str, View]:
    """By kind: attention, rollout, gradient x input, the logit lens; flow and integrated gradients, which take long, where asked for."""
    seen, finished = recorded(subject.net, "**.pattern", **subject.streams)
    found = attention(subject, seen, finished)
    rolled = {tower: maps for tower in subject.net.towers if (maps := found.get(tower)) is not None and square(maps[0])}
    for tower, view in rolled.items():
        found[f"rollout-{tower}"] = rolled_out(view, tower, finished[tower], subject)
    if kind == "flow":
        found |= {f"flow-{tower}": flowing(*maps, subject) for tower, maps in rolled.items()}
    if subject.targets:
        found |= shares(subject, "gradient", attribution.gradient(subject.net, subject.score, **subject.streams), None)  # type: ignore[arg-type]
        if kind == "integrated":
            parts, gap = attribution.integrated(subject.net, subject.score, STEPS, **subject.streams)  # type: ignore[arg-type]
            found |= shares(subject, "integrated", parts, float(gap.abs().max()))
    if subject.head is not None:
        found["lens"] = lensed(subject)
    return shortened(found, subject.net)


def shortened(found: dict[str, View], net: Model) -> dict[str, View]:
    """A model of one tower has its kinds without the tower's name; of several the last tower's comes first."""
    if len(net.towers) == 1:
        return {name.removesuffix(f"-{net.towers[0]}"): view for name, view in found.items()}
    return found


def square(maps: Maps) -> bool:
    return maps.weights.shape[2] == maps.weights.shape[3]


def attention(subject: Subject, seen: Record, finished: dict[str, Stream]) -> dict[str, View]:
    """Cross-attention first."""
    found: dict[str, View] = {}
    steps = attentions(subject.net)
    kinds = dict.fromkeys((name.split(".")[0], name.split(".")[3]) for name in steps)
    many = len(subject.net.towers) > 1
    about = looks(subject)
    for tower, step in sorted(kinds, key=lambda one: "cross" not in one[1]):
        weights = [seen[f"{name}.pattern"] for name in steps if (name.split(".")[0], name.split(".")[3]) == (tower, step)]
        part = next(part for name, part in steps.items() if (name.split(".")[0], name.split(".")[3]) == (tower, step))
        crossing = isinstance(part, CrossAttention)
        kind = "cross" if crossing else tower if step == "self_attn" else step
        stacked, counts = layered(weights)
        if len(weights[0]) > 1 and subject.cut is not None:
            found |= subject.cut(kind, stacked, counts, finished[tower])
            continue
        source = part.source if isinstance(part, CrossAttention) else tower
        queries, keys = (subject.entries[name].behind(prompts(finished[name])) for name in (tower, source))
        stacked = stacked[:, 0]
        keys = keys.behind(prefixes(stacked.shape[-1] - len(keys.names)))
        own = step.replace("_attn", "-attention")
        title = "cross-attention" if crossing else f"{tower} {own}" if many else own
        if subject.pictured is not None:
            title = f"{'objects' if tower != subject.net.towers[0] else 'patches'} over {'patches' if keys.tiled else 'objects'}"
        found[kind] = Maps(title, stacked, queries.names, keys.names, counts=counts, about=about), queries, keys
    return found


def layered(weights: Sequence[Tensor]) -> tuple[np.ndarray, list[int] | None]:
    """(layers [B, H, Q, K] as one array, how many heads each has if they differ).

    A pruned layer is filled up with the mean of its heads, one without a prefix looks at none.
    """
    counts, keys = [one.shape[1] for one in weights], max(one.shape[-1] for one in weights)
    most, full = max(counts), list[Tensor]()
    for one in weights:
        one = F.pad(one.float(), (keys - one.shape[-1], 0))
        full.append(torch.cat([one, one.mean(1, keepdim=True).expand(-1, most - one.shape[1], -1, -1)], 1))
    return torch.stack(full).cpu().numpy(), counts if min(counts) < most else None


def prefixes(n: int) -> list[str]:
    """Learned keys, which stand before all others."""
    return [f"[prefix {i + 1}]" for i in range(n)]


def prompts(s: Stream) -> list[str]:
    """Learned entries before a stream's own."""
    return [] if s.prompt is None else [f"[prompt {i + 1}]" for i in range(s.prompt.shape[1])]


def looks(subject: Subject, does: str = "looks at", back: str = "is looked at by", are: tuple[str, str] = About.are) -> About:
    hint = f"A row is an entry, the columns are what it {does}; each row sums to 1. Colour rises faster for small weights."
    attends = About.hint if are == About.are else hint
    return About((does, back), are, HINT.format(does=does) if subject.pictured is not None else attends)


def rolled_out(view: View, tower: str, s: Stream, subject: Subject) -> View:
    """Rollout through each layer; of a picture without a class token the mean over its entries comes first."""
    maps, queries, keys = view
    found = rollout(maps.weights)[:, None]  # [layers, 1, L, L]
    of = "" if len(subject.net.towers) == 1 else f" of the {tower}"
    about = looks(subject, "is made of", "goes into", ("behind the layer", "of the input"))
    if subject.pictured is not None and queries.tiled and not np.isnan(subject.entries[tower].places).any():
        real = np.ones(s.length, bool) if s.real is None else s.real[0].cpu().numpy()
        found = np.concatenate([found[:, :, -s.length :][:, :, real].mean(2, keepdims=True), found], 2)
        queries = replace(queries.behind([MEAN]), first=0)
    return Maps(f"rollout{of}", found, queries.names, keys.names, about=about), queries, keys


def flowing(maps: Maps, queries: Entries, keys: Entries, subject: Subject) -> View:
    """Each entry's flow behind the last layer, as shares of a row."""
    n = len(keys.names)
    if n > FLOWING:
        raise InputError(f"--kind flow: {n} entries would take minutes, at most {FLOWING} are shown: give a shorter input, or take rollout")
    found = np.stack([flow(maps.weights, query) for query in range(n)])
    about = looks(subject, "can be made of", "can go into", ("behind the last layer", "of the input"))
    weights = (found / found.sum(-1, keepdims=True))[None, None].astype(np.float32)
    return Maps("flow", weights, queries.names, keys.names, layers=[""], heads=["maximum flow, as shares"], about=about), queries, keys


def shares(subject: Subject, kind: str, parts: dict[str, Tensor], gap: float | None) -> dict[str, View]:
    """What each entry does for and against each target's score, as shares of all towers' entries together."""
    rows = {tower: np.atleast_2d(part[0].float().cpu().numpy()) for tower, part in parts.items()}  # [T, L]
    whole = sum(np.abs(part).sum(-1) for part in rows.values())
    named = {"gradient": "gradient x input", "integrated": "integrated gradients"}[kind]
    hint = f"How much of the score of what is explained each {subject.name} of the input makes, as shares of all: for it or against it."
    if gap is not None:
        hint += f" Integrated gradients miss the score's change by {gap:.2g}."
    if subject.pictured is not None:
        hint = HINT.format(does="owes its score to") + hint
    about = About(("owes its score to", "counts for"), ("explained", "of the input"), hint, whole=False, words=("queries",))
    queries, found = Entries.nowhere(subject.targets), dict[str, View]()
    for tower, part in rows.items():
        if not np.abs(part).sum() or (subject.pictured is not None and not subject.entries[tower].tiled):
            continue
        part = part / np.maximum(whole, 1e-30)[:, None]
        weights = np.stack([np.abs(part), part.clip(0), (-part).clip(0)])[None].astype(np.float32)
        title = named if len(rows) == 1 else f"{named}, {tower}"
        keys = subject.entries[tower]
        made = Maps(title, weights, queries.names, keys.names, layers=[""], heads=SIGNS, about=about)
        found[f"{kind}-{tower}"] = made, queries, keys
    return found


def lensed(subject: Subject, k: int = 3) -> View:
    """What the head would say behind each block: of a row its classes, else the `k` likeliest at each entry."""
    assert subject.head is not None
    tower = subject.net.towers[-1]
    part: Any = subject.net.get_submodule(tower)
    n = part.blocks.order
    blocks = Entries.nowhere([f"block {i}" for i in range(len(n))])
    hint = "What the head would say if the model stopped behind each block (the logit lens); the last block is the model's own answer."
    if subject.whole:
        labels = subject.labels or []
        found = lens(subject.net, subject.head, len(labels), tower, **subject.streams)
        pooled = isinstance(subject.net.heads[subject.head], Pooled)
        ids, chances = (x[:, 0] if pooled else x[:, 0, 0] for x in (found.ids, found.chances))  # [blocks, labels]
        weights = torch.zeros_like(chances).scatter(1, ids, chances)
        some = weights[-1].topk(min(len(labels), 40)).indices.sort().values
        keys = Entries.nowhere([labels[i] for i in some.tolist()])
        about = About(("says", "is said by"), ("from first to last", "to choose among"), hint, whole=False, words=("queries", "keys"))
        array = weights[:, some][None, None].cpu().numpy()
        return Maps("lens", array, blocks.names, keys.names, layers=[""], heads=["chances"], about=about, start=len(n) - 1), blocks, keys
    found, keys = lens(subject.net, subject.head, k, tower, **subject.streams), subject.entries[tower]
    weights = found.chances[:, 0].permute(2, 0, 1)[None].cpu().numpy()  # [1, k, blocks, L]
    cells = [[[subject.says(int(i)) for i in row] for row in rank] for rank in found.ids[:, 0].permute(2, 0, 1).tolist()]
    names = ["likeliest", *("second", "third", "fourth", "fifth")[: len(cells) - 1]]
    about = About(("would say", "is read as"), ("from first to last", "read"), hint, whole=False, words=("queries",))
    made = Maps("lens", weights, blocks.names, keys.names, layers=[""], heads=names, cells=cells, about=about, start=len(n) - 1)
    return made, blocks, keys


def scores_at(net: Model, head: str, at: Sequence[int], which: Sequence[int]) -> attribution.Score:
    """The head's scores of several entries at once, [B, T]: of entry `at[t]` the score `which[t]`."""
    tower = net.towers[-1]

    def score(streams: dict[str, Stream]) -> Tensor:
        found: Any = net.heads[head](streams[tower].x[:, list(at)])
        found = found[0] if isinstance(found, tuple) else found
        return found.gather(-1, torch.tensor(which, device=found.device).expand(len(found), -1)[..., None])[..., 0]

    return score
