"""What `plait inspect` looks at in a model that takes pixels: entries lie on the picture, or on a sheet of a clip's frames."""

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from plait.core.heads import pooled
from plait.core.pixels import Before
from plait.core.stream import Stream
from plait.errors import InputError
from plait.hub.pictures import LIKELY, ClassifyPictures, PictureModel
from plait.inspect.overlay import HINT, Entries
from plait.inspect.page import About, Maps
from plait.media.clips import evenly
from plait.media.preparing import Preparation
from plait.tasks.boxes import corners
from plait.tasks.detecting import chances
from plait.tasks.labels import classified
from plait.verbs.inspecting_views import DETECTS, Subject, View, prefixes, scores_at

if TYPE_CHECKING:
    from plait.verbs.inspect import Inspect

TOKENS = {"cls": "class", "registers": "register"}  # what entries before the patches are called
MOST = 12  # objects that are explained
FRAMES = 8  # of a clip that have a view of their own
LEGIBLE, LINE = 96, 128  # pixels of a frame's longer side, at least; grey


def subject_of(verb: "Inspect", model: PictureModel) -> Subject:
    if verb.answer is not None:
        raise InputError("--answer: is for models that answer in words of their own; leave it out")
    sure = LIKELY if verb.threshold is None else verb.threshold
    if verb.threshold is not None and "detect" not in model.net.heads:
        raise InputError(DETECTS)
    if not 0 <= sure <= 1:
        raise InputError(f"--threshold {sure}: expected a chance from 0 to 1")
    picture = model.read(verb.input)
    [(pixels, _)] = model.batches([picture])
    net, (encoder, *rest) = model.net, model.net.towers
    given = {encoder: pixels}
    if "detect" in net.heads:
        given[rest[0]] = Stream(torch.arange(model.parts.settings.n_queries, device=pixels.x.device)[None])
    with torch.no_grad():
        streams = net(**given)
    before = before_of(net.get_submodule(encoder).embed)
    patches = patches_of(before, pixels, streams[encoder], model.prepare, picture)
    made = Subject(net, given, {encoder: patches}, "", pictured=sheet(picture, streams[encoder]) if model.clips else picture, name="patch")
    if model.clips:
        made.cut = lambda kind, weights, counts, s: frames(kind, weights, counts, s, patches)
    if "detect" in net.heads:
        scores, boxes = (found[0].float() for found in net.heads["detect"](streams[rest[0]].x))
        objects, made.answer = objects_of(scores.detach(), boxes.detach(), model, sure)
        made.entries[rest[0]], at = objects, objects.offered[:MOST]
        likeliest = chances(net, scores[at]).argmax(-1).tolist()
        made.targets, made.score = [objects.names[i] for i in at], scores_at(net, "detect", at, likeliest)
    elif isinstance(model, ClassifyPictures):
        (name,) = net.heads
        head = net.heads[name]
        found = classified(head(pooled(head, streams[encoder]))[0].detach().float().cpu(), model.labels, model.problem)
        made.targets = sorted(found.scores, key=lambda label: -found.scores[label])[:3]
        made.answer = ", ".join(f"{label} {found.scores[label]:.3f}" for label in made.targets)
        which = [model.labels.index(label) for label in made.targets]
        made.score = lambda streams: head(pooled(head, streams[encoder]))[:, which]
        made.labels, made.whole = model.labels, True
        made.head = name if model.problem == "single" else None
    else:
        own = streams[encoder].x[:, 0].detach()
        made.answer, made.targets = f"a vector of {own.shape[-1]} numbers", ["the vector"]
        made.score = lambda streams: (streams[encoder].x[:, 0] * own).sum(-1) / own.norm()
    return made


def sheet(clip: np.ndarray, s: Stream) -> np.ndarray:
    """Frames [T, H, W, 3] beside and below each other, row by row, as one picture; where entries are of several frames, one of these.

    A grey line ends each frame; small ones are enlarged, so that it hides none of their pixels.
    """
    assert s.grid is not None
    clip = clip[evenly(len(clip), s.grid[0])]
    times = math.ceil(LEGIBLE / max(clip.shape[1:3]))
    clip = clip.repeat(times, 1).repeat(times, 2)
    clip[:, -1], clip[:, :, -1] = LINE, LINE
    across = columns_of(len(clip))
    rows = [np.concatenate(list(clip[i : i + across]), 1) for i in range(0, len(clip), across)]
    rows[-1] = np.pad(rows[-1], ((0, 0), (0, rows[0].shape[1] - rows[-1].shape[1]), (0, 0)))
    return np.concatenate(rows)


def columns_of(n: int) -> int:
    return math.ceil(math.sqrt(n))


