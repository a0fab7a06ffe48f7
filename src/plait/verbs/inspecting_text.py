"""What `plait inspect` looks at in a model of texts, whatever its task: its ids, its answer, and the scores behind that."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plait.core.heads import pooled
from plait.core.stream import Stream
from plait.errors import InputError
from plait.hub.encoders import EmbeddingModel, MaskModel
from plait.hub.labels import AnswerModel, ClassifyModel, TagModel, asked_in, pairs_in
from plait.hub.languages import LanguageModel
from plait.hub.sequences import Sequences
from plait.inspect.overlay import Entries
from plait.verbs.inspecting_views import DETECTS, Subject, scores_at

if TYPE_CHECKING:
    from plait.verbs.inspect import Inspect

MOST = 24  # of the answer's tokens are explained, the first ones
NEW = 16  # tokens that a language model adds
NOTHING = "there is nothing to look at in an empty input: give some text"


def subject_of(verb: "Inspect", model: Any) -> Subject:
    """InputError where the model cannot read the text whole, or does something that is not shown."""
    for kind, make in KINDS.items():
        if isinstance(model, kind):
            if not verb.input.strip():
                raise InputError(NOTHING)
            if verb.threshold is not None:
                raise InputError(DETECTS)
            if verb.answer is not None and kind not in (LanguageModel, Sequences):
                raise InputError("--answer: is for models that answer in words of their own; leave it out")
            return make(verb, model)
    raise InputError(f"{verb.model}: its task is {model.task}, which is not shown")


def stream(net: Any, *rows: Sequence[int]) -> dict[str, Stream]:
    device = next(net.parameters()).device
    return {tower: Stream(torch.tensor([list(ids)], device=device)) for tower, ids in zip(net.towers, rows, strict=True)}


def whole(ids: Sequence[int], limit: int | None, what: str = "the input") -> Sequence[int]:
    if not ids:
        raise InputError(NOTHING)
    if limit is not None and len(ids) > limit:
        raise InputError(f"{what} is {len(ids)} tokens long, this model takes {limit}: shorten it")
    return ids


def continued(verb: "Inspect", model: LanguageModel) -> Subject:
    """A text and its continuation, the model's own unless it was given."""
    prompt = list(whole(model.encode(verb.input), model.max_length))
    if verb.answer is not None:
        added = model.tokenizer.encode(verb.answer)
    else:
        room = NEW if model.max_length is None else min(NEW, model.max_length - len(prompt))
        added = model.generate(prompt, max_new_tokens=room) if room > 0 else []
    ids = whole([*prompt, *added], model.max_length)
    tokens, some = model.tokenizer.tokens(ids), range(len(prompt), min(len(ids), len(prompt) + MOST))
    head = next(iter(model.net.heads))
    (tower,) = model.net.towers
    return Subject(
        model.net, stream(model.net, ids), {tower: Entries.nowhere(tokens)}, model.decode(added), [tokens[i] for i in some],
        scores_at(model.net, head, [i - 1 for i in some], [ids[i] for i in some]), head, lambda id: model.tokenizer.tokens([id])[0],
    )  # fmt: skip


def rewritten(verb: "Inspect", model: Any) -> Subject:
    """A source and the answer to it, the model's own by `beams` unless it was given."""
    reader, said = model.prepared({})
    answer = verb.answer if verb.answer is not None else model(verb.input, beams=verb.beams)
    source, start = reader.encode(verb.input), said.get("decoder_start_token_id", said.get("bos_token_id"))
    whole(source, reader.max_source)
    source = reader.fed(verb.input)
    added = model.target_tokenizer.encode(answer)
    target = whole([start, *added], model.max_length, "the answer")
    reads = model.source_tokenizer if hasattr(model, "source_tokenizer") else model.tokenizer
    tokens = model.target_tokenizer.tokens(target)
    some = range(min(len(added), MOST))
    head, (encoder, decoder) = next(iter(model.net.heads)), model.net.towers
    return Subject(
        model.net,
        stream(model.net, source, target),
        {encoder: Entries.nowhere(reads.tokens(source)), decoder: Entries.nowhere(tokens)},
        answer,
        [tokens[i + 1] for i in some],
        scores_at(model.net, head, some, [added[i] for i in some]),
        head,
        lambda id: model.target_tokenizer.tokens([id])[0],
    )


