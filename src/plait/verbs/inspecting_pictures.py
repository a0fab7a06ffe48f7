"""What `plait inspect` shows of a model that takes pixels: attention over the picture."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from plait.core.heads import pooled
from plait.core.model import Model
from plait.core.pixels import Before
from plait.core.stream import Stream
from plait.errors import InputError, choices
from plait.hub.pictures import LIKELY, ClassifyPictures, PictureModel
from plait.inspect.overlay import Entries, Shown, draw_over
from plait.inspect.page import Maps, write_page
from plait.inspect.record import Recorder, record
from plait.inspect.rollout import rollout
from plait.media.preparing import Preparation
from plait.tasks.boxes import corners
from plait.tasks.labels import classified

if TYPE_CHECKING:
    from plait.verbs.inspect import Inspect

TOKENS = {"cls": "class", "registers": "register"}  # what entries before the patches are called
MEAN = "mean of entries"


def inspect_picture(verb: "Inspect", model: PictureModel) -> dict[str, Any]:
    """Writes the page or the picture that `verb` asks for, and says what it is about."""
    if model.clips:
        raise InputError(f"{verb.model}: reads clips, and attention over clips is not shown yet; give a model of pictures")
    if verb.answer is not None:
        raise InputError("--answer: is for models that answer in words; leave it out")
    picture = model.read(verb.input)
    maps, answer = looked(model, picture)
    kind = verb.kind or next(iter(maps))
    if kind not in maps:
        raise InputError(f"--kind {kind}: of this model there are {choices(maps)}")
    seen, queries, keys = maps[kind]
    layers, heads, n_queries, _ = seen.weights.shape
    faults = [
        f"--{name} {value}: there are 0 to {most - 1}"
        for name, value, most in (("layer", verb.layer, layers), ("head", verb.head, heads), ("query", verb.query, n_queries))
        if value is not None and not 0 <= value < most
    ]
    if faults:
        raise InputError(f"{kind}: not in this model", faults) if len(faults) > 1 else InputError(faults[0])
    verb.out.parent.mkdir(parents=True, exist_ok=True)
    query = queries.first if verb.query is None else verb.query
    if verb.out.suffix == ".html":
        chosen = [maps[kind], *(one for name, one in maps.items() if name != kind)]
        if verb.query is not None:
            chosen[0] = (seen, replace(queries, first=query), keys)
        named = f"{type(model.parts.settings).__module__.rsplit('.', 1)[-1]}, {Path(verb.model).name}"
        given = {"source": Path(verb.input).name, "answer": answer, "model": named}
        write_page(verb.out, [one for one, _, _ in chosen], title="Attention", picture=Shown(picture, chosen), **given)
    else:
        draw_over(verb.out, picture, seen, queries, keys, query=query, layer=verb.layer, head=verb.head)
    return {"page": str(verb.out), "input": verb.input, "answer": answer, "layers": layers, "heads": heads}


@torch.inference_mode()
def looked(model: PictureModel, picture: np.ndarray) -> tuple[dict[str, tuple[Maps, Entries, Entries]], str]:
    """(maps by kind, what the model says of the picture), of one forward pass."""
    [(pixels, _)] = model.batches([picture])
    net, (encoder, *rest) = model.net, model.net.towers
    decoder = rest[0] if "detect" in net.heads else None
    given: dict[str, Any] = {encoder: pixels}
    if decoder is not None:
        given[decoder] = torch.arange(model.parts.settings.n_queries, device=pixels.x.device)[None]
    seen, streams = record(net, **given)
    patches, maps = patches_of(net, encoder, pixels, streams[encoder], model.prepare, picture), {}
    if decoder is None:
        answer = said(model, streams[encoder])
    else:
        scores, boxes = (found[0].float() for found in net.heads["detect"](streams[decoder].x))
        objects, answer = objects_of(scores, boxes, model)
        maps["cross"] = maps_of("objects over patches", stacked(seen, decoder, "cross_attn"), objects, patches)
        maps["decoder"] = maps_of("objects over objects", stacked(seen, decoder, "self_attn"), objects, objects)
    weights = stacked(seen, encoder, "self_attn")
    maps["encoder"] = maps_of("patches over patches", weights, patches, patches)
    maps["rollout"] = rolled(weights, patches, streams[encoder])
    return maps, answer


def stacked(seen: Recorder, tower: str, step: str) -> np.ndarray:
    found = seen.stacked(tower, step)
    if found is None:
        raise InputError(f"the {tower} of this model has no {step}, so there is no attention to show")
    return found


def maps_of(title: str, weights: np.ndarray, queries: Entries, keys: Entries) -> tuple[Maps, Entries, Entries]:
    return Maps(title, weights, queries.names, keys.names), queries, keys


def rolled(weights: np.ndarray, patches: Entries, s: Stream) -> tuple[Maps, Entries, Entries]:
    """Attention rollout through each layer; where there is no class token, the mean over entries comes first."""
    found, queries = rollout(weights)[:, None], patches  # [layers, 1, L, L]
    if np.isnan(patches.places).any():
        return maps_of("rollout", found, queries, patches)
    real = np.ones(found.shape[-1], bool) if s.real is None else s.real[0].cpu().numpy()
    found = np.concatenate([found[:, :, real].mean(2, keepdims=True), found], 2)
    nowhere = np.full((1, 4), np.nan, np.float32)
    places, offered = np.concatenate([nowhere, patches.places]), [i + 1 for i in patches.offered]
    return maps_of("rollout", found, Entries([MEAN, *patches.names], places, offered=offered), patches)


def patches_of(net: Model, tower: str, pixels: Stream, s: Stream, prepare: Preparation, picture: np.ndarray) -> Entries:
    """The entries of a finished stream, where the pixels that each was made of lie in the picture as it was read."""
    if s.grid is None:
        raise InputError("the entries of this model form no grid, so they have no place on the picture")
    rows, columns = s.grid
    size = prepare.size.of(*picture.shape[:2]) if prepare.size is not None else picture.shape[:2]
    top, left = (0, 0) if prepare.crop is None else ((full - part) // 2 for full, part in zip(size, prepare.crop, strict=True))
    edge = max(math.ceil(full / count) for full, count in zip(pixels.x.shape[-2:], s.grid, strict=True))  # the last cell may be cut
    before = before_of(net.get_submodule(tower).embed)
    assert len(before) + rows * columns == s.length
    return Entries.grid(before, rows, columns, (left / size[1], top / size[0]), (edge / size[1], edge / size[0]))


def before_of(embed: Any) -> list[str]:
    """Names of the entries before the grid, in their order."""
    names = list[str]()
    for name, part in embed.named_children():
        if isinstance(part, Before):
            n, token = len(part.weight), TOKENS.get(name) or name
            names[part.behind : part.behind] = [token] if n == 1 else [f"{token} {i}" for i in range(n)]
    return names


def objects_of(scores: torch.Tensor, boxes: torch.Tensor, model: Any) -> tuple[Entries, str]:
    """(object queries with their boxes, how many are likely) of scores [N, C + 1] and boxes [N, 4]."""
    best, label = scores.softmax(-1)[:, :-1].max(-1)
    names = [f"{model.labels[n]} {score:.2f}" for n, score in zip(label.tolist(), best.tolist(), strict=True)]
    order = best.argsort(descending=True).tolist()
    likely = [i for i in order if best[i] >= LIKELY]
    counts = Counter(model.labels[label[i]] for i in likely)
    answer = ", ".join(f"{n} {name}" for name, n in counts.items()) or f"nothing above {LIKELY}; the surest is {names[order[0]]}"
    return Entries(names, corners(boxes).cpu().numpy(), tiled=False, offered=likely or order[:1], first=order[0]), answer


def said(model: PictureModel, s: Stream) -> str:
    if not isinstance(model, ClassifyPictures):
        return f"a vector of {s.x.shape[-1]} numbers"
    head = next(iter(model.net.heads.values()))
    found = classified(head(pooled(head, s))[0].float().cpu(), model.labels, model.problem)
    first = sorted(found.scores.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {score:.3f}" for name, score in first)