def on_sheet(places: np.ndarray, frame: int, n: int) -> np.ndarray:
    """Places of one of `n` frames as places of the sheet."""
    across = columns_of(n)
    size = np.array([across, math.ceil(n / across)] * 2, np.float32)
    corner = np.array([frame % across, frame // across] * 2, np.float32)
    return (corner + places.clip(0, 1)) / size


def frames(kind: str, weights: np.ndarray, counts: list[int] | None, s: Stream, patches: Entries) -> dict[str, View]:
    """Attention [layers, rows, H, L, S] over pieces of a clip: each frame by itself, or the mean over the places of all frames."""
    assert s.grid is not None
    n, height, width = s.grid
    size = height * width
    about = About(hint=HINT.format(does="looks at"))
    learned = prefixes(weights.shape[-1] - weights.shape[-2])
    if weights.shape[1] == n and weights.shape[-2] == size + 1:
        found = {}
        for frame in np.unique(np.linspace(0, n - 1, min(n, FRAMES)).round().astype(int)).tolist():
            here = slice(len(patches.names) - (n - frame) * size, len(patches.names) - (n - frame - 1) * size)
            places = np.concatenate([np.full((1, 4), np.nan, np.float32), patches.places[here]])
            entries = Entries(["class", *patches.names[here]], places, offered=list(range(1, size + 1)))
            keys = entries.behind(learned)
            maps = Maps(f"frame {frame}", weights[:, frame], entries.names, keys.names, counts=counts, about=about)
            found[f"frame-{frame}"] = maps, entries, keys
        return found
    whole = np.stack([on_sheet(np.array([0, 0, 1, 1], np.float32), frame, n) for frame in range(n)])
    entries = Entries([f"frame {i}" for i in range(n)], whole, offered=list(range(n)))
    keys = entries.behind(learned)
    maps = Maps("frames over frames", weights.mean(1), entries.names, keys.names, counts=counts, about=about)
    return {kind: (maps, entries, keys)}


def patches_of(before: list[str], pixels: Stream, s: Stream, prepare: Preparation, picture: np.ndarray) -> Entries:
    """The entries of a finished stream, where the pixels that each was made of lie in the picture, or the sheet, as it was read."""
    if s.grid is None:
        raise InputError("the entries of this model form no grid, so they have no place on the picture")
    *times, rows, columns = s.grid
    height, width = picture.shape[-3:-1]
    size = prepare.size.of(height, width) if prepare.size is not None else (height, width)
    top, left = (0, 0) if prepare.crop is None else ((full - part) // 2 for full, part in zip(size, prepare.crop, strict=True))
    edge = max(math.ceil(full / count) for full, count in zip(pixels.x.shape[-2:], (rows, columns), strict=True))  # the last may be cut
    one = Entries.grid(before, rows, columns, (left / size[1], top / size[0]), (edge / size[1], edge / size[0]))
    if not times:
        assert len(one.names) == s.length
        return one
    (n,) = times
    inner = Entries.grid([], rows, columns, (left / size[1], top / size[0]), (edge / size[1], edge / size[0]))
    extra = s.length - n * rows * columns  # the clip's class token, or one a frame
    names = [
        *(["class"] if extra == 1 else [f"class {i}" for i in range(extra)]),
        *(f"{t}:{name}" for t in range(n) for name in inner.names),
    ]
    nowhere = np.full((extra, 4), np.nan, np.float32)
    places = np.concatenate([nowhere, *(on_sheet(inner.places, t, n) for t in range(n))])
    return Entries(names, places, offered=list(range(extra, len(names))))


def before_of(embed: Any) -> list[str]:
    """Names of the entries before the grid, in their order."""
    names = list[str]()
    for name, part in embed.named_children():
        if isinstance(part, Before):
            n, token = len(part.weight), TOKENS.get(name) or name
            names[part.behind : part.behind] = [token] if n == 1 else [f"{token} {i}" for i in range(n)]
    return names


def objects_of(scores: torch.Tensor, boxes: torch.Tensor, model: Any, sure: float) -> tuple[Entries, str]:
    """(object queries with their boxes, how many are likely) of the head's scores [N, any] and boxes [N, 4]."""
    best, label = chances(model.net, scores).max(-1)
    names = [f"{model.labels[n]} {score:.2f}" for n, score in zip(label.tolist(), best.tolist(), strict=True)]
    order = best.argsort(descending=True).tolist()
    likely = [i for i in order if best[i] >= sure]
    counts = Counter(model.labels[label[i]] for i in likely)
    answer = ", ".join(f"{n} {name}" for name, n in counts.items()) or f"nothing above {sure}; the surest is {names[order[0]]}"
    return Entries(names, corners(boxes).cpu().numpy(), tiled=False, offered=likely or order[:1], first=order[0]), answer