def encoded(model: Any, ids: Sequence[int], answer: str, first: int | None = None, **more: Any) -> Subject:
    """A row of one encoder; `first` of its ids are the first text's."""
    reader = getattr(model, {ClassifyModel: "classify", AnswerModel: "answer", TagModel: "tag", EmbeddingModel: "embed", MaskModel: "fill"}[
        next(kind for kind in (ClassifyModel, AnswerModel, TagModel, EmbeddingModel, MaskModel) if isinstance(model, kind))
    ])  # fmt: skip
    [(_, one)] = reader.batches([whole(ids, model.max_length)], None if first is None else [first])
    (tower,) = model.net.towers
    return Subject(model.net, {tower: one}, {tower: Entries.nowhere(model.tokenizer.tokens(ids))}, answer, **more)


def classified(verb: "Inspect", model: ClassifyModel) -> Subject:
    given = pairs_in([verb.input], 1)[0] if model.config.get("pairs") else verb.input
    ids, first = model.classify.row(given)
    (said,) = model.classify([given])
    best = sorted(said.scores, key=lambda name: -said.scores[name])[:3]
    head, tower = model.net.heads["classify"], model.net.towers[0]
    which = [model.labels.index(name) for name in best]
    return encoded(
        model, ids, ", ".join(f"{name} {said.scores[name]:.3f}" for name in best), first, targets=best, whole=True, labels=model.labels,
        score=lambda streams: head(pooled(head, streams[tower]))[:, which],
        head="classify" if model.problem == "single" else None,
    )  # fmt: skip


def tagged(verb: "Inspect", model: TagModel) -> Subject:
    ids = model.encode(verb.input)
    found = model.tag([verb.input])[0]
    made = encoded(model, ids, ", ".join(f"{e.text}: {e.label}" for e in found) or "nothing", head="tag", says=lambda i: model.labels[i])
    with torch.no_grad():
        best = model.net.heads["tag"](model.net(**made.streams)[model.net.towers[0]].x)[0].argmax(-1).tolist()
    around = len(model.tokenizer.added(1)[0])
    inner = range(around, len(ids) - len(model.tokenizer.added(1)[1]))
    at = [i for i in inner if model.labels[best[i]] != "O"][:MOST]
    made.targets = [f"{model.tokenizer.tokens([ids[i]])[0]}: {model.labels[best[i]]}" for i in at]
    made.score = scores_at(model.net, "tag", at, [best[i] for i in at]) if at else None
    return made


def answered(verb: "Inspect", model: AnswerModel) -> Subject:
    """A question and its context, an object of both as `plait run` takes it: the best start and the best end are explained."""
    [(question, context)] = asked_in([verb.input], 1)
    found = model(question, context)
    ids, first = model.answer.pair(model.tokenizer.encode(question), model.tokenizer.encode(context))
    made = encoded(model, ids, found.text or "no answer", first)
    with torch.no_grad():
        scores = model.net.heads["answer"](model.net(**made.streams)[model.net.towers[0]].x)[0, first:]
    at = [first + int(i) for i in scores.argmax(0)]
    made.targets = [f"{side} at {model.tokenizer.tokens([ids[i]])[0]}" for side, i in zip(("start", "end"), at, strict=True)]
    made.score = scores_at(model.net, "answer", at, [0, 1])
    return made


def filled(verb: "Inspect", model: MaskModel) -> Subject:
    """The likeliest token behind each mask; a text without one is looked at all the same."""
    ids = model.encode(verb.input)
    made = encoded(model, ids, "no mask to fill", head="mlm", says=lambda id: model.tokenizer.tokens([id])[0])
    at = [i for i, id in enumerate(ids) if id == model.tokenizer.ids.get("mask")][:MOST]
    if at:
        with torch.no_grad():
            best = model.net.heads["mlm"](model.net(**made.streams)[model.net.towers[0]].x)[0, at].argmax(-1).tolist()
        made.targets = made.answer = model.tokenizer.tokens(best)  # type: ignore[assignment]
        made.answer, made.score = ", ".join(made.targets), scores_at(model.net, "mlm", at, best)
    return made


def embedded(verb: "Inspect", model: EmbeddingModel) -> Subject:
    """What is explained is how like the text's vector is to itself as it is: its length along its own direction."""
    ids = model.embed.cut(model.tokenizer.encode(verb.input))
    made = encoded(model, ids, "")
    tower = model.net.towers[0]

    def vector(streams: dict[str, Stream]) -> Tensor:
        return model.embed.pooling.of(streams[tower].x, streams[tower].real)

    with torch.no_grad():
        own = vector(model.net(**made.streams))
    made.answer, made.targets = f"a vector of {own.shape[1]} numbers", ["the vector"]
    made.score = lambda streams: (vector(streams) * own).sum(-1) / own.norm()
    return made


KINDS: dict[type, Any] = {
    LanguageModel: continued,
    Sequences: rewritten,
    ClassifyModel: classified,
    TagModel: tagged,
    AnswerModel: answered,
    MaskModel: filled,
    EmbeddingModel: embedded,
}
