"""Several models ready to use as one, an ensemble: what `plait.load` makes of a list of names."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from plait.errors import InputError
from plait.generate.ensemble import ensemble
from plait.hub.languages import LanguageModel
from plait.hub.runs import TranslationRun
from plait.hub.sequences import Sequences


def together(named: Sequence[tuple[str, Any]]) -> Any:
    """One of several models of one kind and vocabulary, each with its name: each next token by the mean of their log-probabilities.

    It is used as the first one, whose settings count, and shares the weights of all. InputError has all that they differ in.
    """
    if not named:
        raise InputError("there is nothing to load: give at least one model")
    models: list[Any] = [model for _, model in named]
    (name, first), others = (named[0][0], models[0]), named[1:]
    writes = isinstance(models[0], Sequences | LanguageModel)
    faults = [] if writes else [f"{name}: its task is {first.task}, which writes nothing"]
    for other, model in others:
        if type(model) is not type(first) or model.task != first.task:
            faults.append(f"{other}: its task is {model.task}, that of {name} is {first.task}")
            continue
        for side, one, its in zip(("input", "output"), tokenizers_of(first), tokenizers_of(model), strict=True):
            if one is not None and its is not None and one.backend.to_str() != its.backend.to_str():
                faults.append(
                    f"{other}: its tokenizer of the {side} ({its.vocab_size:,} tokens) is not that of {name} ({one.vocab_size:,})"
                )
        if neighbours_of(model) != neighbours_of(first):
            faults.append(f"{other}: was trained with other neighbours than {name}")
    if not faults:
        try:
            net = ensemble([model.net for model in models])
        except InputError as error:
            faults = error.faults or [error.message]
    if faults:
        raise InputError(f"{', '.join(name for name, _ in named)}: cannot answer together", faults)
    if isinstance(first, TranslationRun):
        least = {limit: min(model.config[limit] for model in models) for limit in ("max_source", "max_target")}
        tokenizers = first.source_tokenizer, first.target_tokenizer
        return TranslationRun(net, *tokenizers, {**first.config, **least}, first.memory, " and ".join(name for name, _ in named))
    made = copy(first)
    limits = [model.max_length for model in models if model.max_length is not None]
    made.net, made.max_length = net, min(limits, default=None)
    made.parts = replace(first.parts, net=net, max_length=made.max_length)
    return made


def tokenizers_of(model: Any) -> tuple[Any, Any]:
    """Of what it reads and what it writes; None where it has none."""
    if isinstance(model, TranslationRun):
        return model.source_tokenizer, model.target_tokenizer
    return model.parts.tokenizers or (None, None)


def neighbours_of(model: Any) -> Any:
    memory = getattr(model, "memory", None)
    return None if memory is None else (memory.sources, memory.targets)
