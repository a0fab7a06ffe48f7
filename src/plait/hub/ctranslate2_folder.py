"""Folders of CTranslate2: model.bin, vocabularies, and since its version 3 a config.json of its own."""

from pathlib import Path
from typing import Any

import torch

from plait import models
from plait.errors import InputError, choices
from plait.hub.ready import Parts
from plait.text.loaded import LoadedTokenizer
from plait.text.special import read_object
from plait.text.vocabulary import read_vocabulary, symbol_tokenizer
from plait.weights import rules as table
from plait.weights.ctranslate2_file import Ctranslate2File

FILE = "model.bin"
NEUTRAL = {"layer_norm_epsilon": (None, 1e-5), "multi_query_attention": (None, False)}  # of config.json: what is built
ANSWERS = {"num_beams": 2, "length_penalty": 1.0, "early_stopping": True, "max_length": 257}  # as its `translate_batch`; the start counts


def ctranslate2_parts(folder: Path) -> Parts:
    """Such a folder with everything that was made of its files; InputError says what is wrong with them."""
    source = Ctranslate2File(folder / FILE)
    pages = {kind: page for page in models.PAGES.values() for kind in getattr(page, "CTRANSLATE2", ())}
    kind = source.metadata["spec"]
    if kind not in pages:
        raise InputError(f"{source.path}: a model of the kind {kind!r} has no page here that reads it; there is {choices(sorted(pages))}")
    page, config = pages[kind], folder / "config.json"
    said: dict[str, Any] = read_object(config, "the settings of a CTranslate2 model") if config.exists() else {}
    if odd := [f"{name}={said[name]!r}" for name, built in NEUTRAL.items() if name in said and said[name] not in built]:
        raise InputError(f"{config}: it says what is not built here", odd)
    try:
        settings = page.ctranslate2_config(source.metadata, source.shapes(), source.aliases)
        with torch.device("meta"):
            net = page.build(settings)
    except ValueError as error:
        raise InputError(f"{source.path}: {error}") from None
    certificate = table.load(net, source, page.ctranslate2_rules(settings, source.shapes()))
    rows = {"source": settings.source_vocab, "target": settings.target_vocab}
    tokenizers, vocabularies = [], {side: _vocabulary(folder, side, n, said) for side, n in rows.items()}
    for side, tokens in vocabularies.items():
        roles = {role: name for role in ("bos", "eos", "unk") if (name := _token(said, role)) in tokens}
        around = [*_marked(said, side, "bos"), "$A", *_marked(said, side, "eos")]
        tokenizers.append(symbol_tokenizer(tokens, roles, around))
    target = vocabularies["target"]
    start = said.get("decoder_start_token", "<s>")
    ids = {"decoder_start_token_id": start, "eos_token_id": _token(said, "eos")}
    if missing := [f"{token!r}, its {name.removesuffix('_id')}" for name, token in ids.items() if token not in target]:
        raise InputError(f"{folder}: the vocabulary of the target lacks what an answer needs", missing)
    generation = {**ANSWERS, **{name: target.index(token) for name, token in ids.items()}}
    pair: tuple[LoadedTokenizer, LoadedTokenizer] | None = None if None in tokenizers else tuple(tokenizers)  # type: ignore[assignment]
    return Parts(folder, net.eval(), pair, certificate, None, said, generation)


def _token(said: dict[str, Any], role: str) -> str:
    return said.get(f"{role}_token", {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}[role])


def _marked(said: dict[str, Any], side: str, role: str) -> list[str]:
    return [_token(said, role)] if side == "source" and said.get(f"add_source_{role}", False) else []


def _vocabulary(folder: Path, side: str, rows: int, said: dict[str, Any]) -> list[str]:
    """The tokens of a side. CTranslate2 puts the unknown token behind a vocabulary that lacks it."""
    names = [f"{whose}_vocabulary.{ending}" for whose in (side, "shared") for ending in ("json", "txt")]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder}: has no vocabulary for its {side}: none of {', '.join(names)}; copy it beside {FILE}")
    tokens = read_vocabulary(file)
    tokens += [_token(said, "unk")] * (_token(said, "unk") not in tokens)
    if len(tokens) != rows:
        raise InputError(
            f"{file}: has {len(tokens)} tokens with the unknown one, and {FILE} {rows} rows for them: one of the files was exchanged"
        )
    return tokens
